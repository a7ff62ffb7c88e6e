"""The best plan of every image, by beam search or of all plans: upper bounds, which look at the clean image.

>>> compare(env_config, {"beam": partial(search_beam, max_length=4), "all plans of two": partial(search_all, max_length=2)}, samples=16)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from ir_env.episode import Episode
from ir_env.planner import Observation, Planner
from ir_env.process import RestorationProcess
from policies.memory import digest
from tool_actors.errors import IrEnvError

__all__ = ["PlanPerImage", "SearchPlanner", "search_all", "search_beam"]

Plan = tuple[int, ...]


class PlanPerImage(Planner):
    """Follows the plan that was found for the very image that an episode began with."""

    needs_reference = True
    plans_whole = True

    def __init__(self, plans: Mapping[bytes, Plan], name: str, runs: Mapping[bytes, int] | None = None):
        self.plans, self.name = dict(plans), name
        self.runs = dict(runs or {})
        """Tools run to find the plan of an image, by the digest of its pixels."""

    def plan(self, observation: Observation) -> int:
        plan = self.plans.get(digest(observation.trajectory[0]))
        if plan is None:
            raise IrEnvError(f"{self.name} was made for other images than this one: search again on these")
        done = len(observation.history)
        return plan[done] if done < len(plan) else observation.actions.stop


class SearchPlanner(Planner):
    """A beam search as a policy of the benchmark, which makes it anew for the images at hand (:meth:`made_for`).

    Args:
        beam, max_length: see :func:`search_beam`.
    """

    needs_reference = True
    plans_whole = True

    def __init__(self, beam: int = 2, max_length: int = 3):
        if beam < 1 or max_length < 1:
            raise IrEnvError("a beam search keeps at least one plan, of at least one tool: write beam or beam:WIDTH:LENGTH")
        self.name = f"beam search (width {beam}, length {max_length})"
        self._search = partial(search_beam, beam=beam, max_length=max_length)

    def made_for(self, process: RestorationProcess, episodes: Sequence[Episode]) -> PlanPerImage:
        """The plans of fresh episodes; what the search runs counts as executions of them."""
        found = self._search(process, episodes)
        for episode in episodes:
            episode.executions += found.runs[digest(episode.state.as_uint8())]
        return found

    def plan(self, observation: Observation) -> int:
        raise IrEnvError(f"{self.name} looks at the clean image and plans for all images beforehand: only `ir-env bench` can ask it")


def search_beam(
    process: RestorationProcess,
    episodes: Sequence[Episode],
    max_length: int = 4,
    beam: int = 8,
    progress: Callable[[], None] = lambda: None,
) -> PlanPerImage:
    """Per image the best plan that beam search finds: of every length the ``beam`` best plans are extended by every tool that is allowed.

    The shortest of equally good plans is taken; with a beam of 1 it is greedy look-ahead that does not stop at a step without a gain.

    Args:
        process: the decision process.
        episodes: fresh episodes with references; they are not changed.
        max_length: longest plan.
        beam: plans kept per length.
        progress: called after every image.
    """
    return _search(process, episodes, f"beam search (width {beam}, length {max_length})", progress, _beam, max_length, beam)


def search_all(
    process: RestorationProcess, episodes: Sequence[Episode], max_length: int = 2, progress: Callable[[], None] = lambda: None
) -> PlanPerImage:
    """Per image the best of all plans of at most ``max_length`` tools, repeats among them: tools to the power of length.

    They are run depth first, each beginning once, so that memory holds the tools times the length in images. The arguments are those of
    :func:`search_beam`.
    """
    return _search(process, episodes, f"all plans (length {max_length})", progress, _all, max_length)


def _search(process, episodes, name: str, progress: Callable[[], None], best: Callable[..., tuple[float, Plan]], *settings) -> PlanPerImage:
    plans: dict[bytes, Plan] = {}
    runs: dict[bytes, int] = {}
    for episode in episodes:
        if episode.reference is None:
            raise IrEnvError(f"{name} compares with the clean image, and {episode.sample} has none; choose another policy")
        key = digest(episode.state.as_uint8())
        if key not in plans:
            ran: list[int] = []
            plans[key] = best(process, episode, ran, *settings)[1]
            runs[key] = sum(ran)
        progress()
    return PlanPerImage(plans, name, runs)


def _beam(process: RestorationProcess, episode: Episode, ran: list[int], max_length: int, beam: int) -> tuple[float, Plan]:
    best: tuple[float, Plan] = (_gain(process, episode), ())
    front = [episode]
    for _ in range(max_length):
        reached = _extended(process, front, ran)
        if not reached:
            break
        gains = np.array([_gain(process, each) for each in reached])
        order = np.argsort(-gains, kind="stable")[:beam]
        front = [reached[index] for index in order]
        if gains[order[0]] > best[0]:
            best = (float(gains[order[0]]), tuple(front[0].applied))
    return best


def _all(process: RestorationProcess, episode: Episode, ran: list[int], max_length: int) -> tuple[float, Plan]:
    best: tuple[float, Plan] = (_gain(process, episode), tuple(episode.applied))
    for reached in _extended(process, [episode], ran) if max_length else []:
        found = _all(process, reached, ran, max_length - 1)
        if found[0] > best[0]:
            best = found
    return best


def _extended(process: RestorationProcess, front: Sequence[Episode], ran: list[int]) -> list[Episode]:
    """Each of the episodes by every tool that it allows, in one batch; a tool that fails leads nowhere. ``ran`` gets the number
    of tools."""
    moves = [(each, int(action)) for each in front if not each.done for action in np.flatnonzero(each.mask[:-1])]
    ran.append(len(moves))
    reached = [each.fork() for each, _ in moves]
    process.step(reached, [action for _, action in moves])
    return [each for each in reached if not each.error]


def _gain(process: RestorationProcess, episode: Episode) -> float:
    """Of an episode, were it stopped here."""
    ended = episode.fork()
    if not ended.done:
        process.step([ended], [process.actions.stop])
    return float(np.nan_to_num(process.gain(ended), nan=-np.inf))
