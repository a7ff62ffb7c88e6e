"""The plan network as an RLModule of RLlib's new API stack, for GRPO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor

from ir_env.view import View
from policies.grpo.token_policy import TOKEN_MASK, TokenPolicy
from policies.opera.network import PlanNetwork
from policies.opera.planner import PlanPlanner
from tool_actors.errors import IrEnvError

OPTIONS = ("encoder", "encoder_options", "train_encoder", "hidden")


COMBOS = "combos"
"""In the metadata of a start: the combinations of degradations that its demonstrations have, separated by commas."""


class PlanRLModule(TorchRLModule, TokenPolicy):
    """Writes a whole plan for each observation of ``ir_env/RestorationPlan-v0``.

    ``model_config`` holds the arguments of :class:`PlanNetwork` but the sizes, which the spaces give; ``actions``, the (task, tool) pairs
    that the reading of the experiment file fills in; and ``start``, what it begins with: a run, or the file of
    ``experiments/opera/clone.py``.
    """

    def setup(self):
        space = self.observation_space
        if not isinstance(space, gymnasium.spaces.Dict) or not isinstance(self.action_space, gymnasium.spaces.MultiDiscrete):
            raise IrEnvError(f"PlanRLModule acts in ir_env/RestorationPlan-v0; it cannot write plans for {self.action_space}")
        if not self.model_config.get("actions"):
            raise IrEnvError("PlanRLModule needs model_config['actions'], the (task, tool) pairs behind the indices of a plan")
        tasks, tools = zip(*self.model_config["actions"], strict=True)
        options = {key: value for key, value in dict(self.model_config).items() if key in OPTIONS}
        [max_plan] = space["history"].shape or ()
        self.network = PlanNetwork(len(tools) + 1, max_plan, tasks=tasks, tools=tools, **options)
        self.start_combos: list[Any] | None = []
        """That its start learned from; None if nobody knows."""
        if start := self.model_config.get("start"):
            self._begin_with(start)

    def _begin_with(self, run: str) -> None:
        from policies.loading import load_checkpoint

        if Path(run).suffix == ".safetensors":
            self._begin_with_file(Path(run))
            return
        other = load_checkpoint(run)
        if not isinstance(other, PlanPlanner) or other.network.actions != self.network.actions:
            raise IrEnvError(f"model_config['start']: {run} holds no policy that writes plans of {self.network.actions - 1} tools")
        self.network.load_state_dict(other.network.state_dict())
        dataset = other.env_config.get("dataset")
        known = other.trained_combos is not None and isinstance(dataset, Mapping)
        self.start_combos = [*(other.trained_combos or ()), dataset.get("combos", "A,B,C")] if known else None

    def _begin_with_file(self, path: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file

        try:
            missing, unknown = self.network.load_state_dict(load_file(path), strict=False)
        except (OSError, RuntimeError) as error:
            raise IrEnvError(f"model_config['start']: {path} does not fit ({str(error).splitlines()[0]})") from error
        if unknown or any(not name.startswith("encoder.") for name in missing):
            raise IrEnvError(f"model_config['start']: {path} is no start of this planner: missing {missing[:3]}, unknown {unknown[:3]}")
        with safe_open(path, "pt") as file:
            combos = (file.metadata() or {}).get(COMBOS)
        self.start_combos = [combos] if combos else None

    def _forward_exploration(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        return self._write(batch[Columns.OBS], 1.0)

    def _forward_inference(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        return self._write(batch[Columns.OBS], 0.0)

    def _write(self, observation: Mapping[str, Tensor], temperature: float) -> dict[str, Any]:
        written = self.network.write(observation, temperature)
        return {Columns.ACTIONS: written.tokens, Columns.ACTION_LOGP: written.logp, TOKEN_MASK: written.mask}

    def score_actions(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.network.score(batch[Columns.OBS], batch[Columns.ACTIONS].long())

    def prepare(self, columns: dict[str, Any]) -> dict[str, Any]:
        """Encode the images once per update where the encoder is frozen."""
        return {**columns, Columns.OBS: self.network.encode_once(columns[Columns.OBS])}

    def planner(self, name: str, env_config: Mapping[str, Any]) -> PlanPlanner:
        """The most probable plan, as a planner."""
        planner = PlanPlanner(self.network.eval(), View.of_space(self.observation_space), name, env_config)
        planner.trained_combos = self.start_combos
        return planner
