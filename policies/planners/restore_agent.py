"""Greedy on no-reference quality with roll-back, in the manner of RestoreAgent (NeurIPS 2024) and Q-Agent (arXiv 2504.07148)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ir_env.metrics import NO_REFERENCE_METRICS, find_metric
from ir_env.planner import Observation, Planner, Tried
from policies.planners.perception import EncoderPerception, Perceive
from tool_actors.errors import IrEnvError

__all__ = ["RestoreAgentPlanner", "standardised"]


class RestoreAgentPlanner(Planner):
    """At every step runs all tools of what it perceives, and takes the best; what scores below the image as it was is rolled back.

    Images are ranked by the sum of their metrics, each standardised over the candidates and the image as it is, so that none prevails by
    its unit. When the image as it is comes first, it stops. Each task is taken once. An image that a tool enlarges is another picture to
    the metrics, so super-resolution waits until nothing else gains; then the best of its tools is taken whatever it scores.

    Neither system has public code or weights. RestoreAgent's fine-tuned language model chooses the task and the tool, and looks again after
    each (``again``); Q-Agent's perceives once, and its order is greedy by quality. Roll-back is that of one step: tools are tried, and
    taken if they are kept, which leaves the same image as undoing them.

    Args:
        perceive: which tasks an image needs; by default the trained encoder tells. ``everything`` tries the whole toolbox at every step.
        metrics: that rank; none may need a reference.
        again: perceive anew after every tool, as RestoreAgent does; otherwise once, the degraded image, as Q-Agent does.
    """

    def __init__(self, perceive: Perceive | None = None, metrics: Sequence[str] = NO_REFERENCE_METRICS, again: bool = True):
        self.perceive, self.metrics, self.again = perceive or EncoderPerception(), tuple(metrics), again
        self.name = "restore_agent" if again else "q_agent"

    def plan(self, observation: Observation) -> int:
        actions = observation.actions
        if observation.try_tools is None:
            raise IrEnvError(f"{self.name} tries tools: give it observations that can, those of ir_env.planner.observation_of")
        done = {actions[index].task for index in observation.history if 0 <= index < actions.stop}
        seen = replace(observation, trajectory=(observation.image,)) if self.again else observation
        agenda = set(self.perceive(seen)) - done
        tools = [index for index, each in enumerate(actions) if each.task in agenda and observation.action_mask[index]]
        for enlarging in (False, True):
            chosen = [index for index in tools if (actions[index].task == "super_resolve") == enlarging]
            tried = observation.try_tools([actions.stop, *chosen], self.metrics) if chosen else []
            found = [each for each in tried if not each.error and (not enlarging or each.action != actions.stop)]
            if found:
                best = found[int(np.argmax(standardised(found)))].action
                if best != actions.stop:
                    return best
        return actions.stop


def everything(observation: Observation) -> set[str]:
    """Perception that sees every degradation."""
    return {action.task for action in observation.actions}


def standardised(images: Sequence[Tried]) -> np.ndarray:
    """float (N,): the sum of the metrics of images, oriented so that higher is better, each in its standard deviations over the images. An
    image on which a metric has no value is as bad as the worst of the others."""
    total = np.zeros(len(images))
    for name in images[0].scores:
        sign = 1.0 if find_metric(name).higher_is_better else -1.0
        values = sign * np.array([np.nan if each.scores[name] is None else each.scores[name] for each in images], float)
        if np.isnan(values).all():
            continue
        values = np.where(np.isnan(values), np.nanmin(values), values)
        total += (values - values.mean()) / (values.std() + 1e-6)
    return total
