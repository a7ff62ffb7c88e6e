"""A small vision-language policy in a quarter of its size: matrices as whole numbers of 8 bits, a scale per row.

:func:`save_small` writes a folder like transformers' own, but for the weights; ``VisionLanguageModel.load`` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tool_actors.weight_files import UnsupportedCheckpointError, read_state

if TYPE_CHECKING:
    from policies.vlm.planner import VLMPlanner

SHIPPED = Path(__file__).parent / "weights" / "nano"
"""The policy that comes with the project, trained by ``experiments/tir_agent``; its card says how."""
SMALL, CARD = "weights.int8.safetensors", "card.json"
SCALE, LEVELS = ".scale", 127


def save_small(planner: VLMPlanner, folder: str | Path, card: Mapping[str, Any]) -> None:
    """Write a policy's model whole (no adapter), its processor, how it is asked, and a card.

    Args:
        planner: as :func:`policies.loading.load_policy` gives it.
        folder: is made.
        card: how it was made, and what it reaches.
    """
    from safetensors.torch import save_file

    folder, model = Path(folder), planner.vlm.model
    folder.mkdir(parents=True, exist_ok=True)
    tied = {id(model.get_output_embeddings().weight)} if model.config.tie_word_embeddings else set()
    named = {name: value for name, value in model.named_parameters(remove_duplicate=True) if id(value) not in tied or "embed" in name}
    stored = {}
    for name, value in named.items():
        value = value.detach().float()
        if value.ndim < 2:
            stored[name] = value.half()
            continue
        rows = value.flatten(1)
        scale = (rows.abs().amax(1).clamp(min=1e-12) / LEVELS).half().float().clamp(min=1e-7)
        stored[name] = (rows / scale[:, None]).round().clamp(-LEVELS, LEVELS).to(torch.int8).reshape(value.shape).contiguous()
        stored[name + SCALE] = scale
    save_file(stored, folder / SMALL)
    model.config.save_pretrained(folder)
    planner.vlm.processor.save_pretrained(folder)
    dataset = planner.env_config.get("dataset")
    seen = [dataset.get("combos", "A,B,C")] if isinstance(dataset, Mapping) else []
    planner.settings.after(*seen).save(folder)
    (folder / CARD).write_text(json.dumps(dict(card), indent=2) + "\n")


def load_small(folder: Path, dtype: torch.dtype) -> Any:
    """The model of such a folder, without its processor.

    Raises:
        UnsupportedCheckpointError: the weights are not of the configuration beside them.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    state = read_state(folder / SMALL)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    whole = {}
    for name, value in state.items():
        if not name.endswith(SCALE):
            scale = state.get(name + SCALE)
            whole[name] = value if scale is None else value * scale.reshape(-1, *[1] * (value.ndim - 1))
    lacking = model.load_state_dict(whole, strict=False)
    missing = [name for name in lacking.missing_keys if name in dict(model.named_parameters(remove_duplicate=True))]
    if missing or lacking.unexpected_keys:
        raise UnsupportedCheckpointError(
            f"{folder / SMALL}: is not of the model in config.json ({[*missing, *lacking.unexpected_keys][:3]})"
        )
    model.tie_weights()
    return model.to(dtype)
