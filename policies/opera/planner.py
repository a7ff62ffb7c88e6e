"""A plan network as a planner: it looks once, at the degraded image, and follows its plan."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.observation import observe_state
from ir_env.planner import Observation, Planner
from ir_env.view import View
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS

if TYPE_CHECKING:
    from policies.opera.network import PlanNetwork

REMEMBERED = 4096
"""Plans of so many images are kept, so that one that is followed is made once."""


class PlanPlanner(Planner):
    """The most probable plan.

    Args:
        network: makes it.
        view: what it sees.
        name: for tables.
        env_config: the arguments of the environment that it was trained in.
    """

    plans_whole = True

    def __init__(self, network: PlanNetwork, view: View, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        self.network, self.view, self.name = network, view, name
        self.env_config = dict(env_config or {})
        self.toolbox = self.env_config.get("toolbox")
        self._plans: OrderedDict[bytes, tuple[int, ...]] = OrderedDict()
        self._degradations: dict[bytes, tuple[str, ...]] = {}

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        plans = self.answers(observations)
        return [
            plan[len(each.history)] if len(each.history) < len(plan) else each.actions.stop
            for each, (plan, _) in zip(observations, plans, strict=True)
        ]

    def answers(self, observations: Sequence[Observation]) -> list[tuple[tuple[int, ...], tuple[str, ...]]]:
        """Per observation the plan for the image that it began with, indices of actions, and the degradations that are seen in it."""
        if len(observations[0].action_mask) != self.network.actions:
            raise IrEnvError(
                f"{self.name} knows {self.network.actions} actions, the toolbox gives {len(observations[0].action_mask)}: "
                "use the toolbox that it was trained with"
            )
        keys = [_digest(each.trajectory[0]) for each in observations]
        new = [index for index, key in enumerate(keys) if key not in self._plans and key not in keys[:index]]
        if new:
            self._write([observations[index] for index in new], [keys[index] for index in new])
        told = [(self._plans[key], self._degradations[key]) for key in keys]
        while len(self._plans) > REMEMBERED:
            key, _ = self._plans.popitem(last=False)
            del self._degradations[key]
        return told

    def _write(self, observations: Sequence[Observation], keys: Sequence[bytes]) -> None:
        import torch

        longest = self.network.max_plan
        seen = []
        for each in observations:
            first = each.trajectory[0]
            seen.append(observe_state([first], (), each.actions.mask(first.shape[:2], ()), self.view, longest))
        batch = {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}
        with torch.no_grad():
            tokens = self.network.write(batch, temperature=0.0).tokens.tolist()
        for key, row in zip(keys, tokens, strict=True):
            present, plan = row[: len(DEGRADATIONS)], row[len(DEGRADATIONS) :]
            self._plans[key] = tuple(plan[: plan.index(self.network.stop)] if self.network.stop in plan else plan)
            self._degradations[key] = tuple(name for name, there in zip(DEGRADATIONS, present, strict=True) if there)


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=str(image.shape).encode()).digest()
