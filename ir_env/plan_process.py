"""The decision process of whole plans: one action, then the episode has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ir_env.episode import Episode, Outcome
from ir_env.plan_answer import PlanAnswer, plan_space, read_plan
from ir_env.plan_reward import PARTS, PLAN_REWARDS, Judge, OperaReward, find_judge
from ir_env.process import DEFAULT_MAX_STEPS, RestorationProcess
from ir_env.rewards import Reward, Transition, make_reward
from tool_actors.errors import IrEnvError

__all__ = ["PlanProcess"]


class PlanProcess:
    """Starts episodes and executes plans; to the environments a :class:`ir_env.process.RestorationProcess` of one step.

    Args:
        max_plan: the most tools of a plan.
        reward: ``opera``, ``opera_code``, a name of :data:`ir_env.rewards.REWARDS`, or a function of a
            :class:`ir_env.rewards.Transition`, which tells the plan, too.
        reward_weights: see :mod:`ir_env.plan_reward`.
        judge: of the consistency: a name of :data:`ir_env.plan_reward.JUDGES`, ``package.module:factory``, or a judge.
        judge_options: arguments of the factory.
        process_arguments: dataset, toolbox, metrics, executor, ... of :class:`ir_env.process.RestorationProcess`.
    """

    def __init__(
        self,
        max_plan: int = DEFAULT_MAX_STEPS,
        reward: str | Reward = "opera",
        reward_weights: Mapping[str, float] | None = None,
        judge: str | Judge = "rules",
        judge_options: Mapping[str, Any] | None = None,
        **process_arguments: Any,
    ):
        for name in ("max_steps", "step_cost"):
            if name in process_arguments:
                raise IrEnvError(f"{name} belongs to ir_env/Restoration-v0; here an action is a whole plan, of up to max_plan tools")
        self.steps = RestorationProcess(max_steps=max_plan, **process_arguments)
        """Runs the plans, and tells gains."""
        self.dataset, self.executor, self.actions, self.suite = (
            self.steps.dataset,
            self.steps.executor,
            self.steps.actions,
            self.steps.suite,
        )
        self.start, self.start_image, self.max_steps = self.steps.start, self.steps.start_image, max_plan
        if isinstance(reward, str) and reward in PLAN_REWARDS:
            self.reward = PLAN_REWARDS[reward](self.suite.names, reward_weights)
        else:
            self.reward = make_reward(reward, self.suite.names, reward_weights)
        self.judge = find_judge(judge, judge_options)
        self.action_space = plan_space(self.actions, max_plan)
        self.malformed: Counter[str] = Counter()
        """Malformed answers so far, by their reason."""

    def step(self, episodes: Sequence[Episode], actions: Sequence[Any]) -> list[Outcome]:
        """Execute a plan in each episode, which ends it; common beginnings run once.

        A malformed answer runs nothing. A tool that the mask forbids when its turn comes (a second enlargement) is left out.

        Args:
            episodes: fresh ones, all different.
            actions: text or indices, see :mod:`ir_env.plan_answer`.
        """
        for episode in episodes:
            if episode.done:
                raise IrEnvError(f"the episode of {episode.sample} has ended; call reset()")
        answers = [read_plan(action, self.actions, self.max_steps) for action in actions]
        ended = self.steps.follow(episodes, [answer.plan for answer in answers])
        formed = [answer for answer in answers if answer.well_formed]
        verdicts = iter(self.judge(formed, self.actions))
        outcomes = []
        for episode, answer, end in zip(episodes, answers, ended, strict=True):
            consistent = next(verdicts) if answer.well_formed else False
            if not answer.well_formed:
                self.malformed[answer.reason] += 1
            outcomes.append(self._outcome(end, answer, consistent))
            for field in fields(Episode):
                setattr(episode, field.name, getattr(end, field.name))
            episode.total_reward = outcomes[-1].reward
        return outcomes

    def _outcome(self, end: Episode, answer: PlanAnswer, consistent: bool) -> Outcome:
        signs = self.suite.signs
        first, last = signs * end.scores[0], signs * end.scores[-1]
        truth = tuple(end.combo.split("+")) if end.combo else ()
        step = Transition(first, first, last, ends=True, answer=answer, degradations=truth, consistent=consistent)
        told = {"format": float(answer.well_formed), "consistency": float(consistent)}
        parts = self.reward.parts(step) if isinstance(self.reward, OperaReward) else {**dict.fromkeys(PARTS, 0.0), **told}
        name = "+".join(self.actions.name(index) for index in answer.plan) if answer.well_formed else "malformed"
        seconds = float(np.sum(end.seconds))
        return Outcome(float(self.reward(step)), name, not answer.well_formed, seconds, True, False, end.error, parts)
