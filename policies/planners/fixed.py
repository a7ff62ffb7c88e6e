"""The same plan for every image, and the search for the best such plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ir_env.episode import Episode
from ir_env.planner import Observation, Planner
from ir_env.process import RestorationProcess


class FixedPlan(Planner):
    """Applies the same tools, in order, to every image, and stops; a tool that the mask forbids for an image is left out there."""

    def __init__(self, tools: Sequence[str]):
        self.tools = tuple(tools)
        self.toolbox = list(dict.fromkeys(tools)) or None
        self.name = "fixed: " + (" + ".join(self.tools) or "nothing")

    def plan(self, observation: Observation) -> int:
        remaining = list(map(observation.actions.index, self.tools))
        for done in observation.history:
            remaining = remaining[remaining.index(done) + 1 :]
        return next((index for index in remaining if observation.action_mask[index]), observation.actions.stop)


def search_fixed_plan(
    process: RestorationProcess,
    episodes: Sequence[Episode],
    max_length: int = 4,
    beam: int = 2,
    progress: Callable[[], None] = lambda: None,
) -> FixedPlan:
    """The plan with the highest mean gain over the episodes, by beam search.

    All plans of one tool are tried; then the ``beam`` best plans are extended by every tool, until ``max_length`` or until no extension
    helps. A tool forbidden for an image leaves it as it is. (An oracle: it looks at the references.)

    Plans are ranked by :meth:`RestorationProcess.gain` of episodes that they end with stop: by the quality at the end, whether the reward
    tells it step by step or once.

    Args:
        process: the decision process.
        episodes: fresh episodes; they are not changed.
        max_length: longest plan tried.
        beam: plans kept per length.
        progress: called after every plan tried.
    """
    best: tuple[float, tuple[int, ...]] = (_mean_gain(process, episodes), ())
    front = [((), [episode.fork() for episode in episodes])]
    for _ in range(min(max_length, process.max_steps)):
        tried = []
        for plan, reached in front:
            for action in range(process.actions.stop):
                trial = [episode.fork() for episode in reached]
                allowed = [episode for episode in trial if episode.mask[action] and not episode.done]
                process.step(allowed, [action] * len(allowed))
                tried.append((_mean_gain(process, trial), (*plan, action), trial))
                progress()
        tried.sort(key=lambda entry: -entry[0])
        if tried[0][0] <= best[0]:
            break
        best = tried[0][:2]
        front = [(plan, reached) for _, plan, reached in tried[:beam]]
    return FixedPlan([process.actions.name(index) for index in best[1]])


def _mean_gain(process: RestorationProcess, episodes: Sequence[Episode]) -> float:
    """Of the episodes, were they stopped here."""
    ended = [episode.fork() for episode in episodes]
    live = [episode for episode in ended if not episode.done]
    process.step(live, [process.actions.stop] * len(live))
    return float(np.mean([process.gain(episode) for episode in ended]))
