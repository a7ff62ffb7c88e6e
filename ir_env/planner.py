"""The contract of a planner, and the loop that runs one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ir_env.actions import ActionTable
from ir_env.episode import Episode
from ir_env.process import RestorationProcess


@dataclass(frozen=True, eq=False)
class Observation:
    """What a planner may look at."""

    image: np.ndarray
    """uint8 (H, W, 3): the current image, whole."""
    trajectory: tuple[np.ndarray, ...]
    """The images so far, uint8: the degraded one, that after each tool; the last is ``image``."""
    history: tuple[int, ...]
    """Indices of the actions so far."""
    action_mask: np.ndarray
    """int8 (n,): 1 where an action is allowed."""
    actions: ActionTable
    """Index -> (task, tool); ``actions.stop`` ends the episode."""
    max_steps: int
    """The episode is cut after so many actions."""
    oracle: Callable[[Sequence[int]], list[float]] | None = None
    """Gains of candidate actions on the true metric; None without a reference. Only oracles may ask it."""


class Planner(ABC):
    """Chooses actions. Subclass it and write :meth:`plan`; nothing else is needed for the benchmark and ``ir-env restore``."""

    name: str = "planner"
    needs_reference: bool = False
    """True for oracles, which look at the clean image."""
    toolbox: str | Sequence[str] | None = None
    """The toolbox that it knows; None if it can use any."""

    @abstractmethod
    def plan(self, observation: Observation) -> int:
        """The index of the next action."""

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        """Actions for several images at once; override it where a batch is cheaper."""
        return [self.plan(observation) for observation in observations]


def observation_of(process: RestorationProcess, episode: Episode) -> Observation:
    """What a planner sees of an episode."""
    oracle = None
    if episode.reference is not None:
        oracle = lambda candidates: process.gains_of(episode, candidates)  # noqa: E731
    images = tuple(state.as_uint8() for state in episode.states)
    return Observation(images[-1], images, tuple(episode.history), episode.mask, process.actions, process.max_steps, oracle)


def run(process: RestorationProcess, planner: Planner, episodes: Sequence[Episode]) -> Iterator[int]:
    """Run episodes to their end, together; yields the number still running after each step (for progress displays)."""
    live = [episode for episode in episodes if not episode.done]
    while live:
        actions = planner.plan_batch([observation_of(process, episode) for episode in live])
        process.step(live, actions)
        live = [episode for episode in live if not episode.done]
        yield len(live)
