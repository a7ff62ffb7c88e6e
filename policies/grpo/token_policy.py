"""What GRPO asks of an RLModule."""

from __future__ import annotations

import abc
from contextlib import AbstractContextManager
from typing import Any

from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.numpy import convert_to_numpy
from ray.rllib.utils.torch_utils import convert_to_torch_tensor
from torch import Tensor

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

    def reference(self) -> AbstractContextManager:
        """Within this context :meth:`score_actions` is the reference policy's; with LoRA, the adapters are off."""
        raise IrEnvError(f"{type(self).__name__} has no reference policy: set kl_coeff=0, or implement reference()")


class TrainableStateModule(TorchRLModule):
    """A module whose state is its trainable parameters alone, so that LoRA's few weights travel to the runners and into checkpoints.

    ``setup`` must rebuild the frozen rest the same everywhere. RLlib asks for the state in three ways (checkpoint, weights for runners,
    a module built from a checkpoint), and all three get the same one.
    """

    def get_state(self, components=None, *, not_components=None, inference_only: bool = False, **kwargs) -> dict[str, Any]:
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return convert_to_numpy({name: value for name, value in self.state_dict().items() if name in trainable})

    def set_state(self, state: dict[str, Any]) -> None:
        missing = [name for name, parameter in self.named_parameters() if parameter.requires_grad and name not in state]
        _, unexpected = self.load_state_dict(convert_to_torch_tensor(dict(state)), strict=False)
        if missing or unexpected:
            raise IrEnvError(
                f"the weights do not fit {type(self).__name__}: missing {missing[:3]}, unknown {unexpected[:3]}; "
                "its model_config must be that of the training"
            )
