"""The vocabulary: which degradations there are and which task undoes each (DESIGN: one task per degradation)."""

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
"""Degradation -> the restoration task that undoes it."""

DEGRADATIONS: tuple[str, ...] = tuple(TASK_OF)
TASKS: tuple[str, ...] = tuple(TASK_OF.values())
