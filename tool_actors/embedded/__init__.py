"""The learned tools whose weights come with the project: one safetensors file in half precision and one JSON card each, in ``weights/``."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

from tool_actors.tasks import ALL_IN_ONE, TASKS
from tool_actors.toolbox import Deferred, Tool
from tool_actors.weight_files import load_into

__all__ = ["ALL_IN_ONE_FOLDER", "FOLDER", "embedded_entries", "embedded_tools", "has_card", "load_embedded"]

FOLDER = Path(__file__).parent / "weights"
ALL_IN_ONE_FOLDER = FOLDER / "all_in_one"
"""Of the networks that undo whatever is there, which are a toolbox of their own."""
KINDS = {"half": "HalfResolutionNet", "curve": "CurveNet", "x4": "SuperResolver", "all_in_one": "AllInOneNet"}
"""The classes of ``NETWORKS`` by the name that cards give them, for those who do not load them."""


def embedded_tools(folder: Path = FOLDER) -> list[Tool]:
    """The tools of a folder, in the order of the tasks."""
    return [entry.build() for entry in embedded_entries(folder)]


def embedded_entries(folder: Path = FOLDER) -> list[Deferred]:
    """The same, each loaded when it is built: what there is can be told without torch, which takes seconds to import."""
    order = (*TASKS, ALL_IN_ONE)
    cards = sorted((json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))), key=lambda card: order.index(card["task"]))
    return [
        Deferred(card["name"], card["task"], partial(load_embedded, folder, card["name"]), _summary(folder, card), scale=_scale(card))
        for card in cards
    ]


def _summary(folder: Path, card: dict) -> str:
    """As that of the built tool; the header of a safetensors file tells the shapes."""
    with open(folder / f"{card['name']}.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    parameters = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
    return f"{KINDS[card['network']]}, {parameters:,} parameters"


def _scale(card: dict) -> int:
    return 4 if card["network"] == "x4" else 1


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
    what, _, _ = (type(network).__doc__ or "").partition("\n")
    description = f"{what}\n\nTrained on {card['degradation']}{f'; gain {gains}' if gains else ''}. {card.get('note', '')}".strip()
    # a curve network must see the whole image, and bends it strip by strip
    tile = None if card["network"] in ("curve", "all_in_one") else TILE
    tool = LearnedTool(
        tool_name or name, task or card["task"], network, scale=_scale(card), multiple=network.multiple, tile=tile, description=description
    )
    tool.card = card
    return tool
