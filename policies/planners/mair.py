"""MAIR's order (IJCV 134(5):205): restoration in the reverse of imaging."""

from __future__ import annotations

from collections.abc import Mapping

from policies.planners.perception import Perceive
from policies.planners.traversal import JUDGES, THRESHOLD, TraversalPlanner

STAGES = (("dejpeg",), ("super_resolve", "denoise", "motion_deblur", "defocus_deblur"), ("brighten", "derain", "dehaze"))
"""Compression, then imaging, then the scene. That low resolution is of the imaging and low light of the scene is an assumption: the paper
names the stages, and no code of it is public."""


class MAIRPlanner(TraversalPlanner):
    """Takes the tasks of what it perceives in the order of :data:`STAGES`; within a stage as they stand there.

    Each expert tries the tools of its task and keeps the best by no-reference metrics, as in :class:`TraversalPlanner`, whose arguments
    these are.
    """

    name = "mair"
    schedule = tuple(task for stage in STAGES for task in stage)

    def __init__(self, perceive: Perceive | None = None, threshold: float = THRESHOLD, judges: Mapping[str, float] | None = JUDGES):
        super().__init__(perceive, threshold, judges)
