"""The learned tools whose weights come with the project: one safetensors file in half precision and one JSON card each, in ``weights/``."""

from __future__ import annotations

import json
from pathlib import Path

from tool_actors.tasks import TASKS
from tool_actors.toolbox import Tool
from tool_actors.weight_files import load_into

__all__ = ["FOLDER", "embedded_tools", "has_card", "load_embedded"]

FOLDER = Path(__file__).parent / "weights"


def embedded_tools(folder: Path = FOLDER) -> list[Tool]:
    """The tools of a folder, in the order of the tasks."""
    cards = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return [load_embedded(folder, card["name"]) for card in sorted(cards, key=lambda card: TASKS.index(card["task"]))]


def has_card(weights: Path) -> bool:
    """Whether a weight file is of one of these networks: a card beside it says which."""
    if weights.suffix != ".safetensors":
        return False
    try:
        card = json.loads(weights.with_suffix(".json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(card, dict) and {"name", "network", "arguments"} <= card.keys()


def load_embedded(folder: Path, name: str, tool_name: str = "", task: str = "") -> Tool:
    """One tool by the name of its file; the card says which network it is and what it was trained on, and what it is called unless another
    name and task are given."""
    from tool_actors.embedded.networks import NETWORKS
    from tool_actors.learned import TILE, LearnedTool

    card = json.loads((folder / f"{name}.json").read_text())
    network = NETWORKS[card["network"]](**card["arguments"])
    load_into(network, folder / f"{name}.safetensors")
    gains = ", ".join(f"{gain:+.2f} dB on {photos}" for photos, gain in card["gain_db"].items())
    scale = 4 if card["network"] == "x4" else 1
    what, _, _ = (type(network).__doc__ or "").partition("\n")
    description = f"{what}\n\nTrained on {card['degradation']}{f'; gain {gains}' if gains else ''}. {card.get('note', '')}".strip()
    # a curve network must see the whole image, and bends it strip by strip
    tile = None if card["network"] == "curve" else TILE
    tool = LearnedTool(
        tool_name or name, task or card["task"], network, scale=scale, multiple=network.multiple, tile=tile, description=description
    )
    tool.card = card
    return tool
