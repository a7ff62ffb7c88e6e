"""A network as a tool."""

from __future__ import annotations

import hashlib
import inspect

import torch
import torch.nn.functional as F

from tool_actors.toolbox import Tool, ToolSpec, fingerprint


class LearnedTool(Tool):
    """A network from (B, 3, H, W) to (B, 3, sH, sW); gradients flow through it.

    Args:
        name: `family.variant`.
        task: what it undoes.
        module: the network, with its weights.
        scale: output side over input side.
        multiple: the network needs sides that are multiples of this; the image is padded by reflection and cut again.
        description: source and cost.
    """

    def __init__(self, name: str, task: str, module: torch.nn.Module, *, scale: int = 1, multiple: int = 1, description: str = ""):
        self.module, self.multiple = module.eval(), multiple
        code = type(module).__name__ + inspect.getsource(inspect.getmodule(type(module)))
        parameters = sum(value.numel() for value in module.parameters())
        self.spec = ToolSpec(
            name=name,
            task=task,
            scale=scale,
            fingerprint=fingerprint(code, weights_hash(module), multiple),
            differentiable=True,
            description=description or inspect.cleandoc(type(module).__doc__ or ""),
            summary=f"{type(module).__name__}, {parameters:,} parameters",
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        down, right = -height % self.multiple, -width % self.multiple
        if down or right:
            images = F.pad(images, (0, right, 0, down), mode="reflect" if min(height, width) > self.multiple else "replicate")
        scale = self.spec.scale
        return self.module(images)[..., : height * scale, : width * scale]


def weights_hash(module: torch.nn.Module) -> str:
    """A hash of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
