"""Any allowed action, equally likely."""

from __future__ import annotations

import numpy as np

from ir_env.planner import Observation, Planner


class RandomPlanner(Planner):
    """Draws from the allowed actions, stop among them."""

    name = "random"

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._rng = np.random.default_rng(seed)

    def fresh(self) -> RandomPlanner:
        return RandomPlanner(self._seed)

    def plan(self, observation: Observation) -> int:
        return int(self._rng.choice(np.flatnonzero(observation.action_mask)))
