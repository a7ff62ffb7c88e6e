"""What GRPO asks of an RLModule."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from policies.grpo.distributed import place, whole
from tool_actors.errors import IrEnvError

TOKEN_MASK = "token_mask"
"""The column, (R, T), that is nonzero where an action's token was chosen by the policy; absent where every token was."""


class TokenPolicy(abc.ABC):
    """Mixed into a ``TorchRLModule`` whose actions are tokens: one per action, shape (R,), or T of them, shape (R, T).

    Sampling is RLlib's: ``_forward`` returns ``action_dist_inputs``; or, for token sequences, ``actions``, ``action_logp`` and
    ``token_mask``, all (R, T), padded to one fixed T (RLlib takes neither lists of several lengths nor a distribution of them).
    """

    @abc.abstractmethod
    def score_actions(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities of ``batch["actions"]`` given ``batch["obs"]``, and the entropies of the distributions they were drawn from.

        They must be those of sampling: the same masks, the same temperature, no dropout. The learner calls this in eval mode, with
        gradients, on micro-batches.

        Returns:
            Two tensors of shape (R,) or (R, T); None for the entropies, if they cost too much, does without their bonus and their curve.
        """

    def prepare(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Work on the whole train batch, done once per update and without gradients: what no step of the update changes."""
        return columns

    def shard(self, mesh: DeviceMesh) -> None:
        """Leave each learner of the mesh its part of all parameters, before there is an optimiser (``fully_shard``)."""
        raise IrEnvError(f"{type(self).__name__} cannot share its parameters out to learners: set fully_shard=False, or implement shard()")

    def reference(self) -> AbstractContextManager:
        """Within this context :meth:`score_actions` is the reference policy's; with LoRA, the adapters are off."""
        raise IrEnvError(f"{type(self).__name__} has no reference policy: set kl_coeff=0, or implement reference()")


class TrainableStateModule(TorchRLModule):
    """A module whose state is its trainable parameters alone, so that LoRA's few weights travel to the runners and into checkpoints.

    ``setup`` must rebuild the frozen rest the same everywhere. RLlib asks for the state in three ways (checkpoint, weights for runners,
    a module built from a checkpoint), and all three get the same parameters, whole ones where learners share them; runners get them in
    the type that they are kept in there.
    """

    runner_dtypes: Mapping[str, torch.dtype] = MappingProxyType({})
    """Of parameters that the learner keeps in another type than the runners."""

    def get_state(self, components=None, *, not_components=None, inference_only: bool = False, **kwargs) -> dict[str, Any]:
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        dtypes = self.runner_dtypes if inference_only else {}
        state = ((name, whole(value.detach())) for name, value in self.state_dict().items() if name in trainable)
        return {name: to_numpy(value.to(dtypes.get(name, value.dtype))) for name, value in state}

    def set_state(self, state: dict[str, Any]) -> None:
        own = self.state_dict()
        missing = [name for name, parameter in self.named_parameters() if parameter.requires_grad and name not in state]
        unexpected = [name for name in state if name not in own]
        unlike = [name for name in state if name in own and np.shape(state[name]) != tuple(own[name].shape)]
        if missing or unexpected or unlike:
            raise IrEnvError(
                f"the weights do not fit {type(self).__name__}: missing {missing[:3]}, unknown {unexpected[:3]}, of another shape "
                f"{unlike[:3]}; its model_config must be that of the training"
            )
        with torch.no_grad():
            # one at a time: of what Ray shares between processes none makes a copy of its own
            for name, value in state.items():
                own[name].copy_(place(to_tensor(value), own[name]))


def to_numpy(value: Tensor) -> np.ndarray:
    """numpy has no bfloat16: its bits travel as uint16, which no parameter has."""
    value = value.cpu()
    # a copy: the parameters change
    return np.array((value.view(torch.uint16) if value.dtype == torch.bfloat16 else value).numpy())


def to_tensor(value: np.ndarray) -> Tensor:
    """What :func:`to_numpy` wrote."""
    tensor = convert_to_torch_tensor(value)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor
