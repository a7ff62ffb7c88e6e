"""Restoration without training, in the manner of 4KAgent and AgenticIR: perceive, schedule, try all tools of a task, keep the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ir_env.metrics import find_metric
from ir_env.planner import Observation, Planner, Tried
from policies.planners.perception import EncoderPerception, Perceive
from tool_actors.errors import IrEnvError

SCHEDULE = ("denoise", "dejpeg", "defocus_deblur", "motion_deblur", "derain", "dehaze", "brighten", "super_resolve")
"""An order that agrees with every pair of AgenticIR's table of experience: deblurring and artefacts first, light and size last."""
THRESHOLD = 0.02
"""In units of the reward's quality, or of that of the judges: a fifth of a point of PIQE, which goes from 0 to 100."""
JUDGES = {"niqe": 1.0, "piqe": 0.1}
"""Weights of the metrics that judge results without the clean image, of those that need no download."""


class TraversalPlanner(Planner):
    """Takes the tasks of the agenda in the order of :data:`SCHEDULE`; for each it runs all tools and keeps the best result.

    If even the best result gains less than the threshold, it is rolled back: the image is what it was before the task, the next task of
    the agenda is tried first, and the failed one again after it. When none of the remaining tasks succeeds, it stops.

    Where there is a clean image, quality is that of the reward: an oracle, which makes good demonstrations. Where there is none, or
    ``judges`` are given, it is a weighted sum of no-reference metrics, as the published systems judge (4KAgent by MUSIQ, CLIP-IQA and
    MANIQA, whose weights must be downloaded); then a small image is enlarged by the best tool that does so whatever the gain, since its
    scores are those of another picture.

    Args:
        perceive: which tasks an image needs; by default the encoder of the SimpleCall-style policy tells.
        threshold: least gain that is not rolled back.
        judges: weights of no-reference metrics, oriented so that higher is better; those without a value on an image are left out. By
            default the clean image judges, and :data:`JUDGES` where there is none.
    """

    name = "traversal"
    schedule: Sequence[str] = SCHEDULE

    def __init__(self, perceive: Perceive | None = None, threshold: float = THRESHOLD, judges: Mapping[str, float] | None = None):
        self.perceive = perceive or EncoderPerception()
        self.threshold, self.judges = threshold, judges

    def plan(self, observation: Observation) -> int:
        actions = observation.actions
        done = {actions[index].task for index in observation.history}
        agenda = [task for task in self.perceive(observation) if task not in done]
        for task in sorted(agenda, key=self.schedule.index):
            tools = [index for index, action in enumerate(actions) if action.task == task and observation.action_mask[index]]
            if not tools:
                continue
            gains = np.nan_to_num(self._gains(observation, tools), nan=-math.inf, posinf=math.inf, neginf=-math.inf)
            best = int(np.argmax(gains))
            enlarges = task == "super_resolve" and self._oracle(observation) is None and gains[best] > -math.inf
            if enlarges or gains[best] >= self.threshold:
                return tools[best]
        return actions.stop

    def _oracle(self, observation: Observation) -> Callable[[Sequence[int]], list[float]] | None:
        """Gains by the clean image; None where the judges tell."""
        return observation.oracle if self.judges is None else None

    def _gains(self, observation: Observation, tools: Sequence[int]) -> list[float]:
        oracle = self._oracle(observation)
        if oracle is not None:
            return oracle(tools)
        if observation.try_tools is None:
            raise IrEnvError(f"{self.name} tries tools: give it observations that can, those of ir_env.planner.observation_of")
        weights = JUDGES if self.judges is None else self.judges
        now, *tried = observation.try_tools([observation.actions.stop, *tools], list(weights))
        return [gain_by(weights, now, result) for result in tried]


def gain_by(weights: Mapping[str, float], before: Tried, after: Tried) -> float:
    """What a result gains by the metrics that score both it and the image before; without any, as where the tool failed, minus
    infinity."""
    gains = {}
    for name in weights:
        first, last = before.scores[name], after.scores[name]
        if first is not None and last is not None:
            gains[name] = last - first if find_metric(name).higher_is_better else first - last
    if after.error or not gains:
        return -math.inf
    return sum(weights[name] * gain for name, gain in gains.items())
