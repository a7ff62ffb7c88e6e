"""TIR-Agent's multi-dimensional adaptive reward as verl's advantage.

verl hands the metrics of rollouts to the estimator of one name alone, ``gdpo``, so this module replaces what stands under that name. It is
imported wherever verl is if ``VERL_USE_EXTERNAL_MODULES=policies.integrations.verl_mar``; with ``algorithm.adv_estimator=gdpo`` and
``algorithm.gdpo_reward_keys=[psnr,...,format]``, whose metrics :class:`policies.integrations.verl_agent_loop.RestorationAgentLoop` reports.

verl's checkpoints do not hold the running means: after a resume the first batch has uniform weights again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from verl.trainer.ppo import core_algos

from policies.grpo.advantages import AdvantageEstimator, AdvantageOptions
from tool_actors.errors import IrEnvError

FORMAT, FORMAT_WEIGHT = "format", 0.1
"""The share of well-formed calls, and its fixed weight beside the metrics: that of experiments/tir_agent/qwen3vl_8b.py."""


def mar_advantage(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    index: np.ndarray,
    config: Mapping[str, Any],
    non_tensor_batch: Mapping[str, np.ndarray],
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns, both float32 (N, T): a rollout's advantage on each of its own tokens.

    Args:
        token_level_rewards: is not looked at; the metrics are.
        response_mask: (N, T), 1 on tokens that the model wrote.
        index: (N,), equal for the rollouts of a group.
        config: verl's ``algorithm``, with ``gdpo_reward_keys``.
        non_tensor_batch: has an array (N,) for each of these keys.

    Raises:
        IrEnvError: keys or metrics are missing, or groups differ in size.
    """
    keys = [str(key) for key in config.get("gdpo_reward_keys") or ()]
    if missing := [key for key in keys if key not in non_tensor_batch] or (not keys and ["algorithm.gdpo_reward_keys"]):
        raise IrEnvError(f"MAR weighs the metrics that rollouts report, and {', '.join(missing)} is missing: see docs/verl.md")
    names = tuple(key for key in keys if key != FORMAT)
    rows = grouped(index)
    metrics, extra = (_columns(non_tensor_batch, part, rows) for part in (names, [key for key in keys if key == FORMAT]))
    made = _estimator(names)(metrics, extra, [FORMAT_WEIGHT] * extra.shape[2]).advantages
    flat = np.empty(len(index), np.float32)
    flat[rows] = made
    advantages = torch.from_numpy(flat).to(response_mask.device).unsqueeze(1) * response_mask
    return advantages, advantages


def grouped(index: np.ndarray) -> np.ndarray:
    """int64 (B, G): where the rollouts of each group stand."""
    _, groups = np.unique(np.asarray(index).astype(str), return_inverse=True)
    sizes = np.bincount(groups)
    if (sizes != sizes[0]).any():
        raise IrEnvError(f"groups of one size are wanted, and these have {sizes.min()} to {sizes.max()} rollouts")
    return np.argsort(groups, kind="stable").reshape(-1, sizes[0])


@cache
def _estimator(names: tuple[str, ...]) -> AdvantageEstimator:
    """One for the whole run: it keeps the running means."""
    return AdvantageEstimator(AdvantageOptions(mode="mar"), names)


def _columns(batch: Mapping[str, np.ndarray], keys: Sequence[str], rows: np.ndarray) -> np.ndarray:
    """float64 (B, G, K)."""
    columns = [np.asarray(batch[key], np.float64)[rows] for key in keys]
    return np.stack(columns, axis=2) if columns else np.zeros((*rows.shape, 0))


core_algos.ADV_ESTIMATOR_REGISTRY[core_algos.AdvantageEstimator.GDPO.value] = mar_advantage
