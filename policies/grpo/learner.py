"""GRPO's learner: whole batches, split into shares of learners and micro-batches, neither of which changes a gradient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import ray
import torch
import tree
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.utils.numpy import convert_to_numpy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from policies.grpo.distributed import learners, most, place, total, whole
from policies.grpo.env_runner import seed_process
from policies.grpo.loss import LossOptions, grpo_loss, mean_statistics, token_weights
from policies.grpo.token_policy import TOKEN_MASK, TokenPolicy
from tool_actors.errors import IrEnvError

ADVANTAGES, ROLLOUT, REFERENCE_LOGP, SAMPLING_GAP = Columns.ADVANTAGES, "rollout", "reference_logp", "sampling_gap"


class GRPOTorchLearner(TorchLearner):
    """Takes ``num_minibatches`` optimiser steps per epoch, each on whole rollouts; no row is left out or taken twice.

    RLlib's own minibatches would be filled up with rows from the start of the batch. The module stays in eval mode, as in sampling:
    dropout would put noise into the ratio.

    Of several learners each has some of the rollouts (:class:`policies.grpo.learner_group.RolloutLearnerGroup`). A token counts what it
    counts in the whole batch, and gradients are summed, so the update is that of one learner. Small modules are replicated (DDP); with
    ``fully_shard`` each learner holds its part of parameters, gradients and optimiser (FSDP2).
    """

    _gathered: dict[str, Any] | None = None

    def build(self) -> None:
        super().build()
        for module_id, module in self.module.items():
            if not isinstance(module, TokenPolicy):
                raise IrEnvError(
                    f"GRPO trains modules that are a policies.grpo.token_policy.TokenPolicy; {module_id} is a {type(module).__name__}"
                )
        config = self.config
        self._learner_connector.append(PrepareBatch(config.kl_coeff > 0, config.old_logprobs == "learner", config.micro_batch_size))

    def _map_module_to_device(self, module) -> None:
        if not self.config.fully_shard:
            super()._map_module_to_device(module)
            return
        mesh = init_device_mesh(torch.device(self._device).type, (learners(),))
        for part in module.values():
            part.shard(mesh)

    def _make_modules_ddp_if_necessary(self) -> None:
        """Instead of RLlib's wrapper, whose forward pass is not the one that GRPO learns from."""
        scorers = {module_id: Scorer(module) for module_id, module in self.module.items()}
        if learners() > 1 and not self.config.fully_shard:
            scorers = {name: DistributedDataParallel(scorer, **self.config.torch_ddp_kwargs) for name, scorer in scorers.items()}
        self._scorers = scorers

    # -- state --------------------------------------------------------------------------------------------------------------------

    def gather_state(self, **asked: Any) -> None:
        """All learners together: the first keeps the whole state, sharded parts included, until it is asked for it."""
        state = self.get_state(**asked)
        self._gathered = state if self._learner_index == 0 else None

    def get_state(self, components=None, *, not_components=None, inference_only: bool = False, **kwargs) -> dict[str, Any]:
        if self._gathered is not None:
            state, self._gathered = self._gathered, None
            return state
        state = super().get_state(components, not_components=not_components, inference_only=inference_only, **kwargs)
        if inference_only and self.config.num_learners and self._learner_index == 0:
            # once into the object store, from which the runners of a node read it without copies of their own
            state[COMPONENT_RL_MODULE] = self._sent = ray.put(state[COMPONENT_RL_MODULE])
        return state

    def _get_optimizer_state(self) -> dict[str, Any]:
        if not self.config.fully_shard:
            return super()._get_optimizer_state()
        return {
            name: {
                "module_id": self._optimizer_name_to_module[name],
                "state": convert_to_numpy(_map_tensors(whole, optimizer.state_dict())),
            }
            for name, optimizer in self._named_optimizers.items()
        }

    def _set_optimizer_state(self, state: dict[str, Any]) -> None:
        if self.config.fully_shard:
            state = {name: {**each, "state": self._sharded(self._named_optimizers[name], each["state"])} for name, each in state.items()}
        super()._set_optimizer_state(state)

    def _sharded(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        """An optimiser's state with what is of a parameter's shape sharded as that is."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        kept = {
            index: {
                name: place(torch.as_tensor(value), parameters[index]) if getattr(value, "ndim", 0) else value
                for name, value in each.items()
            }
            for index, each in state["state"].items()
        }
        return {**state, "state": kept}

    def set_state(self, state) -> None:
        # RLlib's keeps its weights if those that come are older; see GroupEnvRunner.set_state
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = 0
        super().set_state(state)

    # -- update -------------------------------------------------------------------------------------------------------------------

    def update(self, *args, seed: int, rollouts: int | None = None, **kwargs):
        """RLlib's, with the seed of what is drawn in it: a resumed run repeats it, in whichever process.

        ``rollouts`` is how many the whole batch has, numbered from 0 in its column; None where this learner has them all.
        """
        seed_process(seed)
        self._rollouts, self._first_epoch = rollouts, True
        return super().update(*args, **kwargs)

    def get_parameters(self, module) -> list[torch.nn.Parameter]:
        return [parameter for parameter in module.parameters() if parameter.requires_grad]

    def compute_loss_for_module(self, *, module_id, config, batch, fwd_out):
        raise NotImplementedError("GRPO's loss is computed per micro-batch, in _uncompiled_update")

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs):
        losses = {module_id: self._run_epoch(module_id, token_columns(columns)) for module_id, columns in batch.items()}
        return {}, losses, {}

    def _run_epoch(self, module_id: str, columns: dict[str, Any]) -> Tensor:
        self.module[module_id].eval()
        sums: Counter[str] = Counter()
        losses: list[float] = []
        first: dict[str, float] = {}
        rollouts = self._rollouts or len(columns[ROLLOUT].unique())
        for rows, members in rollout_minibatches(columns[ROLLOUT], self.config.num_minibatches, rollouts):
            minibatch_sums = self._accumulate_gradients(self._scorers[module_id], columns, rows, members)
            gradients = {ref: parameter.grad for ref, parameter in self._params.items() if parameter.grad is not None}
            self.apply_gradients(self.postprocess_gradients(gradients))
            losses.append(minibatch_sums.pop("loss"))
            sums.update(minibatch_sums)
            first = first or mean_statistics(minibatch_sums)
        statistics = mean_statistics(sums) | {"old_logprobs_recomputed": float(self.config.old_logprobs == "learner")}
        # before the first step the two policies are the same, unless sampling and scoring disagree
        del statistics["sampling_gap"]
        if self._first_epoch:
            statistics["sampling_gap"] = float(columns[SAMPLING_GAP][0]) if SAMPLING_GAP in columns else first["sampling_gap"]
        self._first_epoch = False
        self.metrics.log_dict(statistics, key=module_id, window=1)
        return torch.tensor(losses).mean()

    def _accumulate_gradients(
        self, scorer: Scorer | DistributedDataParallel, columns: dict[str, Any], rows: Tensor, rollouts: int
    ) -> dict[str, float]:
        """Leave the gradient of a minibatch in the parameters; returns its loss and the statistics' sums.

        Args:
            scorer: of the module.
            columns: of this learner's whole share.
            rows: int64, those that are of the minibatch.
            rollouts: of the minibatch, over all learners.
        """
        config = self.config
        high = config.clip_param if config.clip_param_high is None else config.clip_param_high
        options = LossOptions(config.clip_param, high, config.kl_coeff, config.entropy_coeff)
        for optimizer in self._optimizer_parameters:
            optimizer.zero_grad(set_to_none=True)
        mask, rollout = columns[TOKEN_MASK][rows], columns[ROLLOUT][rows]
        weights = token_weights(mask, rollout, config.loss_normalisation, config.max_rollout_tokens, rollouts)
        rows, weights = even_out(rows, weights, config.micro_batch_size)
        sums: dict[str, Tensor] = {}
        parts = micro_batches(len(rows), config.micro_batch_size)
        for part in parts:
            taken = take(columns, rows[part])
            # DDP sums up over learners after the last one; FSDP2 does each time, which keeps whole gradients out of memory
            later = isinstance(scorer, DistributedDataParallel) and part is not parts[-1]
            with scorer.no_sync() if later else nullcontext():
                logp, entropy = scorer(taken)
                loss, more = grpo_loss(
                    logp, taken[Columns.ACTION_LOGP], taken[ADVANTAGES], weights[part], options, entropy, taken.get(REFERENCE_LOGP)
                )
                # both take the mean over learners, of shares that add up to the batch
                (loss * learners()).backward()
            for name, value in {"loss": loss.detach(), **more}.items():
                sums[name] = sums.get(name, 0.0) + value.double()
        return dict(zip(sums, total(torch.stack(list(sums.values()))).tolist(), strict=True))


class Scorer(torch.nn.Module):
    """A module's :meth:`TokenPolicy.score_actions` as its forward pass, for DDP to wrap: log-probabilities and entropies, both (R, T)."""

    def __init__(self, module: TokenPolicy):
        super().__init__()
        self.module = module

    def forward(self, columns: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        logp, entropy = self.module.score_actions(columns)
        return logp.reshape(len(logp), -1), None if entropy is None else entropy.reshape(len(entropy), -1)


class PrepareBatch(ConnectorV2):
    """The last piece of the learner's pipeline: what is computed once per update, not once per step."""

    def __init__(self, with_reference: bool, recompute: bool, micro_batch_size: int | None):
        super().__init__()
        self.with_reference, self.recompute, self.micro_batch_size = with_reference, recompute, micro_batch_size

    @torch.no_grad()
    def __call__(self, *, rl_module, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        for module_id, columns in batch.items():
            module = rl_module[module_id]
            module.eval()
            columns = module.prepare(dict(columns))
            if self.recompute:
                told = token_columns(columns)
                columns[Columns.ACTION_LOGP] = self._score(module, columns)
                chosen = told[TOKEN_MASK] != 0
                gaps = (columns[Columns.ACTION_LOGP] - told[Columns.ACTION_LOGP])[chosen].abs().double()
                gap, tokens = total(torch.stack([gaps.sum(), chosen.sum().double()]))
                columns[SAMPLING_GAP] = (gap / tokens).float().expand(len(chosen))
            if self.with_reference:
                with module.reference():
                    columns[REFERENCE_LOGP] = self._score(module, columns)
            batch[module_id] = columns
        return batch

    def _score(self, module: TokenPolicy, columns: dict[str, Any]) -> Tensor:
        """Log-probabilities of all rows, (R, T)."""
        scorer, advantages = Scorer(module), columns[ADVANTAGES]
        rows, _ = even_out(torch.arange(len(advantages), device=advantages.device), advantages[:, None], self.micro_batch_size)
        parts = [scorer(take(columns, rows[part]))[0] for part in micro_batches(len(rows), self.micro_batch_size)]
        return torch.cat(parts)[: len(advantages)]


def token_columns(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns of a batch with ``action_logp`` and the token mask as (R, T), also for actions of one token."""
    old = columns[Columns.ACTION_LOGP].float()
    old = old.reshape(len(old), -1)
    mask = columns.get(TOKEN_MASK)
    mask = torch.ones_like(old) if mask is None else mask.reshape(len(old), -1)
    return {**columns, Columns.ACTION_LOGP: old, TOKEN_MASK: mask}


def rollout_minibatches(rollout: Tensor, count: int, rollouts: int) -> Iterator[tuple[Tensor, int]]:
    """Up to ``count`` minibatches of whole rollouts, in an order drawn anew; one minibatch keeps the order of the batch.

    Args:
        rollout: (R,), each row's rollout, of the numbers from 0 to ``rollouts``; not all of them where others learn from the rest.
        count: of the minibatches.
        rollouts: how many there are in all.

    Yields:
        Row indices, int64; and how many rollouts the minibatch has in all.
    """
    numbers = torch.arange(rollouts)
    if count > 1:
        numbers = numbers[torch.randperm(rollouts)]
    for chosen in torch.tensor_split(numbers, min(count, rollouts)):
        yield torch.isin(rollout, chosen.to(rollout)).nonzero().squeeze(1), len(chosen)


def even_out(rows: Tensor, weights: Tensor, size: int | None) -> tuple[Tensor, Tensor]:
    """The rows and their weights, filled up with a row without weight until all learners have equally many micro-batches.

    They take their steps together; one that has fewer rows, or none, would not come.
    """
    parts = most(len(micro_batches(len(rows), size)), rows.device)
    missing = max(0, (parts - 1) * (size or 0) + 1 - len(rows))
    return torch.cat([rows, rows.new_zeros(missing)]), torch.cat([weights, weights.new_zeros(missing, weights.shape[1])])


def micro_batches(rows: int, size: int | None) -> list[slice]:
    size = size or max(1, rows)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def take(columns: dict[str, Any], rows: Tensor | slice) -> dict[str, Any]:
    """Some rows of every column; columns may be nested."""
    return {name: tree.map_structure(lambda column: column[rows], column) for name, column in columns.items()}


def _map_tensors(function, structure: Any) -> Any:
    return tree.map_structure(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, structure)
