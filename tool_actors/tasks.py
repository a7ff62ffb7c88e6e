"""The vocabulary: which degradations there are and which task undoes each (one task per degradation)."""

from __future__ import annotations

__all__ = ["DEGRADATIONS", "TASKS", "TASK_OF"]

TASK_OF = {
    "noise": "denoise",
    "motion_blur": "motion_deblur",
    "defocus_blur": "defocus_deblur",
    "rain": "derain",
    "haze": "dehaze",
    "jpeg": "dejpeg",
    "low_light": "brighten",
    "low_resolution": "super_resolve",
}
"""Degradation -> the restoration task that undoes it: these, and those that are added."""

DEGRADATIONS: tuple[str, ...] = tuple(TASK_OF)
"""The eight of AgenticIR's recipe."""
TASKS: tuple[str, ...] = tuple(TASK_OF.values())
"""The eight tasks that undo them. :data:`TASK_OF` also holds what ``ir_env.degradations.add_degradation`` added."""
