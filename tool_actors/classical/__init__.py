"""The classical toolbox: tools from OpenCV and scikit-image that need no weights, one file per task.

Every function takes and returns one float32 image (H, W, 3), RGB in [0, 1]; :class:`ClassicalTool` makes a tool of it.
Costs are for one 64 x 64 image on one core of a small server.
"""

from __future__ import annotations

from tool_actors.classical.base import ClassicalTool
from tool_actors.toolbox import Tool

__all__ = ["ClassicalTool", "classical_tools"]


def classical_tools() -> list[Tool]:
    """All classical tools, in the order of the tasks."""
    from tool_actors.classical import brighten, defocus_deblur, dehaze, dejpeg, denoise, derain, motion_deblur, super_resolve

    rooms = (denoise, motion_deblur, defocus_deblur, derain, dehaze, dejpeg, brighten, super_resolve)
    return [tool for room in rooms for tool in room.tools()]
