"""Advantages of groups of rollouts from several rewards: GRPO, GDPO and TIR-Agent's multi-dimensional adaptive reward (MAR).

Arrays are float64. B groups of G rollouts have K rewards, (B, G, K), each oriented so that higher is better; advantages are (B, G).

>>> estimator = AdvantageEstimator(AdvantageOptions(mode="gdpo"), ["psnr", "ssim_ycbcr"])
>>> estimator([[[20.0, 0.5], [22.0, 0.7]]]).advantages.round(3).tolist()
[[-0.707, 0.707]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tool_actors.errors import IrEnvError, UnknownNameError

MODES = ("grpo", "mar", "gdpo")
SCALES = ("group", "batch", "none")


@dataclass(frozen=True)
class AdvantageOptions:
    """How several rewards become one advantage.

    ``grpo`` adds the rewards up, then normalises the sum within its group. ``gdpo`` normalises each reward within its group, adds these
    up, then normalises over the batch (TRL's ``normalize_then_sum``). ``mar`` is TIR-Agent's: each reward is normalised within its
    group, and their weights follow from how each metric has lately developed (equations 5 to 9).

    The switches are the rows of TIR-Agent's Table 5: ``mar=False`` is "w/o MAR", ``decouple=False`` "w/o decouple" and
    ``dynamic_weights=False`` "w/o w".
    """

    mode: str = "mar"
    mar: bool = True
    """False turns both parts of MAR off: plain GRPO on the sum with uniform weights."""
    decouple: bool = True
    """False adds the weighted rewards up first and normalises the sum (``mar`` only)."""
    dynamic_weights: bool = True
    """False keeps the weights uniform (``mar`` only)."""
    clip: float = 0.2
    """ε of equation 5, for which the paper gives no value: weights lie within a factor exp(2ε) of each other."""
    beta: float = 0.1
    """β of equation 6, without a value in the paper: the share of the new batch in the running mean."""
    floor: float = 1e-3
    """The least |m_k| that a deviation is divided by; the paper divides by m_k, which a gain can bring to zero or below."""
    std_epsilon: float = 1e-4
    """Added to every standard deviation that is divided by (TRL's value; TIR-Agent writes none)."""
    scale_rewards: str = "group"
    """What a centred reward is divided by: its standard deviation within its ``group`` (equation 8), that of the whole ``batch`` around
    the groups' means, or ``none``, as Dr. GRPO does. A group of rollouts that differ by next to nothing is as loud as any other by its own
    deviation, and as quiet as it deserves by the batch's."""
    normalise_batch: bool | None = None
    """Also normalise the advantages over the batch; by default in ``gdpo`` alone."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight per reward; 1 where it says nothing. In ``mar`` each of equation 7's weights is multiplied by it, and all are divided by their
    sum: beyond the paper, whose metrics weigh alike, for a metric that is won more easily than the others."""

    def __post_init__(self):
        if self.mode not in MODES:
            raise UnknownNameError("advantage mode", self.mode, MODES)
        if self.scale_rewards not in SCALES:
            raise UnknownNameError("scale of rewards", self.scale_rewards, SCALES)
        if self.mode != "mar" and not (self.mar and self.decouple and self.dynamic_weights):
            raise IrEnvError(f"mar, decouple and dynamic_weights are switches of the advantage mode 'mar'; the mode is {self.mode!r}")
        if any(not weight >= 0 for weight in self.weights.values()):
            raise IrEnvError(f"weights of rewards must be at least 0, not {dict(self.weights)}")
        if not (self.clip >= 0 and 0 < self.beta <= 1 and self.floor > 0 and self.std_epsilon >= 0):
            raise IrEnvError(
                f"advantages need clip >= 0, 0 < beta <= 1, floor > 0 and std_epsilon >= 0, not clip={self.clip}, beta={self.beta}, "
                f"floor={self.floor}, std_epsilon={self.std_epsilon}"
            )

    @property
    def sums_first(self) -> bool:
        return self.mode == "grpo" or not (self.mar and self.decouple)

    @property
    def weighs_dynamically(self) -> bool:
        return self.mode == "mar" and self.mar and self.dynamic_weights

    @property
    def normalises_batch(self) -> bool:
        return self.mode == "gdpo" if self.normalise_batch is None else self.normalise_batch


class MARState:
    """The running mean m_k of each reward's batch mean r_k, and the weights that follow from it (TIR-Agent, equations 5 to 7).

    ``w̃_k = 1 - clip((r_k - m_k) / max(|m_k|, floor), -ε, ε)`` and ``w = softmax(w̃)``: a metric that has dropped below its running mean
    gets more weight. The weights of a batch are taken before the batch enters the mean, ``m_k <- (1 - β) m_k + β r_k``. The printed
    equation 6 leaves open which of the two terms carries β; here β is the share of the new batch, so that a small β smooths, as the text
    says. The first batch becomes the mean, which makes its weights uniform.
    """

    def __init__(self, clip: float, beta: float, floor: float):
        self.clip, self.beta, self.floor = clip, beta, floor
        self.mean: np.ndarray | None = None
        """float64 (K,); None before the first batch."""

    def weights(self, batch_mean: np.ndarray) -> np.ndarray:
        """float64 (K,) summing to 1, for a batch whose mean rewards are (K,)."""
        mean = batch_mean if self.mean is None else self.mean
        raw = 1.0 - np.clip((batch_mean - mean) / np.maximum(np.abs(mean), self.floor), -self.clip, self.clip)
        powers = np.exp(raw - raw.max())
        return powers / powers.sum()

    def update(self, batch_mean: np.ndarray) -> None:
        """Take a batch into the running mean."""
        self.mean = batch_mean.copy() if self.mean is None else (1.0 - self.beta) * self.mean + self.beta * batch_mean

    def get_state(self) -> dict[str, Any]:
        return {"mean": None if self.mean is None else self.mean.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.mean = None if state["mean"] is None else np.array(state["mean"], np.float64)


@dataclass(frozen=True)
class Advantages:
    """The advantages of one batch, and what they came from."""

    advantages: np.ndarray
    """float64 (B, G)"""
    weights: np.ndarray
    """float64 (K,): of the metrics, without the extra rewards."""
    batch_mean: np.ndarray
    """float64 (K,): r_k."""
    running_mean: np.ndarray | None
    """float64 (K,): m_k after this batch; None where no running mean is kept."""


class AdvantageEstimator:
    """Turns the rewards of batch after batch into advantages; only ``mar`` keeps a state between them.

    Args:
        options: which advantages.
        names: names of the K rewards.
    """

    def __init__(self, options: AdvantageOptions, names: Sequence[str]):
        for name in options.weights:
            if name not in names:
                raise UnknownNameError("reward", name, names, "It has a weight, and the environment reports none of that name.")
        if not any(options.weights.get(name, 1.0) for name in names):
            raise IrEnvError(f"all rewards, {list(names)}, have the weight 0; leave one out of the weights")
        self.options, self.names = options, tuple(names)
        self.state = MARState(options.clip, options.beta, options.floor)

    def __call__(self, rewards: ArrayLike, extra: ArrayLike | None = None, extra_weights: ArrayLike = ()) -> Advantages:
        """Advantages of a batch of whole groups.

        Args:
            rewards: (B, G, K).
            extra: (B, G, E), rewards of a fixed weight beside the metrics, such as a format's; they take part in everything but the
                running mean and the weights of the metrics.
            extra_weights: (E,).

        Raises:
            IrEnvError: the shape is another, or a reward is not finite.
        """
        rewards = np.asarray(rewards, np.float64)
        if rewards.ndim != 3 or rewards.shape[2] != len(self.names):
            raise IrEnvError(f"rewards of {len(self.names)} metrics have shape (groups, rollouts, {len(self.names)}), not {rewards.shape}")
        for k, name in enumerate(self.names):
            if not np.isfinite(rewards[..., k]).all():
                raise IrEnvError(f"a rollout's reward by {name!r} is not finite; leave that metric out, or find the image that breaks it")
        batch_mean = rewards.mean((0, 1))
        weights = np.array([self.options.weights.get(name, 1.0) for name in self.names])
        if self.options.weighs_dynamically:
            weights = weights * self.state.weights(batch_mean)
            self.state.update(batch_mean)
        if self.options.mode == "mar":
            weights = weights / weights.sum()
        columns, column_weights = rewards, weights
        if extra is not None:
            columns = np.concatenate([rewards, np.asarray(extra, np.float64)], axis=2)
            column_weights = np.concatenate([weights, np.asarray(extra_weights, np.float64)])
        return Advantages(self._combine(columns, column_weights), weights, batch_mean, self.state.mean)

    def _combine(self, columns: np.ndarray, weights: np.ndarray) -> np.ndarray:
        options = self.options
        if options.sums_first:
            combined = group_normalise(columns @ weights, options.std_epsilon, options.scale_rewards)
        else:
            # (K, B, G): the batch of one reward is not that of another
            combined = group_normalise(np.moveaxis(columns, 2, 0), options.std_epsilon, options.scale_rewards).transpose(1, 2, 0) @ weights
        return batch_normalise(combined, options.std_epsilon) if options.normalises_batch else combined


def group_normalise(rewards: np.ndarray, std_epsilon: float, scale: str = "group") -> np.ndarray:
    """``(r - mean) / (std + epsilon)``, with the mean over the last axis, the rollouts of a group (equation 8).

    A group whose rewards are all equal gives exactly 0.

    Args:
        rewards: (..., B, G); of less than two axes one group.
        std_epsilon: added to the standard deviation.
        scale: ``group`` divides by the sample standard deviation of each group; ``batch`` by the root of the mean of the groups'
            variances over axis B; ``none`` by nothing.
    """
    varied = rewards.max(-1, keepdims=True) > rewards.min(-1, keepdims=True)
    centred = np.where(varied, rewards - rewards.mean(-1, keepdims=True), 0.0)
    if scale == "none":
        return centred
    variance = rewards.var(-1, ddof=min(1, rewards.shape[-1] - 1), keepdims=True)
    if scale == "batch" and rewards.ndim > 1:
        variance = np.where(varied, variance, 0.0).mean(-2, keepdims=True)
    return centred / np.where(variance > 0, np.sqrt(variance) + std_epsilon, 1.0)


def batch_normalise(advantages: np.ndarray, std_epsilon: float) -> np.ndarray:
    """GDPO's last step: zero mean and unit sample standard deviation over the whole batch; 0 if all are equal."""
    return group_normalise(advantages.reshape(1, -1), std_epsilon).reshape(advantages.shape)
