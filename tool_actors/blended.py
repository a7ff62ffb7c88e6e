"""A tool at a part of its strength."""

from __future__ import annotations

from dataclasses import replace

import torch

from tool_actors.errors import IrEnvError
from tool_actors.toolbox import Tool, fingerprint

__all__ = ["Blended"]


class Blended(Tool):
    """What a tool makes of an image, mixed with the image: all of it at strength 1, nothing of it at 0.

    The one measure of strength that tools of every kind have, classical and learned ones.

    Args:
        tool: of scale 1, since an enlarged image has no counterpart to mix with.
        strength: 0 to 1.
    """

    def __init__(self, tool: Tool, strength: float):
        if not 0 <= strength <= 1:
            raise IrEnvError(f"strength must be 0 to 1, not {strength:g}")
        if tool.spec.scale != 1:
            raise IrEnvError(f"tool {tool.spec.name!r} enlarges: it has no strength")
        self.tool, self.strength = tool, strength
        self.spec = replace(tool.spec, fingerprint=fingerprint(tool.spec.fingerprint, "blended", strength))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return torch.lerp(images, self.tool(images), self.strength)

    def with_tile(self, tile: int) -> Blended:
        """The same, of the tool in smaller tiles; of a tool that takes none, the same."""
        return Blended(self.tool.with_tile(tile), self.strength) if hasattr(self.tool, "with_tile") else self
