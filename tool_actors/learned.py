"""A network as a tool."""

from __future__ import annotations

import copy
import hashlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F

from tool_actors.devices import Precision
from tool_actors.errors import IrEnvError
from tool_actors.tiling import tiled
from tool_actors.toolbox import Deferred, Tool, ToolSpec, fingerprint
from tool_actors.weight_files import find_weights, load_into

__all__ = ["OVERLAP", "TILE", "LearnedTool", "published", "weights_hash"]

TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
TILE, OVERLAP = 1024, 96


class LearnedTool(Tool):
    """A network from (B, 3, H, W) to (B, 3, sH, sW); gradients flow through it.

    Args:
        name: `family.variant`.
        task: what it undoes.
        module: the network, with its weights; it follows the images to their device.
        scale: output side over input side.
        multiple: the network needs sides that are multiples of this; the image is padded by reflection and cut again.
        minimum: the least side that the network takes.
        tile: images with a longer side are cut into overlapping tiles of this side, see :mod:`tool_actors.tiling`; None for networks that
            must see the whole image.
        overlap: pixels that neighbouring tiles share.
        precision: of the arithmetic, by autocast.
        code: what else decides the output, for the fingerprint; by default the source of the module's class.
        description: source and cost.
    """

    def __init__(
        self,
        name: str,
        task: str,
        module: torch.nn.Module,
        *,
        scale: int = 1,
        multiple: int = 1,
        minimum: int = 1,
        tile: int | None = TILE,
        overlap: int = OVERLAP,
        precision: Precision = "fp32",
        code: str = "",
        description: str = "",
        summary: str = "",
    ):
        if tile is not None and tile < overlap + multiple:
            raise IrEnvError(f"tool {name!r}: tiles of {tile} pixels are too small for an overlap of {overlap}")
        self.module, self.multiple, self.minimum = module.eval(), multiple, minimum
        self.overlap, self.precision = overlap, precision
        self.card: dict | None = None
        """Of one of the project's own networks what its JSON card says."""
        self._device: torch.device | None = None
        code = code or type(module).__name__ + inspect.getsource(sys.modules[type(module).__module__])
        parameters = sum(value.numel() for value in module.parameters())
        self.spec = ToolSpec(
            name=name,
            task=task,
            scale=scale,
            fingerprint=fingerprint(code, weights_hash(module), multiple, minimum, tile, overlap, precision),
            differentiable=True,
            tile=tile,
            description=description or inspect.cleandoc(type(module).__doc__ or ""),
            summary=summary or f"{type(module).__name__}, {parameters:,} parameters",
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        scale, tile = self.spec.scale, self.spec.tile
        padded = self._pad(images)
        if images.device != self._device:
            self._device = images.device
            self.module.to(self._device)
        output = self._run(padded) if tile is None else tiled(self._run, padded, tile, self.overlap, scale, self.multiple)
        return output[..., : height * scale, : width * scale]

    def with_tile(self, tile: int) -> LearnedTool:
        """The same tool, with the same weights in memory, that takes at most ``tile`` pixels at once: slower, and with less memory."""
        smaller = copy.copy(self)
        smaller.overlap = min(self.overlap, tile // 4)
        smaller.spec = replace(self.spec, tile=tile)
        return smaller

    def with_precision(self, precision: Precision) -> LearnedTool:
        """The same tool, with the same weights in memory, whose arithmetic is in another precision."""
        other = copy.copy(self)
        other.precision = precision
        other.spec = replace(self.spec, fingerprint=fingerprint(self.spec.fingerprint, precision))
        return other

    def _run(self, images: torch.Tensor) -> torch.Tensor:
        if self.precision == "fp32":
            return self.module(images)
        with torch.autocast(images.device.type, TYPES[self.precision]):
            return self.module(images).float()

    def _pad(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        down, right = (max(self.minimum - side, 0) for side in (height, width))
        down, right = down + -(height + down) % self.multiple, right + -(width + right) % self.multiple
        if not down and not right:
            return images
        # reflection cannot reach farther than the image
        mode = "reflect" if down < height and right < width else "replicate"
        return F.pad(images, (0, right, 0, down), mode=mode)


def published(name: str, task: str, network: Callable[[], torch.nn.Module], file: str, **settings) -> Deferred:
    """A published network whose weights are found, not shipped: a :class:`LearnedTool` once they are loaded.

    Args:
        name, task: as of the tool.
        network: makes the network.
        file: its weights, below a folder of weights.
        settings: of the :class:`LearnedTool`.
    """
    return Deferred(name, task, lambda: LearnedTool(name, task, load_into(network(), find_weights(file)), **settings), file)


def weights_hash(module: torch.nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
