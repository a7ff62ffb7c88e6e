"""The contract of a planner, and the loop that runs one."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ir_env.actions import ActionTable
from ir_env.episode import Episode
from ir_env.metrics import NO_REFERENCE_METRICS
from ir_env.process import RestorationProcess

__all__ = ["NothingPlanner", "Observation", "Planner", "Tried", "observation_of", "run"]


@dataclass(frozen=True, eq=False)
class Tried:
    """What an action would make of the image."""

    action: int
    image: np.ndarray
    """uint8 (H, W, 3); the image as it is if the action is stop, is forbidden, or fails."""
    scores: dict[str, float | None]
    """By metric; None where it has no value on the image."""
    error: str = ""
    """The tool's failure."""


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
    try_tools: Callable[..., list[Tried]] | None = None
    """``try_tools(actions, metrics=("niqe", "piqe"), after=())``: what each action would make of the image, run as one batch and judged by
    metrics that need no reference. Nothing is taken, each tool counts as an execution, and what is then taken is not run again. Stop tells
    how the image scores as it is. ``after`` are actions that would be taken before: so a planner looks as far ahead as it likes."""
    executions: int = 0
    """Tools run for this image so far, those tried and not taken too."""


class Planner(ABC):
    """Chooses actions. Subclass it and write :meth:`plan`; nothing else is needed for the benchmark and ``ir-env restore``."""

    name: str = "planner"
    needs_reference: bool = False
    """True for oracles, which look at the clean image."""
    toolbox: str | Sequence[str] | None = None
    """The toolbox that it knows; None if it can use any."""
    env_config: Mapping[str, Any] = {}
    """The arguments of the environment that it was trained in; empty if it was trained in none."""
    trained_combos: Sequence[Any] | None = ()
    """What its training drew combinations of degradations from, each as :func:`ir_env.degradations.parse_combos` takes it, besides those of
    ``env_config``; empty if it was trained on none, None if nobody knows."""
    endpoint: Any = None
    """What it asks elsewhere, such as a :class:`policies.remote.ChatEndpoint`, whose ``unanswered`` tells how many answers did not come."""
    plans_whole: bool = False
    """True if it decides once per image, at its beginning, and then follows its plan."""

    @abstractmethod
    def plan(self, observation: Observation) -> int:
        """The index of the next action."""

    def fresh(self) -> Planner:
        """Another as this was made, which shares what was loaded: for restorations side by side. Override it if planning changes something
        that the next plan depends on."""
        return copy.copy(self)

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        """Actions for several images at once; override it where a batch is cheaper."""
        return [self.plan(observation) for observation in observations]

    def probabilities(self, observation: Observation) -> np.ndarray | None:
        """Of each action, (n,), where the planner can tell: what it thought, for traces."""
        return None


class NothingPlanner(Planner):
    """Stops at once."""

    name = "nothing"

    def plan(self, observation: Observation) -> int:
        return observation.actions.stop


def observation_of(process: RestorationProcess, episode: Episode) -> Observation:
    """What a planner sees of an episode."""
    oracle = None
    if episode.reference is not None:
        oracle = lambda candidates: process.gains_of(episode, candidates)  # noqa: E731

    def try_tools(actions: Sequence[int], metrics: Sequence[str] = NO_REFERENCE_METRICS, after: Sequence[int] = ()) -> list[Tried]:
        now, *results = process.try_tools(episode, [process.actions.stop, *actions], after)
        as_it_is = now.state or episode.state
        states = [as_it_is if result.state is None else result.state for result in results]
        told = zip(actions, states, process.judge(states, metrics), results, strict=True)
        return [Tried(int(action), state.as_uint8(), scores, str(result.error or "")) for action, state, scores, result in told]

    images = tuple(state.as_uint8() for state in episode.states)
    return Observation(
        image=images[-1],
        trajectory=images,
        history=tuple(episode.history),
        action_mask=episode.mask,
        actions=process.actions,
        max_steps=process.max_steps,
        oracle=oracle,
        try_tools=try_tools,
        executions=episode.executions,
    )


def run(process: RestorationProcess, planner: Planner, episodes: Sequence[Episode]) -> Iterator[int]:
    """Run episodes to their end, together; yields the number still running after each step (for progress displays)."""
    live = [episode for episode in episodes if not episode.done]
    while live:
        actions = planner.plan_batch([observation_of(process, episode) for episode in live])
        process.step(live, actions)
        live = [episode for episode in live if not episode.done]
        yield len(live)
