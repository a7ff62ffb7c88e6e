"""The vocabulary: which degradations there are and which task undoes each (one task per degradation)."""

from __future__ import annotations

__all__ = ["ALL_IN_ONE", "DEGRADATIONS", "TASKS", "TASK_OF", "is_task"]

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
ALL_IN_ONE = "all_in_one"
"""The task of a network that undoes whatever is there: a plan of its own, and no part of an agenda of tasks."""


def is_task(name: str) -> bool:
    """Whether a tool may have this task."""
    return name == ALL_IN_ONE or name in TASK_OF.values()
