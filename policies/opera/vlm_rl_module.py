"""A vision-language model that writes whole plans, as an RLModule of RLlib's new API stack, for GRPO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from ir_env.actions import ActionTable
from ir_env.plan_answer import plan_space
from ir_env.planner import Planner
from policies.opera.vlm import PlanSettings, VLMPlanPlanner
from policies.vlm.rl_module import VLMRLModule
from tool_actors.errors import IrEnvError


class VLMPlanRLModule(VLMRLModule):
    """Writes a whole plan for each observation of ``ir_env/RestorationPlan-v0``; its actions are the tokens of the answer.

    The text goes to the environment as it is, which parses it, and judges its reasoning. ``model_config`` is that of :class:`VLMRLModule`.
    """

    Settings = PlanSettings

    def check_actions(self, actions: ActionTable) -> None:
        [max_plan] = self.observation_space["history"].shape
        space = plan_space(actions, max_plan)
        if not isinstance(self.action_space, gymnasium.spaces.MultiDiscrete) or space != self.action_space:
            raise IrEnvError(f"VLMPlanRLModule acts in ir_env/RestorationPlan-v0, with plans of {space}, not {self.action_space}")

    def meanings(self, texts: Sequence[str]) -> np.ndarray:
        return np.array(texts, object)

    def planner(self, name: str, env_config: Mapping[str, Any]) -> Planner:
        [max_plan] = self.observation_space["history"].shape
        planner = VLMPlanPlanner(self.vlm, replace(self.settings, toolbox=env_config.get("toolbox")), max_plan, self.max_tokens)
        planner.name, planner.env_config = name, dict(env_config)
        return planner
