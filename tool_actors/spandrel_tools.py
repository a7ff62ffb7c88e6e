"""Any checkpoint that spandrel recognises, as a tool; X-Restormer and MAXIM, which spandrel does not know, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tool_actors.devices import Precision
from tool_actors.learned import OVERLAP, TILE, LearnedTool
from tool_actors.weight_files import UnsupportedCheckpointError, read_state

__all__ = ["recognise"]

UNTILED = 4096
"""For networks that use the image as a whole, for which tiles are a last resort."""


def recognise(path: Path, name: str, task: str, note: str = "") -> LearnedTool:
    """A tool from a weight file; architecture, scale and size requirements are read from the names and shapes of its tensors.

    Networks for which spandrel discourages tiles get larger ones; on a GPU the arithmetic is in half precision where the network allows it.

    Args:
        path: safetensors; a torch file, opened with ``weights_only=True``; or an npm package's archive with a MAXIM.
        name: `family.variant`.
        task: what it undoes.
        note: licence and the like, for the description.

    Raises:
        UnsupportedCheckpointError: broken, of no known architecture, or not from RGB to RGB (or grey to grey).
    """
    from spandrel import canonicalize_state_dict

    from tool_actors.published import maxim, maxim_weights, xrestormer

    # without the prefixes that training leaves, for all architectures
    state = maxim_weights.read_package(path) if maxim_weights.is_archive(path) else canonicalize_state_dict(read_state(path))
    network: nn.Module
    facts: dict[str, Any]
    if xrestormer.is_xrestormer(state):
        network = _load(path, lambda: xrestormer.from_state(state, scale=4 if task == "super_resolve" else 1))
        facts = {"scale": network.scale, "tile": TILE}
        architecture = "X-Restormer"
    elif maxim.is_maxim(state):
        network = _load(path, lambda: maxim.from_state(state))
        facts = {"multiple": maxim.MULTIPLE, "tile": TILE}
        architecture = "MAXIM"
    else:
        found = _load(path, lambda: _describe(state))
        network = _Recognised(path, found)
        requirements = found.size_requirements
        facts = {
            "scale": found.scale,
            "multiple": requirements.multiple_of,
            "minimum": max(requirements.minimum, 1),
            "tile": _tile(found.tiling.name, requirements.multiple_of),
            "precision": _precision(found),
        }
        architecture = found.architecture.name
    parameters = sum(value.numel() for value in network.parameters())
    summary = f"{architecture}, {parameters:,} parameters"
    return LearnedTool(
        name, task, network, **facts, code=architecture, summary=summary, description=f"{summary}\n\nFrom {path.name}. {note}".strip()
    )


class _Recognised(nn.Module):
    """A model as its descriptor calls it, without the descriptor's inference mode, which would cut the gradient."""

    def __init__(self, path: Path, descriptor):
        super().__init__()
        channels = (descriptor.input_channels, descriptor.output_channels)
        if channels not in ((3, 3), (1, 1)):
            raise UnsupportedCheckpointError(
                f"{path}: maps {channels[0]} channels to {channels[1]}; a tool maps RGB to RGB, or grey to grey"
            )
        self.model, self.call, self.grey = descriptor.model, descriptor._call_fn, channels == (1, 1)
        self.square = descriptor.size_requirements.square

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.square and height != width:
            side = max(height, width)
            images = nn.functional.pad(images, (0, side - width, 0, side - height), mode="replicate")
        if self.grey:
            restored = self.call(self.model, images.flatten(0, 1)[:, None])
            restored = restored.reshape(len(images), 3, *restored.shape[2:])
        else:
            restored = self.call(self.model, images)
        scale = restored.shape[-1] // images.shape[-1]
        return restored[..., : height * scale, : width * scale]


def _describe(state: dict[str, Tensor]):
    """spandrel's descriptor of a state dict; raises ValueError that says what to do about one that it does not know."""
    from spandrel import MAIN_REGISTRY, ArchRegistry, ImageModelDescriptor, UnsupportedModelError

    registry = ArchRegistry()
    registry.add(*MAIN_REGISTRY)
    try:
        from spandrel_extra_arches import EXTRA_REGISTRY
    except ModuleNotFoundError:
        hint = "More are known (Restormer, MPRNet, MIRNet2, ...) with the extra `extra-arches`: uv sync --extra extra-arches"
    else:
        registry.add(*EXTRA_REGISTRY)
        hint = "Convert it, or write a Tool of your own."
    try:
        found = registry.load(state)
    except UnsupportedModelError:
        raise ValueError(f"no architecture that spandrel knows has these tensors. {hint}") from None
    if not isinstance(found, ImageModelDescriptor):
        raise ValueError("it needs a mask; tools take an image alone")
    return found


def _load(path: Path, make: Callable):
    try:
        return make()
    except Exception as error:
        details = " ".join(str(error).split())[:400]
        raise UnsupportedCheckpointError(f"{path}: cannot be loaded ({type(error).__name__}): {details}") from error


def _tile(tiling: str, multiple: int) -> int | None:
    if tiling == "INTERNAL":
        return None
    return UNTILED if tiling == "DISCOURAGED" else max(TILE, OVERLAP + multiple)


def _precision(descriptor) -> Precision:
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if descriptor.supports_bfloat16 else "fp16" if descriptor.supports_half else "fp32"
