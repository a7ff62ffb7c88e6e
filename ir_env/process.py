"""The decision process itself, for any number of episodes at once; the Gymnasium environments are its faces.

One call of :meth:`RestorationProcess.step` makes one batched tool call and one batched metric call for all episodes.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from ir_env.actions import MALFORMED, ActionTable
from ir_env.datasets import Dataset, Sample, load_dataset
from ir_env.episode import Episode, Outcome
from ir_env.images import check_size
from ir_env.metrics import DEFAULT_METRICS, NO_REFERENCE_METRICS, MetricError, MetricSuite
from ir_env.rewards import Reward, Transition, make_reward
from tool_actors.errors import IrEnvError
from tool_actors.executor import Executor, ImageState, Quantize, Request, Result
from tool_actors.make_executor import make_executor
from tool_actors.plans import run_plans
from tool_actors.toolbox import Toolbox

__all__ = ["DEFAULT_MAX_STEPS", "PHOTO_LOW_RESOLUTION_BELOW", "RestorationProcess"]

DEFAULT_MAX_STEPS = 6
PHOTO_LOW_RESOLUTION_BELOW = 300
TRIED_BYTES = 512 << 20
"""What was tried on an image and not taken is kept up to this size."""


class RestorationProcess:
    """Starts and steps episodes.

    Args:
        dataset: where episodes start, see :func:`ir_env.datasets.load_dataset`.
        toolbox: name, toolbox file, list of tools, or toolbox, see :func:`tool_actors.toolboxes.load_toolbox`.
        metrics: names of the metric suite.
        reward: name or function, see :mod:`ir_env.rewards`.
        reward_weights: weight per metric, for the weighted rewards.
        max_steps: an episode is truncated after this many steps.
        step_cost: subtracted from the reward of every tool call.
        invalid_reward: the reward of an action that the mask forbids; the image stays as it is and the step counts.
        malformed_reward: the reward of :data:`ir_env.actions.MALFORMED`, which is invalid, too.
        low_resolution_below: see :class:`ir_env.actions.ActionTable`; by default the dataset's crop size, or 300 for whole photographs.
        quantize: ``"uint8"`` or ``"none"``, see docs/design.md, Images.
        executor: runs the tools: ``local`` (in this process), ``pool`` or ``pool:NAME`` (a running MC-Pool), or an executor, whose toolbox
            then holds; see :func:`tool_actors.make_executor.make_executor`.
        cache_bytes: bound of the default executor's prefix cache.
    """

    def __init__(
        self,
        dataset: Mapping | str | Dataset | None = None,
        toolbox: str | Sequence[str] | Toolbox = "default",
        metrics: Sequence[str] = DEFAULT_METRICS,
        reward: str | Reward = "delta_iqa",
        reward_weights: Mapping[str, float] | None = None,
        max_steps: int = DEFAULT_MAX_STEPS,
        step_cost: float = 0.0,
        invalid_reward: float = -0.1,
        malformed_reward: float = -0.2,
        low_resolution_below: int | None = None,
        quantize: Quantize = "uint8",
        executor: Executor | str = "local",
        cache_bytes: int = 128 << 20,
    ):
        if max_steps < 1:
            raise IrEnvError(f"max_steps must be at least 1, not {max_steps}")
        self.dataset = load_dataset(dataset)
        self.executor = make_executor(executor, toolbox, quantize, cache_bytes)
        if low_resolution_below is None:
            low_resolution_below = self.dataset.crop_size or PHOTO_LOW_RESOLUTION_BELOW
        self.actions = ActionTable(self.executor.toolbox, low_resolution_below)
        self.suite = MetricSuite(metrics)
        self._signs = self.suite.signs
        self.reward = make_reward(reward, self.suite.names, reward_weights)
        self.max_steps, self.step_cost = max_steps, step_cost
        self.action_space = gymnasium.spaces.Discrete(self.actions.n)
        self.invalid_reward, self.malformed_reward = invalid_reward, malformed_reward
        self._judges: dict[tuple[str, ...], MetricSuite] = {}

    # -- starting ------------------------------------------------------------------------------------------------------------------

    def start(self, samples: Sequence[Sample]) -> list[Episode]:
        """Begin an episode for each sample; identical samples are made and scored once."""
        pairs = {sample: self.dataset.load(sample) for sample in dict.fromkeys(samples)}
        return self._begin([(sample.id, "+".join(sample.combo), pairs[sample].degraded, pairs[sample].reference) for sample in samples])

    def start_image(self, image: np.ndarray, reference: np.ndarray | None = None, name: str = "image") -> Episode:
        """Begin an episode on a user's own image, uint8 (H, W, 3)."""
        return self._begin([(name, "", check_size(image, name), reference)])[0]

    def _begin(self, starts: list[tuple[str, str, np.ndarray, np.ndarray | None]]) -> list[Episode]:
        made: dict[int, ImageState] = {}
        states = []
        for _, _, degraded, _ in starts:
            if id(degraded) not in made:
                made[id(degraded)] = ImageState.from_pixels(degraded, self.executor.quantize)
            states.append(made[id(degraded)])
        scores = self.executor.score(self.suite, states, [reference for *_, reference in starts])
        return [
            Episode(name, combo, reference, [state], [self.suite.defined(score)], self.actions.mask(state.shape[:2], ()), without(score))
            for (name, combo, _, reference), state, score in zip(starts, states, scores, strict=True)
        ]

    # -- stepping ------------------------------------------------------------------------------------------------------------------

    def step(self, episodes: Sequence[Episode], actions: Sequence[int]) -> list[Outcome]:
        """Take one action in each episode; returns what each did.

        A tool that fails ends its episode (``terminated``, with an ``error``) at the image it had, with the reward of an invalid action;
        the other episodes are not touched. A tool that was tried on this image is not run again.

        Raises:
            IrEnvError: an action is out of range, or an episode has ended.
        """
        actions = list(map(_index, actions))
        if len({id(episode) for episode in episodes}) < len(episodes):
            raise IrEnvError("an episode stands twice in one call of step: it takes one action at a time; fork() it to go both ways")
        for episode, action in zip(episodes, actions, strict=True):
            if episode.done:
                raise IrEnvError(f"the episode of {episode.sample} has ended; call reset()")
            self._check_action(action)
        valid = [self.actions.allows(action, episode.mask) for episode, action in zip(episodes, actions, strict=True)]
        runs = [i for i, action in enumerate(actions) if valid[i] and action != self.actions.stop]
        results = dict(zip(runs, self._run([(episodes[i], (actions[i],)) for i in runs]), strict=True))
        moved = {i: result.state for i, result in results.items() if result.state is not None}
        vectors = self.executor.score(self.suite, list(moved.values()), [episodes[i].reference for i in moved])
        scores = dict(zip(moved, vectors, strict=True))

        outcomes = []
        for i, (episode, action) in enumerate(zip(episodes, actions, strict=True)):
            before = episode.scores[-1]
            episode.history.append(action)
            seconds = results[i].seconds if i in results else 0.0
            episode.seconds.append(seconds)
            episode.terminated = action == self.actions.stop
            if i in results and results[i].error is not None:
                episode.terminated, episode.error = True, str(results[i].error)
            if i in moved:
                episode.states.append(moved[i])
                episode.applied.append(action)
                episode.scores.append(self.suite.defined(scores[i]))
                episode.undefined = without(scores[i])
                episode.mask = self.actions.mask(episode.state.shape[:2], episode.history)
                episode.tried = {plan[1:]: result for plan, result in episode.tried.items() if plan[0] == action and len(plan) > 1}
            episode.truncated = not episode.terminated and len(episode.history) >= self.max_steps
            oriented = (self._signs * vector for vector in (episode.scores[0], before, episode.scores[-1]))
            reward = self.reward(Transition(*oriented, ends=episode.done))
            if not valid[i] or episode.error:
                reward += self.malformed_reward if action == MALFORMED else self.invalid_reward
            elif action != self.actions.stop:
                reward -= self.step_cost
            episode.total_reward += reward
            name = self.actions.name(action)
            outcomes.append(Outcome(reward, name, not valid[i], seconds, episode.terminated, episode.truncated, episode.error))
        return outcomes

    def follow(self, episodes: Sequence[Episode], plans: Sequence[Sequence[int]]) -> list[Episode]:
        """Take a plan in each episode and stop; returns other episodes, ended, and leaves the given ones as they are.

        All plans run together, each common beginning once (:func:`tool_actors.plans.run_plans`). A tool that the mask forbids when its turn
        comes is left out; a tool that fails, and ``max_steps``, end a plan early.

        Args:
            episodes: none ended; the same one may stand several times.
            plans: per episode indices of actions, without stop.
        """
        own, allowed = [episode.fork() for episode in episodes], []
        for episode, plan in zip(own, plans, strict=True):
            for action in plan:
                self._check_action(action)
            allowed.append(self._allowed(episode, plan))
        jobs = [(episode.state, [self.actions[action].tool for action in plan]) for episode, plan in zip(own, allowed, strict=True)]
        results = run_plans(self.executor, jobs)
        for step in range(max(map(len, allowed), default=0) + 1):
            live = [i for i, episode in enumerate(own) if not episode.done]
            actions = [allowed[i][step] if step < len(allowed[i]) else self.actions.stop for i in live]
            for i, action in zip(live, actions, strict=True):
                if action != self.actions.stop:
                    own[i].tried = {(action,): results[i][step]}
                    own[i].executions += 1
            self.step([own[i] for i in live], actions)
        return own

    def _allowed(self, episode: Episode, plan: Sequence[int]) -> list[int]:
        """The actions of a plan that the mask will allow."""
        taken, size = list(episode.history), episode.state.shape[:2]
        allowed = []
        for action in plan:
            if len(taken) < self.max_steps and self.actions.allows(action, self.actions.mask(size, taken)):
                allowed.append(action)
                taken.append(action)
                scale = self.executor.toolbox[self.actions[action].tool].spec.scale
                size = (size[0] * scale, size[1] * scale)
        return allowed

    def try_tools(self, episode: Episode, actions: Sequence[int], after: Sequence[int] = ()) -> list[Result]:
        """Run tools on an episode's image without taking them, as one batch.

        Stop, and what the mask forbids, leave the image as it is. Each tool counts as one of :attr:`Episode.executions`, once for an
        image; its result is kept until the episode moves on, and if it moves on by one of ``after``, what was tried behind that.

        Args:
            episode: is not moved.
            actions: tried, each by itself.
            after: tools that would be taken before.

        Raises:
            IrEnvError: an action is out of range, or ``after`` holds one that the mask forbids there, or that fails.
        """
        actions, after = [int(action) for action in actions], tuple(map(int, after))
        for action in (*after, *actions):
            self._check_action(action)
        state = self._reached(episode, after)
        mask = self.actions.mask(state.shape[:2], [*episode.history, *after]) if after else episode.mask
        tools = [action for action in dict.fromkeys(actions) if action != self.actions.stop and self.actions.allows(action, mask)]
        results = dict(zip(tools, self._run([(episode, (*after, action)) for action in tools]), strict=True))
        self._keep(episode, {(*after, action): result for action, result in results.items()})
        return [results.get(action) or Result(state, cached=True) for action in actions]

    def _reached(self, episode: Episode, plan: tuple[int, ...]) -> ImageState:
        """The state that a plan leads to from the episode's."""
        if not plan:
            return episode.state
        if plan not in episode.tried:
            size = self._reached(episode, plan[:-1]).shape[:2]
            if plan[-1] == self.actions.stop or not self.actions.allows(plan[-1], self.actions.mask(size, [*episode.history, *plan[:-1]])):
                raise IrEnvError(f"{self.actions.name(plan[-1])!r} cannot be taken before others here: try tools after allowed ones alone")
            self._keep(episode, {plan: self._run([(episode, plan)])[0]})
        state = episode.tried[plan].state
        if state is None:
            raise IrEnvError(f"nothing can be tried after {self.actions.name(plan[-1])!r}, which failed here: {episode.tried[plan].error}")
        return state

    def _keep(self, episode: Episode, results: dict[tuple[int, ...], Result]) -> None:
        """Remember what was tried; the oldest is forgotten where it is too much, and the newest never."""
        episode.tried |= results
        kept = sum(_size(result) for result in episode.tried.values())
        while kept > TRIED_BYTES and len(episode.tried) > 1:
            kept -= _size(episode.tried.pop(next(iter(episode.tried))))

    def _run(self, moves: Sequence[tuple[Episode, tuple[int, ...]]]) -> list[Result]:
        """What the last tool of a plan makes of the image that those before it lead to; what was tried is not run again."""
        missing = [(row, episode, plan) for row, (episode, plan) in enumerate(moves) if plan not in episode.tried]
        requests = [Request(self._reached(episode, plan[:-1]), self.actions[plan[-1]].tool) for _, episode, plan in missing]
        results = {row: result for (row, _, _), result in zip(missing, self.executor.run(requests), strict=True)}
        for _, episode, _ in missing:
            episode.executions += 1
        return [results.get(row) or episode.tried[plan] for row, (episode, plan) in enumerate(moves)]

    def _check_action(self, action: int) -> None:
        if not MALFORMED <= action < self.actions.n:
            raise IrEnvError(f"action {action} is out of range: 0 to {self.actions.n - 2} are tools, {self.actions.stop} is stop")

    # -- scoring -------------------------------------------------------------------------------------------------------------------

    def judge(self, states: Sequence[ImageState], metrics: Sequence[str] = NO_REFERENCE_METRICS) -> list[dict[str, float | None]]:
        """Scores of images by metrics that need no reference, whatever the suite; None where one has no value.

        Raises:
            IrEnvError: a metric is unknown, or compares with a reference.
        """
        key = tuple(metrics)
        if not key:
            return [{} for _ in states]
        if key not in self._judges:
            suite = MetricSuite(key, self.suite.device)
            if suite.needs_reference:
                compare = [metric.name for metric in suite.metrics if metric.needs_reference]
                raise MetricError(
                    f"{', '.join(compare)} compare with a clean image: only the oracle may; judge by {', '.join(NO_REFERENCE_METRICS)}"
                )
            self._judges[key] = suite
        suite = self._judges[key]
        vectors = self.executor.score(suite, states, [None] * len(states))
        return [
            {name: float(value) if np.isfinite(value) else None for name, value in zip(suite.names, vector, strict=True)}
            for vector in vectors
        ]

    def gain(self, episode: Episode) -> float:
        """What an episode has gained: the quality of its last image less that of its first, whenever the reward gives it; its total
        reward where the reward knows no quality."""
        quality = getattr(self.reward, "quality", None)
        if quality is None:
            return episode.total_reward
        return quality(self._signs * episode.scores[-1]) - quality(self._signs * episode.scores[0])

    def gains_of(self, episode: Episode, candidates: Sequence[int]) -> list[float]:
        """What each candidate action would gain now, without taking it (an oracle: it looks at the reference).

        The gain is the increment of the reward's quality where it has one, and the reward of the step otherwise.
        """
        self.try_tools(episode, candidates)
        trials = [episode.fork() for _ in candidates]
        outcomes = self.step(trials, candidates)
        if getattr(self.reward, "quality", None) is None:
            return [outcome.reward for outcome in outcomes]
        before = self.gain(episode)
        return [self.gain(trial) - before for trial in trials]


def _index(action: Any) -> int:
    try:
        return operator.index(action)
    except TypeError:
        raise IrEnvError(f"an action is a whole number, and this is {action!r}; ActionTable.index gives that of a tool") from None


def without(scores: np.ndarray) -> int:
    """Of how many metrics a vector has no value."""
    return int(np.isnan(scores).sum())


def _size(result: Result) -> int:
    return 0 if result.state is None else result.state.pixels.nbytes
