"""Policies that write whole plans as planners: they look once, at the degraded image, and follow their plan."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.observation import observe_state
from ir_env.plan_answer import PlanAnswer, read_plan
from ir_env.planner import Observation, Planner
from ir_env.view import View
from policies.memory import ImageMemory, digest
from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    from policies.opera.network import PlanNetwork


class WholePlanner(Planner):
    """Follows the plan that :meth:`write` makes for the image that an episode began with; a malformed answer stops at once."""

    plans_whole = True

    def __init__(self):
        self._answers: ImageMemory[PlanAnswer] = ImageMemory()

    @abstractmethod
    def write(self, observations: Sequence[Observation]) -> list[PlanAnswer]:
        """Answers to the images that episodes began with, ``observation.trajectory[0]``."""

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        plans = [answer.plan for answer in self.answers(observations)]
        return [
            plan[len(each.history)] if len(each.history) < len(plan) else each.actions.stop
            for each, plan in zip(observations, plans, strict=True)
        ]

    def answers(self, observations: Sequence[Observation]) -> list[PlanAnswer]:
        """What it answered to each image, asked once."""
        keys = [digest(each.trajectory[0]) for each in observations]
        new = [index for index, key in enumerate(keys) if key not in self._answers and key not in keys[:index]]
        written = self.write([observations[index] for index in new]) if new else []
        made = dict(zip([keys[index] for index in new], written, strict=True))
        told = [made[key] if key in made else self._answers[key] for key in keys]
        for key, answer in made.items():
            self._answers[key] = answer
        return told


class PlanPlanner(WholePlanner):
    """The most probable plan of a network.

    Args:
        network: makes it.
        view: what it sees.
        name: for tables.
        env_config: the arguments of the environment that it was trained in.
    """

    def __init__(self, network: PlanNetwork, view: View, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        super().__init__()
        self.network, self.view, self.name = network, view, name
        self.env_config = dict(env_config or {})
        self.toolbox = self.env_config.get("toolbox")

    def write(self, observations: Sequence[Observation]) -> list[PlanAnswer]:
        import torch

        network, actions = self.network, observations[0].actions
        if actions.n != network.actions:
            raise IrEnvError(
                f"{self.name} knows {network.actions} actions, the toolbox gives {actions.n}: use the toolbox that it was trained with"
            )
        seen = []
        for each in observations:
            first = each.trajectory[0]
            seen.append(observe_state([first], (), actions.mask(first.shape[:2], ()), self.view, network.max_plan))
        batch = {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}
        with torch.no_grad():
            tokens = network.write(batch, temperature=0.0).tokens.numpy()
        return [read_plan(row, actions, network.max_plan) for row in tokens]
