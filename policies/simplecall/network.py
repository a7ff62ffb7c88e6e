"""The actor-critic network, free of RLlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.simplecall.encoded import EncodedNetwork

FORBIDDEN = -1e9
"""The logit of a masked action: finite, so that a distribution over one allowed action stays defined."""
TRUST = 10.0
"""Logits per unit of foreseen gain at the start: 0.1 more gain makes a tool e times as likely."""
WORTH = 1.5
"""Value at the start, in units of the largest foreseen gain: other tools follow the first. A critic that begins with nothing spoils the
policy before it has learned."""


class SimpleCallNetwork(EncodedNetwork):
    """Features of the image, the actions so far and the step -> logits of the actions and a value.

    Args:
        actions: number of actions, stop included.
        max_steps: length of the history.
        encoder, encoder_options: see :func:`policies.simplecall.encoders.make_encoder`.
        train_encoder: let the encoder go on learning with the policy; frozen, as in SimpleCall, it learned faster and better here.
        hidden: widths of the trunk's layers.
        tools: names of the tools behind the actions. Where the encoder foresees their gains, the logits start from these (0 for stop and
            for tools that it does not know), and the value from the largest of them, each scaled by a factor that is learned on.
    """

    def __init__(
        self,
        actions: int,
        max_steps: int,
        encoder: str = "cnn",
        encoder_options: Mapping | None = None,
        train_encoder: bool = False,
        hidden: Sequence[int] = (256, 256),
        tools: Sequence[str] = (),
    ):
        super().__init__(actions, encoder, encoder_options, train_encoder, tools)
        self.max_steps = max_steps
        layers, width = [], self.encoder.features + max_steps * (actions + 1) + 1 + actions
        for size in hidden:
            layers += [nn.Linear(width, size), nn.Tanh()]
            width = size
        self.trunk = nn.Sequential(*layers)
        self.trust, self.worth = nn.Parameter(torch.tensor(TRUST)), nn.Parameter(torch.tensor(WORTH))
        self.actor, self.critic = nn.Linear(width, actions), nn.Linear(width, 1)
        nn.init.normal_(self.actor.weight, std=0.01)
        nn.init.zeros_(self.actor.bias)
        nn.init.zeros_(self.critic.bias)
        self.train()

    def features(self, observation: Mapping[str, Tensor]) -> Tensor:
        """Observations of ``ir_env/Restoration-v0``, batched, or those of :meth:`encode_once`, to the trunk's output and the foreseen
        gains, 0 of actions that are forbidden: (B, width + actions)."""
        encoded = observation["encoded"] if "encoded" in observation else self.encode(observation)
        history = F.one_hot(observation["history"].long(), self.actions + 1).flatten(1).float()
        step = observation["step"].float().reshape(-1, 1) / self.max_steps
        mask = observation["action_mask"].float()
        return torch.cat([self.trunk(torch.cat([encoded, history, step, mask], dim=1)), (encoded @ self.foreseen) * mask], dim=1)

    def logits(self, features: Tensor, action_mask: Tensor) -> Tensor:
        """Logits (B, actions); masked actions get :data:`FORBIDDEN`."""
        trunk, foreseen = features.split([features.shape[1] - self.actions, self.actions], dim=1)
        return (self.actor(trunk) + self.trust * foreseen).masked_fill(action_mask == 0, FORBIDDEN)

    def value(self, features: Tensor) -> Tensor:
        """Values (B,)."""
        trunk, foreseen = features.split([features.shape[1] - self.actions, self.actions], dim=1)
        return self.critic(trunk).squeeze(-1) + self.worth * foreseen.amax(1).clamp(min=0.0)
