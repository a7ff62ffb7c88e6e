"""One-step look-ahead on the true metric: an oracle, and an upper mark for policies that see the image alone."""

from __future__ import annotations

import numpy as np

from ir_env.planner import Observation, Planner
from tool_actors.errors import IrEnvError


class GreedyPlanner(Planner):
    """Tries every allowed tool, keeps the one with the largest gain on the true metric, and stops when none gains.

    Costs as many tool calls per step as there are tools.
    """

    name = "greedy"
    needs_reference = True

    def plan(self, observation: Observation) -> int:
        if observation.oracle is None:
            raise IrEnvError("the greedy planner compares with the clean image, and there is none; choose another policy")
        tools = [int(index) for index in np.flatnonzero(observation.action_mask) if index != observation.actions.stop]
        if not tools:
            return observation.actions.stop
        gains = np.nan_to_num(observation.oracle(tools), nan=-np.inf)
        best = int(np.argmax(gains))
        return tools[best] if gains[best] > 0 else observation.actions.stop
