"""Planners that need no training."""

from __future__ import annotations

from ir_env.evaluation import Contender
from ir_env.planner import NothingPlanner
from policies.planners.fixed import FixedPlan, search_fixed_plan
from policies.planners.greedy import GreedyPlanner
from policies.planners.random import RandomPlanner

__all__ = ["FixedPlan", "GreedyPlanner", "NothingPlanner", "RandomPlanner", "baselines", "search_fixed_plan"]


def baselines(seed: int = 0) -> dict[str, Contender]:
    """What a policy is measured against, for :func:`ir_env.evaluation.compare`: the best fixed plan is searched on the very images."""
    return {
        "nothing": NothingPlanner(),
        "random": RandomPlanner(seed),
        "best fixed plan": search_fixed_plan,
        "greedy (oracle)": GreedyPlanner(),
    }
