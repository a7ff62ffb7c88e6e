"""A small autoregressive planner without language: an image's features to a set of degradations and a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.simplecall.encoded import EncodedNetwork
from policies.simplecall.network import FORBIDDEN, TRUST
from tool_actors.tasks import DEGRADATIONS

AGAIN = -6.0
"""What a further tool for a task that the plan has done loses at the start, in logits: gains are foreseen for the first tool alone."""
ENLARGING = "super_resolve"


@dataclass(frozen=True)
class Written:
    """Plans in the index form of :mod:`ir_env.plan_answer`, T = 8 + max_plan."""

    tokens: Tensor
    """int64 (B, T)"""
    logp: Tensor
    """float32 (B, T)"""
    mask: Tensor
    """float32 (B, T), 1 where a token was chosen: not behind the first stop."""


class PlanNetwork(EncodedNetwork):
    """Which degradations there are, one by one, then a tool after another until stop, each knowing those before it.

    It sees the degraded image alone. Where its encoder tells degradations and foresees gains, these are the logits it begins with: of the
    degradations as they are, of the tools as in :class:`policies.simplecall.network.SimpleCallNetwork`, and less for a task that the plan
    has done; all scaled by factors that are learned on. A second enlargement is never written.

    Args:
        actions: number of actions, stop included.
        max_plan: the most tools of a plan.
        encoder, encoder_options, train_encoder: see :class:`EncodedNetwork`.
        hidden: width of trunk and decoder.
        tasks, tools: of the actions but stop.
    """

    EMBEDDING = 32

    def __init__(
        self,
        actions: int,
        max_plan: int,
        encoder: str = "cnn",
        encoder_options: Mapping | None = None,
        train_encoder: bool = False,
        hidden: int = 256,
        tasks: Sequence[str] = (),
        tools: Sequence[str] = (),
    ):
        super().__init__(actions, encoder, encoder_options, train_encoder, tools)
        self.max_plan, self.stop = max_plan, actions - 1
        self.trunk = nn.Sequential(nn.Linear(self.encoder.features + actions, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.degradation = nn.Linear(hidden, len(DEGRADATIONS))
        # what stands before the first tool has an embedding of its own
        self.embedding = nn.Embedding(actions + 1, self.EMBEDDING)
        self.decoder = nn.GRUCell(self.EMBEDDING + len(DEGRADATIONS), hidden)
        self.actor = nn.Linear(hidden, actions)
        self.trust, self.again = nn.Parameter(torch.tensor(TRUST)), nn.Parameter(torch.tensor(AGAIN))
        same = [[float(first == second) for second in tasks] for first in tasks]
        self.register_buffer("same_task", F.pad(torch.tensor(same).reshape(len(tasks), len(tasks)), (0, 1, 0, 1)), persistent=False)
        enlarging = [float(task == ENLARGING) for task in tasks]
        self.register_buffer("enlarges", F.pad(torch.tensor(enlarging), (0, 1)), persistent=False)
        for layer in (self.degradation, self.actor):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        self.train()

    def write(self, observation: Mapping[str, Tensor], temperature: float = 1.0) -> Written:
        """Draw a plan for each observation of ``ir_env/RestorationPlan-v0``, or (temperature 0) take the most probable tokens."""

        def choose(logits: Tensor) -> Tensor:
            return logits.argmax(1) if temperature == 0 else torch.distributions.Categorical(logits=logits / temperature).sample()

        tokens, logp, _, mask = self._run(observation, lambda step, logits: choose(logits), temperature or 1.0)
        return Written(tokens, logp, mask)

    def score(self, observation: Mapping[str, Tensor], tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities of tokens (B, T), and the entropies of the distributions that they were drawn from, both (B, T)."""
        _, logp, entropy, _ = self._run(observation, lambda step, logits: tokens[:, step], temperature)
        return logp, entropy

    def _run(self, observation, choose, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        encoded = observation["encoded"] if "encoded" in observation else self.encode(observation)
        allowed = observation["action_mask"].float()
        trunk = self.trunk(torch.cat([encoded, allowed], dim=1))
        columns: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

        def take(logits: Tensor, live: Tensor) -> Tensor:
            logits = logits / temperature
            token = choose(len(columns), logits)
            each = F.log_softmax(logits, dim=1)
            entropy = -(each.exp() * each).sum(1)
            columns.append((token, each.gather(1, token[:, None])[:, 0] * live, entropy * live, live))
            return token

        live = torch.ones(len(encoded), device=encoded.device)
        present = self._told(encoded) + self.degradation(trunk)
        # temperature belongs to the choice; two logits make a token of each degradation
        there = torch.stack([take(F.pad(present[:, index : index + 1], (1, 0)), live) for index in range(len(DEGRADATIONS))], dim=1)
        hidden, last = trunk, torch.full((len(encoded),), self.actions, device=encoded.device)
        done = torch.zeros_like(allowed)
        foreseen = (encoded @ self.foreseen) * allowed
        for _ in range(self.max_plan):
            hidden = self.decoder(torch.cat([self.embedding(last), there.float()], dim=1), hidden)
            logits = self.actor(hidden) + self.trust * foreseen + self.again * (done @ self.same_task)
            enlarged = (done * self.enlarges).sum(1, keepdim=True) > 0
            logits = logits.masked_fill((allowed == 0) | (enlarged & (self.enlarges > 0)), FORBIDDEN)
            token = take(logits, live)
            token = torch.where(live > 0, token, self.stop)
            columns[-1] = (token, *columns[-1][1:])
            live = live * (token != self.stop)
            done = done + F.one_hot(token, self.actions)
            last = token
        tokens, logp, entropy, mask = (torch.stack(parts, dim=1) for parts in zip(*columns, strict=True))
        return tokens, logp, entropy, mask

    def _told(self, encoded: Tensor) -> Tensor:
        """The encoder's logits of the degradations; 0 where it tells none."""
        if not hasattr(self.encoder, "told"):
            return torch.zeros(len(encoded), len(DEGRADATIONS), device=encoded.device)
        return self.encoder.told(encoded)[0]
