"""Restoration without training, in the manner of 4KAgent and AgenticIR: perceive, schedule, try all tools of a task, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np

from ir_env.degradations import parse_combo
from ir_env.observation import view
from ir_env.planner import Observation, Planner
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS, TASK_OF

SCHEDULE = ("denoise", "dejpeg", "defocus_deblur", "motion_deblur", "derain", "dehaze", "brighten", "super_resolve")
"""An order that agrees with every pair of AgenticIR's table of experience: deblurring and artefacts first, light and size last."""
THRESHOLD = 0.02
"""In units of the reward's quality: with the default reward 0.02 is 0.18 dB of PSNR, or 0.006 of SSIM."""

Perceive = Callable[[Observation], Collection[str]]
"""From what a planner sees to the tasks that the degraded image, ``observation.trajectory[0]``, needs."""


class TraversalPlanner(Planner):
    """Takes the tasks of the agenda in the order of :data:`SCHEDULE`; for each it runs all tools and keeps the best result.

    If even the best result gains less than the threshold, it is rolled back: the image is what it was before the task, the next task of
    the agenda is tried first, and the failed one again after it. When none of the remaining tasks succeeds, it stops.

    Quality is that of the reward, by the process's metrics: with full-reference ones it is an oracle, which makes good demonstrations; with
    no-reference ones (MUSIQ, CLIP-IQA, MANIQA, as in 4KAgent) it judges as the published systems do.

    Args:
        perceive: which tasks an image needs; by default the encoder of the SimpleCall-style policy tells.
        threshold: least gain that is not rolled back.
    """

    name = "traversal"
    needs_reference = True

    def __init__(self, perceive: Perceive | None = None, threshold: float = THRESHOLD):
        self.perceive = perceive or EncoderPerception()
        self.threshold = threshold
        self.executions = 0
        """Tools run so far, those rolled back too: what the traversal costs."""

    def plan(self, observation: Observation) -> int:
        if observation.oracle is None:
            raise IrEnvError("the traversal planner compares results with the clean image, and there is none; choose another policy")
        actions = observation.actions
        done = {actions[index].task for index in observation.history}
        agenda = [task for task in self.perceive(observation) if task not in done]
        for task in sorted(agenda, key=SCHEDULE.index):
            tools = [index for index, action in enumerate(actions) if action.task == task and observation.action_mask[index]]
            if not tools:
                continue
            gains = observation.oracle(tools)
            self.executions += len(tools)
            best = int(np.argmax(gains))
            if gains[best] >= self.threshold:
                return tools[best]
        return actions.stop


class KnownDegradations:
    """Perception that cannot err: the degradations are told.

    Args:
        combo: of the sample, e.g. ``"rain+haze"``.
    """

    def __init__(self, combo: str):
        self.tasks = tuple(TASK_OF[degradation] for degradation in parse_combo(combo))

    def __call__(self, observation: Observation) -> Collection[str]:
        return self.tasks


class EncoderPerception:
    """Perception by the encoder that comes with the SimpleCall-style policy; whether an image is small is seen from its size.

    Args:
        share: least probability with which a degradation counts as there.
    """

    def __init__(self, share: float = 0.5):
        from policies.simplecall.encoders import SmallCNN

        self.share = share
        self._encoder = SmallCNN().eval()

    def __call__(self, observation: Observation) -> Collection[str]:
        import torch

        pixels = view(observation.trajectory[0], self._encoder.SIDE)
        with torch.no_grad():
            told = self._encoder(torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None])[0, : len(DEGRADATIONS)]
        seen = {name for name, share in zip(DEGRADATIONS, told.sigmoid().tolist(), strict=True) if share >= self.share}
        enlarging = {observation.actions[i].task for i in np.flatnonzero(observation.action_mask[:-1])} & {"super_resolve"}
        return {TASK_OF[name] for name in seen - {"low_resolution"}} | enlarging
