"""Rewards, by name. Each sees the metric vectors before and after a step; the vectors are always in ``info["metrics"]`` too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ir_env.metrics import find_metric
from tool_actors.errors import IrEnvError, UnknownNameError

if TYPE_CHECKING:
    from ir_env.plan_answer import PlanAnswer

__all__ = ["DEFAULT_WEIGHTS", "REWARDS", "Reward", "Transition", "WeightedReward", "delta_iqa", "delta_psnr", "final_iqa", "make_reward"]


@dataclass(frozen=True)
class Transition:
    """One step, as a reward sees it. The vectors are oriented so that higher is better, in the order of the suite."""

    initial: np.ndarray
    """float32 (K,): of the degraded image at the start."""
    before: np.ndarray
    """float32 (K,)"""
    after: np.ndarray
    """float32 (K,); equal to ``before`` if the step was stop or invalid."""
    ends: bool
    """The episode ends with this step."""
    answer: PlanAnswer | None = None
    """Where an action is a whole plan: that plan, with its text."""
    degradations: tuple[str, ...] = ()
    """Where an action is a whole plan: those that are there."""
    consistent: bool = True
    """Where an action is a whole plan: a judge's verdict on its reasoning."""


Reward = Callable[[Transition], float]

DEFAULT_WEIGHTS = {
    "psnr": 1 / 9,
    "psnry": 1 / 9,
    "ssim_ycbcr": 1 / 0.3,
    "ssim_yiq": 1 / 0.3,
    "piqe": 1 / 50,
    "niqe": 1 / 10,
    "lpips": 2 / 0.3,
    "clipiqa": 2 / 0.1,
    "musiq": 2 / 7.5,
}
"""The divisors of OPERA's released quality score, for the metrics that it has; of PIQE and NIQE the span from a clean photograph to its
worst degradation, so that either counts as much as 9 dB."""
INSTEAD = {"psnry": "psnr", "ssim_yiq": "ssim_ycbcr"}
"""A metric that has no weight of its own beside another that measures the same: PSNR over RGB sees colour, over Y it does not."""


@dataclass(frozen=True)
class WeightedReward:
    """A weighted sum of metrics: its increment at every step, or its value once, at the end."""

    weights: tuple[float, ...]
    """Weight of each metric of the suite, oriented so that higher is better."""
    per_step: bool = True

    def quality(self, scores: np.ndarray) -> float:
        """The weighted sum itself, of an oriented metric vector (K,)."""
        return float(np.dot(np.asarray(self.weights, np.float32), scores))

    def __call__(self, step: Transition) -> float:
        if self.per_step:
            return self.quality(step.after) - self.quality(step.before)
        return self.quality(step.after) if step.ends else 0.0


def delta_psnr(names: tuple[str, ...], weights: Mapping[str, float] | None = None) -> WeightedReward:
    """Gain in PSNR per step, in dB (RL-Restore, Yu et al. 2018): over RGB, or over Y where the suite has ``psnry`` alone."""
    wanted = [name for name in ("psnr", "psnry") if name in names]
    if not wanted:
        raise IrEnvError(f"reward delta_psnr needs the metric psnr or psnry; the suite has {list(names)}")
    return WeightedReward(_weights(names, {wanted[0]: 1.0}))


def delta_iqa(names: tuple[str, ...], weights: Mapping[str, float] | None = None) -> WeightedReward:
    """Weighted sum of the metrics' increments per step (SimpleCall, arXiv 2512.18599)."""
    return WeightedReward(_weights(names, weights))


def final_iqa(names: tuple[str, ...], weights: Mapping[str, float] | None = None) -> WeightedReward:
    """Weighted sum of the last state's metrics, given once, at the end."""
    return WeightedReward(_weights(names, weights), per_step=False)


REWARDS: dict[str, Callable[..., Reward]] = {"delta_psnr": delta_psnr, "delta_iqa": delta_iqa, "final_iqa": final_iqa}


def make_reward(reward: str | Reward, names: tuple[str, ...], weights: Mapping[str, float] | None = None) -> Reward:
    """A reward by name, or a function of a :class:`Transition` as it is.

    Args:
        reward: ``delta_psnr``, ``delta_iqa``, ``final_iqa``, or a function.
        names: the metrics of the suite.
        weights: weight per metric (oriented so that higher is better) for the weighted ones; by default those of
            :data:`DEFAULT_WEIGHTS` that the suite has (see :data:`INSTEAD`), the others 0.
    """
    if callable(reward):
        return reward
    if reward not in REWARDS:
        raise UnknownNameError("reward", reward, REWARDS, "A function of a Transition is a reward, too.")
    return REWARDS[reward](tuple(names), weights)


def _weights(names: tuple[str, ...], weights: Mapping[str, float] | None) -> tuple[float, ...]:
    known = [name for name in names if name in DEFAULT_WEIGHTS and INSTEAD.get(name) not in names]
    chosen = dict(weights) if weights is not None else {name: DEFAULT_WEIGHTS[name] for name in known}
    for name in chosen:
        if name not in names:
            find_metric(name)
            raise IrEnvError(f"the reward weighs metric {name!r}, which is not in the suite {list(names)}; add it to `metrics`")
    if not any(chosen.values()):
        raise IrEnvError(f"no metric of the suite {list(names)} has a weight: give reward_weights, e.g. {{{names[0]!r}: 1.0}}")
    return tuple(float(chosen.get(name, 0.0)) for name in names)
