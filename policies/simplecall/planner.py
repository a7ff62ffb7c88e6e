"""SimpleCall-style policies as planners."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.observation import observe_state
from ir_env.planner import Observation, Planner
from ir_env.view import View
from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    from torch import Tensor

    from policies.simplecall.network import SimpleCallNetwork


class ObservationPlanner(Planner):
    """A policy on the environment's observations as a planner: the most probable action.

    It sees images of any size as in training.

    Args:
        view: what it sees.
        max_steps: length of its history.
        actions: number of actions that it knows, stop included.
        name: for tables.
        env_config: the arguments of the environment that it was trained in.
    """

    def __init__(self, view: View, max_steps: int, actions: int, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        self.view, self.max_steps, self.known_actions = view, max_steps, actions
        self.name, self.env_config = name, dict(env_config or {})
        self.toolbox = self.env_config.get("toolbox")
        self.thrift = 0.0
        """Added to the logit of stop: a tool is taken only where the policy prefers it by so much. Rewards without a price leave tools that
        gain next to nothing undecided."""
        self.repeats: int | None = None
        """How often a tool may be taken, None without a bound: on photographs unlike those that it learned from a policy may not see that a
        tool it takes has done nothing, and take it until the end."""

    @abstractmethod
    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Of the actions, (B, n), for a batch of observations."""

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        return self._logits_of(observations).argmax(1).tolist()

    def probabilities(self, observation: Observation) -> np.ndarray:
        return self._logits_of([observation])[0].softmax(0).numpy()

    def _logits_of(self, observations: Sequence[Observation]) -> Tensor:
        import torch

        if len(observations[0].action_mask) != self.known_actions:
            raise IrEnvError(
                f"{self.name} knows {self.known_actions} actions, the toolbox gives {len(observations[0].action_mask)}: "
                "use the toolbox that it was trained with"
            )
        seen = [observe_state(each.trajectory, each.history, each.action_mask, self.view, self.max_steps) for each in observations]
        batch = {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}
        with torch.no_grad():
            logits = self.logits(batch).clone()
        # stop is the last action
        logits[:, -1] += self.thrift
        if self.repeats is not None:
            for row, each in zip(logits, observations, strict=True):
                row[[action for action, count in Counter(each.history).items() if count >= self.repeats]] = -torch.inf
        return logits


class ModulePlanner(ObservationPlanner):
    """An RLModule for ``ir_env/Restoration-v0`` as a planner."""

    def __init__(self, module, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        space = module.observation_space
        super().__init__(View.of_space(space), space["history"].shape[0], int(module.action_space.n), name, env_config)
        self.module = module

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        from ray.rllib.core.columns import Columns

        return self.module.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]


class NetworkPlanner(ObservationPlanner):
    """A :class:`SimpleCallNetwork` as a planner, without RLlib."""

    def __init__(self, network: SimpleCallNetwork, view: View, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        super().__init__(view, network.max_steps, network.actions, name, env_config)
        self.network = network
        self.file: Path | None = None
        """Where its weights were read, with the card beside them."""

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network.logits(self.network.features(batch), batch["action_mask"])
