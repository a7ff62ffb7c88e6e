"""Planners that need no training."""

from __future__ import annotations

from policies.planners.fixed import FixedPlan, NothingPlanner, search_fixed_plan
from policies.planners.greedy import GreedyPlanner
from policies.planners.random import RandomPlanner

__all__ = ["FixedPlan", "GreedyPlanner", "NothingPlanner", "RandomPlanner", "search_fixed_plan"]
