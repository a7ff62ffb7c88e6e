"""What policies on observations share: an encoder, frozen by default, whose features are computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from policies.simplecall.encoders import make_encoder
from tool_actors.cache import ByteLRU

PICTURES = ("overview", "glimpses", "size")
ENCODED_BYTES, OVERHEAD = 64 << 20, 256
"""Features that are remembered, and what one image takes beside them."""


class EncodedNetwork(nn.Module):
    """A policy's network that looks through an encoder.

    Args:
        actions: number of actions, stop included.
        encoder, encoder_options: see :func:`policies.simplecall.encoders.make_encoder`.
        train_encoder: let the encoder go on learning with the policy; frozen, as in SimpleCall, it learned faster and better here.
        tools: names of the tools behind the actions, for :attr:`foreseen`.
    """

    def __init__(self, actions: int, encoder: str, encoder_options: Mapping | None, train_encoder: bool, tools: Sequence[str]):
        super().__init__()
        self.actions, self.train_encoder = actions, train_encoder
        self.encoder = make_encoder(encoder, encoder_options).requires_grad_(train_encoder)
        self.register_buffer("foreseen", self._foreseen(tools), persistent=False)
        self._encoded, self._weights_sum = ByteLRU(ENCODED_BYTES), 0.0
        self.register_load_state_dict_post_hook(lambda module, keys: module._forget())

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

    def train(self, mode: bool = True) -> Self:
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


def _digest(pictures: Sequence[Tensor]) -> bytes:
    told = hashlib.blake2b(digest_size=16)
    for picture in pictures:
        told.update(picture.contiguous().numpy().data)
    return told.digest()
