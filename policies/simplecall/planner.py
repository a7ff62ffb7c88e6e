"""A SimpleCall-style policy as a planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ir_env.observation import observe_state
from ir_env.planner import Observation, Planner
from ir_env.view import View
from tool_actors.errors import IrEnvError


class ModulePlanner(Planner):
    """A SimpleCall-style RLModule as a planner: the most probable action.

    It sees images of any size as in training: the view is that of its observation space.

    Args:
        module: an RLModule for ``ir_env/Restoration-v0``.
        name: for tables.
        env_config: the ``env_config`` it was trained with.
    """

    def __init__(self, module, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        self.module, self.name, self.env_config = module, name, dict(env_config or {})
        self.toolbox = self.env_config.get("toolbox")
        self.view = View.of_space(module.observation_space)
        self.max_steps = module.observation_space["history"].shape[0]

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        import torch
        from ray.rllib.core.columns import Columns

        if len(observations[0].action_mask) != self.module.action_space.n:
            raise IrEnvError(
                f"{self.name} knows {self.module.action_space.n} actions, the toolbox gives {len(observations[0].action_mask)}: "
                "use the toolbox that it was trained with"
            )
        seen = [observe_state(each.trajectory, each.history, each.action_mask, self.view, self.max_steps) for each in observations]
        batch = {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}
        logits = self.module.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]
        return logits.argmax(1).tolist()
