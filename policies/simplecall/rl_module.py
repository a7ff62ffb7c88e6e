"""The network as an RLModule of RLlib's new API stack, for PPO, GRPO and their relatives."""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from ir_env.view import View
from policies.grpo.token_policy import TokenPolicy
from policies.simplecall.network import SimpleCallNetwork
from tool_actors.errors import IrEnvError

OPTIONS = ("encoder", "encoder_options", "train_encoder", "hidden")


class SimpleCallRLModule(TorchRLModule, ValueFunctionAPI, TokenPolicy):
    """``model_config`` holds the arguments of :class:`SimpleCallNetwork` but the sizes, which the spaces give, and the tools, which come
    from ``actions``: (task, tool) pairs that the reading of the experiment file fills in."""

    def setup(self):
        space = self.observation_space
        if not isinstance(space, gymnasium.spaces.Dict) or not {"history", "step", "action_mask"} <= set(space.spaces):
            raise IrEnvError(f"SimpleCallRLModule acts in ir_env/Restoration-v0; it cannot read observations of {space}")
        view = View.of_space(space)
        [max_steps] = space["history"].shape or ()
        self.network = SimpleCallNetwork(int(self.action_space.n), max_steps, **self.network_options())
        known = getattr(self.network.encoder, "view", view)
        if (view.overview, bool(view.glimpses), view.side) != (known.overview, bool(known.glimpses), known.side):
            raise IrEnvError(
                f"the environment shows overview={view.overview}, glimpses={view.glimpses}, side={view.side}, and the encoder learned on "
                f"overview={known.overview}, glimpses={known.glimpses}, side={known.side}: set env_config.view to that, or train another "
                "encoder (python -m experiments.pretrain_encoder)"
            )

    def network_options(self) -> dict[str, Any]:
        """The arguments of the network that the spaces do not give."""
        # RLlib adds its own default settings to the model_config; ours are these
        options = {key: value for key, value in dict(self.model_config).items() if key in OPTIONS}
        return {**options, "tools": [tool for _, tool in self.model_config.get("actions", ())]}

    def _forward(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        observation = batch[Columns.OBS]
        features = self.network.features(observation)
        return {
            Columns.EMBEDDINGS: features,
            Columns.ACTION_DIST_INPUTS: self.network.logits(features, observation["action_mask"]),
        }

    def _forward_exploration(self, batch, **kwargs):
        output = super()._forward_exploration(batch, **kwargs)
        del output[Columns.EMBEDDINGS]  # or every step would carry them into the episodes
        return output

    def compute_values(self, batch: dict[str, Any], embeddings=None):
        if embeddings is None:
            embeddings = self.network.features(batch[Columns.OBS])
        return self.network.value(embeddings)

    def score_actions(self, batch: dict[str, Any]):
        observation = batch[Columns.OBS]
        logits = self.network.logits(self.network.features(observation), observation["action_mask"])
        distribution = torch.distributions.Categorical(logits=logits)
        return distribution.log_prob(batch[Columns.ACTIONS].long()), distribution.entropy()

    def prepare(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Encode the images once per update where the encoder is frozen."""
        return {**columns, Columns.OBS: self.network.encode_once(columns[Columns.OBS])}
