"""GRPO's learner: whole batches, split into micro-batches for memory alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import tree
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from torch import Tensor

from policies.grpo.env_runner import seed_process
from policies.grpo.loss import LossOptions, grpo_loss, mean_statistics, token_weights
from policies.grpo.token_policy import TOKEN_MASK, TokenPolicy
from tool_actors.errors import IrEnvError

ADVANTAGES, ROLLOUT, REFERENCE_LOGP = Columns.ADVANTAGES, "rollout", "reference_logp"


class GRPOTorchLearner(TorchLearner):
    """Takes ``num_minibatches`` optimiser steps per epoch, each on whole rollouts; no row is left out or taken twice.

    RLlib's own minibatches would be filled up with rows from the start of the batch. The module stays in eval mode, as in sampling:
    dropout would put noise into the ratio.
    """

    def build(self) -> None:
        super().build()
        for module_id, module in self.module.items():
            if not isinstance(module, TokenPolicy):
                raise IrEnvError(
                    f"GRPO trains modules that are a policies.grpo.token_policy.TokenPolicy; {module_id} is a {type(module).__name__}"
                )
        self._learner_connector.append(PrepareBatch(self.config.kl_coeff > 0, self.config.micro_batch_size))

    def set_state(self, state) -> None:
        # RLlib's keeps its weights if those that come are older; see GroupEnvRunner.set_state
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = 0
        super().set_state(state)

    def update(self, *args, seed: int, **kwargs):
        """RLlib's, with the seed of what is drawn in it: a resumed run repeats it, in whichever process."""
        seed_process(seed)
        self._first_epoch = True
        return super().update(*args, **kwargs)

    def get_parameters(self, module) -> list[torch.nn.Parameter]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        raise NotImplementedError("GRPO's loss is computed per micro-batch, in _uncompiled_update")

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs):
        losses = {module_id: self._run_epoch(module_id, columns) for module_id, columns in batch.items()}
        return {}, losses, {}

    def _run_epoch(self, module_id: str, columns: dict[str, Any]) -> Tensor:
        config = self.config
        module = self.module[module_id]
        module.eval()
        columns = token_columns(columns)
        totals: Counter[str] = Counter()
        losses: list[Tensor] = []
        first: dict[str, float] = {}
        for rows in rollout_minibatches(columns[ROLLOUT], config.num_minibatches):
            minibatch = take(columns, rows)
            weights = token_weights(minibatch[TOKEN_MASK], minibatch[ROLLOUT], config.loss_normalisation, config.max_rollout_tokens)
            loss, sums = self._accumulate_gradients(module, minibatch, weights)
            gradients = {ref: parameter.grad for ref, parameter in self._params.items() if parameter.grad is not None}
            self.apply_gradients(self.postprocess_gradients(gradients))
            losses.append(loss)
            totals.update(sums)
            first = first or mean_statistics(sums)
        statistics = mean_statistics(totals)
        # before the first step the two policies are the same, unless sampling and scoring disagree
        del statistics["sampling_gap"]
        if self._first_epoch:
            statistics["sampling_gap"] = first["sampling_gap"]
        self._first_epoch = False
        self.metrics.log_dict(statistics, key=module_id, window=1)
        return torch.stack(losses).mean()

    def _accumulate_gradients(self, module: TokenPolicy, minibatch: dict[str, Any], weights: Tensor) -> tuple[Tensor, Counter[str]]:
        """Leave the gradient of the whole minibatch in the parameters; returns its loss and statistics."""
        config = self.config
        high = config.clip_param if config.clip_param_high is None else config.clip_param_high
        options = LossOptions(config.clip_param, high, config.kl_coeff, config.entropy_coeff)
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        total, sums = torch.zeros((), device=weights.device), Counter()
        for rows in micro_batches(len(weights), config.micro_batch_size):
            part = take(minibatch, rows)
            logp, entropy = score(module, part)
            loss, part_sums = grpo_loss(
                logp, part[Columns.ACTION_LOGP], part[ADVANTAGES], weights[rows], options, entropy, part.get(REFERENCE_LOGP)
            )
            loss.backward()
            total += loss.detach()
            sums.update({name: float(value) for name, value in part_sums.items()})
        return total, sums


class PrepareBatch(ConnectorV2):
    """The last piece of the learner's pipeline: what is computed once per update, not once per step."""

    def __init__(self, with_reference: bool, micro_batch_size: int | None):
        super().__init__()
        self.with_reference, self.micro_batch_size = with_reference, micro_batch_size

    @torch.no_grad()
    def __call__(self, *, rl_module, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        for module_id, columns in batch.items():
            module = rl_module[module_id]
            module.eval()
            columns = module.prepare(dict(columns))
            if self.with_reference:
                with module.reference():
                    parts = micro_batches(len(columns[ADVANTAGES]), self.micro_batch_size)
                    columns[REFERENCE_LOGP] = torch.cat([score(module, take(columns, rows))[0] for rows in parts])
            batch[module_id] = columns
        return batch


def score(module: TokenPolicy, columns: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities and entropies of the stored actions, both (R, T)."""
    logp, entropy = module.score_actions(columns)
    return logp.reshape(len(logp), -1), None if entropy is None else entropy.reshape(len(entropy), -1)


def token_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a batch with ``action_logp`` and the token mask as (R, T), also for actions of one token."""
    old = columns[Columns.ACTION_LOGP].float()
    old = old.reshape(len(old), -1)
    mask = columns.get(TOKEN_MASK)
    mask = torch.ones_like(old) if mask is None else mask.reshape(len(old), -1)
    return {**columns, Columns.ACTION_LOGP: old, TOKEN_MASK: mask}


def rollout_minibatches(rollout: Tensor, count: int) -> Iterator[Tensor]:
    """Row indices of up to ``count`` minibatches of whole rollouts, in an order drawn anew; one minibatch keeps the order of the batch."""
    rollouts = rollout.unique()
    if count > 1:
        rollouts = rollouts[torch.randperm(len(rollouts)).to(rollouts.device)]
    for chosen in torch.tensor_split(rollouts, min(count, len(rollouts))):
        yield torch.isin(rollout, chosen).nonzero().squeeze(1)


def micro_batches(rows: int, size: int | None) -> list[slice]:
    size = size or rows
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def take(columns: dict[str, Any], rows: Tensor | slice) -> dict[str, Any]:
    """Some rows of every column; columns may be nested."""
    return {name: tree.map_structure(lambda column: column[rows], column) for name, column in columns.items()}
