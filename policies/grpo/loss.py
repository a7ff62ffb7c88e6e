"""GRPO's loss over tokens, in torch alone.

A rollout is one sequence, whatever its number of turns: R rows are the turns of all rollouts, each with up to T tokens. A policy whose
action is a single token has T = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tool_actors.errors import IrEnvError, UnknownNameError

NORMALISATIONS = ("grpo", "dr_grpo")


@dataclass(frozen=True)
class LossOptions:
    """What the loss is made of."""

    clip_low: float = 0.2
    """The ratio is clipped to [1 - clip_low, 1 + clip_high]."""
    clip_high: float = 0.2
    kl_coeff: float = 0.0
    """Weight of the divergence from the reference policy."""
    entropy_coeff: float = 0.0


def token_weights(
    mask: Tensor, rollout: Tensor, normalisation: str = "grpo", max_tokens: int | None = None, rollouts: int | None = None
) -> Tensor:
    """What each token counts in the loss, which is the weighted sum over tokens: float32 (R, T), 0 where the mask is 0.

    Since the weights are fixed for the whole batch before it is split, the gradients of micro-batches, and of learners, add up to that of
    the batch.

    Args:
        mask: (R, T), nonzero where the policy chose the token.
        rollout: int (R,), which rollout a row belongs to; any numbers.
        normalisation: ``grpo``, the mean over the tokens of each rollout and then over rollouts (DeepSeekMath, equation 3); or
            ``dr_grpo``, the sum over tokens divided by a constant, so that a long rollout's tokens count as much as a short one's.
        max_tokens: that constant, the most tokens a rollout can have; for ``dr_grpo``.
        rollouts: how many the batch has, where the rows are a learner's share of it; by default those of the rows. A rollout is in one
            share.
    """
    mask = (mask != 0).float()
    numbers, index = torch.unique(rollout, return_inverse=True)
    rollouts = rollouts or len(numbers)
    if normalisation == "grpo":
        lengths = torch.zeros(len(numbers), device=mask.device).index_add_(0, index, mask.sum(1))
        return mask / lengths.clamp(min=1.0)[index, None] / rollouts
    if normalisation == "dr_grpo":
        if not max_tokens:
            raise IrEnvError("the normalisation dr_grpo divides by a constant: give max_tokens, the most tokens a rollout can have")
        return mask / (rollouts * max_tokens)
    raise UnknownNameError("loss normalisation", normalisation, NORMALISATIONS)


def grpo_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    weights: Tensor,
    options: LossOptions,
    entropy: Tensor | None = None,
    reference_logp: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped loss of some rows: ``-Σ w (min(ρ A, clip(ρ) A) - kl_coeff KL + entropy_coeff H)``, with ``ρ = exp(logp - old_logp)``.

    Args:
        logp: (R, T), log-probabilities of the tokens under the policy that learns.
        old_logp: (R, T), under the policy that chose them.
        advantages: (R,), of the rollout each row belongs to.
        weights: (R, T), see :func:`token_weights`; what has no weight may hold any number.
        options: coefficients.
        entropy: (R, T), of the distribution each token was drawn from; needed for a nonzero ``entropy_coeff``.
        reference_logp: (R, T), under the reference policy; needed for a nonzero ``kl_coeff``.

    Returns:
        The loss, and sums over tokens for :func:`mean_statistics`; both add up over micro-batches.
    """
    chosen = weights > 0
    ratio = torch.exp(_where(chosen, logp - old_logp))
    advantages = advantages[:, None]
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    objective = torch.minimum(ratio * advantages, clipped * advantages)
    sums = {"tokens": chosen.sum(), "ratio": ratio[chosen].sum()}
    outside = ((ratio < 1 - options.clip_low) & (advantages < 0)) | ((ratio > 1 + options.clip_high) & (advantages > 0))
    sums["clip_fraction"] = (outside & chosen).sum()
    # the tokens are the old policy's, so this is KL(old || new)
    sums["kl_update"] = _k3(old_logp, logp.detach(), chosen).sum()
    sums["sampling_gap"] = _where(chosen, logp - old_logp).abs().sum()
    if reference_logp is not None:
        divergence = _k3(logp, reference_logp, chosen)
        objective = objective - options.kl_coeff * divergence
        sums["kl_reference"] = divergence.sum()
    elif options.kl_coeff:
        raise IrEnvError("kl_coeff needs the reference policy's log-probabilities")
    if entropy is not None:
        entropy = _where(chosen, entropy)
        if options.entropy_coeff:  # otherwise a gradient of zeros would go back through the whole vocabulary
            objective = objective + options.entropy_coeff * entropy
        sums["entropy"] = entropy.sum()
    elif options.entropy_coeff:
        raise IrEnvError("entropy_coeff needs the entropies of the policy's distributions")
    return -(weights * objective).sum(), {name: value.detach() for name, value in sums.items()}


def mean_statistics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over tokens of what :func:`grpo_loss` returns, once added up over the micro-batches."""
    tokens = max(1.0, float(sums["tokens"]))
    return {name: float(value) / tokens for name, value in sums.items() if name != "tokens"}


def _k3(logp: Tensor, other_logp: Tensor, chosen: Tensor) -> Tensor:
    """Schulman's estimate k3 of KL(policy || other) from the policy's tokens: never negative, unbiased."""
    difference = _where(chosen, other_logp - logp)
    return torch.exp(difference) - difference - 1.0


def _where(chosen: Tensor, values: Tensor) -> Tensor:
    """Zero, for value and gradient alike, where nothing was chosen; padding may hold infinities."""
    return torch.where(chosen, values, torch.zeros_like(values))
