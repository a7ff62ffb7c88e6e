"""A SimpleCall-style policy as a planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ir_env.observation import view
from ir_env.planner import Observation, Planner
from tool_actors.errors import IrEnvError

VOTES = (0.5, 0.0, 1.0)
"""Where along each side of a large image the policy looks; it looks at every pair of these."""


class ModulePlanner(Planner):
    """A SimpleCall-style RLModule as a planner: the most probable action.

    It sees squares of native pixels of the size it was trained on. On a larger image it looks at nine squares (centre, edges and
    corners) and averages the probabilities, as RL-Restore votes over patches.

    Args:
        module: an RLModule for ``ir_env/Restoration-v0``.
        name: for tables.
        env_config: the ``env_config`` it was trained with.
    """

    def __init__(self, module, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        self.module, self.name, self.env_config = module, name, dict(env_config or {})
        self.toolbox = self.env_config.get("toolbox")
        self.size = module.observation_space["image"].shape[0]
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
        views, owners = [], []
        for owner, observation in enumerate(observations):
            large = min(observation.image.shape[:2]) > self.size
            for centre in [(y, x) for y in VOTES for x in VOTES] if large else [(0.5, 0.5)]:
                views.append(view(observation.image, self.size, centre))
                owners.append(owner)
        histories = np.zeros((len(observations), self.max_steps), np.int64)
        for row, observation in zip(histories, observations, strict=True):
            row[: len(observation.history)] = np.asarray(observation.history[: self.max_steps], np.int64) + 1
        steps = np.array([[len(observation.history)] for observation in observations], np.float32)
        masks = np.stack([observation.action_mask for observation in observations])
        batch = {
            "image": torch.from_numpy(np.stack(views)),
            "history": torch.from_numpy(histories[owners]),
            "step": torch.from_numpy(steps[owners]),
            "action_mask": torch.from_numpy(masks[owners]),
        }
        logits = self.module.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]
        probabilities = torch.zeros(len(observations), logits.shape[1])
        probabilities.index_add_(0, torch.tensor(owners), logits.softmax(1).cpu())
        return probabilities.argmax(1).tolist()
