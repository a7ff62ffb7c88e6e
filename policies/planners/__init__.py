"""Planners that need no training, and the contract that learned policies share with them."""

from __future__ import annotations

from policies.planners.base import Observation, Planner, run
from policies.planners.fixed import FixedPlan, NothingPlanner, search_fixed_plan
from policies.planners.greedy import GreedyPlanner
from policies.planners.random import RandomPlanner

__all__ = [
    "FixedPlan",
    "GreedyPlanner",
    "NothingPlanner",
    "Observation",
    "Planner",
    "RandomPlanner",
    "run",
    "search_fixed_plan",
]
