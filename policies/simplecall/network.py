"""The actor-critic network, free of RLlib."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from policies.simplecall.encoders import make_encoder
from tool_actors.cache import ByteLRU

FORBIDDEN = -1e9
"""The logit of a masked action: finite, so that a distribution over one allowed action stays defined."""
TRUST = 10.0
"""Logits per unit of foreseen gain at the start: 0.1 more gain makes a tool e times as likely."""
WORTH = 1.5
"""Value at the start, in units of the largest foreseen gain: other tools follow the first. A critic that begins with nothing spoils the
policy before it has learned."""


PICTURES = ("overview", "glimpses", "size")
ENCODED_BYTES, OVERHEAD = 64 << 20, 256
"""Features that are remembered, and what one image takes beside them."""


class SimpleCallNetwork(nn.Module):
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
        super().__init__()
        self.actions, self.max_steps = actions, max_steps
        self.train_encoder = train_encoder
        self.encoder = make_encoder(encoder, encoder_options).requires_grad_(train_encoder)
        layers, width = [], self.encoder.features + max_steps * (actions + 1) + 1 + actions
        for size in hidden:
            layers += [nn.Linear(width, size), nn.Tanh()]
            width = size
        self.trunk = nn.Sequential(*layers)
        self.trust, self.worth = nn.Parameter(torch.tensor(TRUST)), nn.Parameter(torch.tensor(WORTH))
        self.register_buffer("foreseen", self._foreseen(tools), persistent=False)
        self.actor, self.critic = nn.Linear(width, actions), nn.Linear(width, 1)
        nn.init.normal_(self.actor.weight, std=0.01)
        nn.init.zeros_(self.actor.bias)
        nn.init.zeros_(self.critic.bias)
        self._encoded, self._weights_sum = ByteLRU(ENCODED_BYTES), 0.0
        self.register_load_state_dict_post_hook(lambda module, keys: module._forget())
        self.train()

    def _forget(self) -> None:
        """What another encoder made is of no use; weights that arrive at a runner bring the same one every time."""
        total = float(sum(value.double().sum() for value in self.encoder.state_dict().values()))
        if total != self._weights_sum:
            self._encoded, self._weights_sum = ByteLRU(ENCODED_BYTES), total

    def _foreseen(self, tools: Sequence[str]) -> Tensor:
        """Which of the encoder's features is which action's gain: float32 (features, actions) of zeros and ones."""
        table, known = torch.zeros(self.encoder.features, self.actions), list(getattr(self.encoder, "tools", ()))
        for action, tool in enumerate(tools):
            if tool in known:
                table[self.encoder.features - len(known) + known.index(tool), action] = 1.0
        return table

    def train(self, mode: bool = True) -> SimpleCallNetwork:
        """The encoder works as in evaluation, whatever the mode: batch statistics and dropout would enter the importance ratio."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode(self, observation: Mapping[str, Tensor]) -> Tensor:
        """The pictures of observations to the encoder's features (B, F); without a gradient if the encoder is frozen.

        What a frozen encoder made of a picture is remembered: a training sees the same images again and again.
        """
        if self.train_encoder:
            return self.encoder(observation)
        pictures = {name: observation[name] for name in sorted(observation) if name in PICTURES}
        with torch.no_grad():
            if next(iter(pictures.values())).device.type != "cpu":
                return self.encoder(pictures)
            keys = [_digest(row) for row in zip(*pictures.values(), strict=True)]
            found = {key: self._encoded.get(key) for key in keys}
            missing = [keys.index(key) for key, features in found.items() if features is None]
            if missing:
                for index, features in zip(missing, self.encoder({name: each[missing] for name, each in pictures.items()}), strict=True):
                    found[keys[index]] = features
                    self._encoded.put(keys[index], features.clone(), features.nbytes + OVERHEAD)
            return torch.stack([found[key] for key in keys])

    def encode_once(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Observations in which ``encoded``, what :meth:`encode` makes of them, stands for the pictures, if the encoder is frozen."""
        if self.train_encoder or "encoded" in observation:
            return dict(observation)
        return {**{name: observation[name] for name in ("history", "step", "action_mask")}, "encoded": self.encode(observation)}

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


def _digest(pictures: Sequence[Tensor]) -> bytes:
    told = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        told.update(picture.contiguous().numpy().data)
    return told.digest()
