"""An episode for those who call tools by name and see images: servers, and engines that train language models.

It is an :class:`ir_env.episode.Episode` of a :class:`ir_env.process.RestorationProcess` and nothing beside it, so actions, rewards and
images are those of ``ir_env/Restoration-v0``, and an equal seed gives an equal episode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from ir_env.actions import MALFORMED, ActionTable
from ir_env.episode import Episode, Outcome
from ir_env.observation import RESET, inform
from ir_env.process import RestorationProcess
from ir_env.reset_options import start_episodes
from tool_actors.errors import IrEnvError

__all__ = ["STOP", "ToolEpisode"]

STOP = "stop"


class ToolEpisode:
    """One episode after another.

    >>> episode = ToolEpisode(RestorationProcess())
    >>> episode.reset(seed=0)
    >>> outcome = episode.call("noise.gaussian25")
    >>> outcome = episode.call("stop")

    Args:
        process: may be shared with other episodes.
        lock: held while tools and metrics run; episodes of one process in several threads share one, unless a pool runs its tools, whose
            callers need none.
    """

    def __init__(self, process: RestorationProcess, lock: AbstractContextManager | None = None):
        self.process, self._lock = process, lock or contextlib.nullcontext()
        self._rng: np.random.Generator | None = None
        self._episode: Episode | None = None
        self.outcome = RESET
        """What the last call did."""

    @property
    def actions(self) -> ActionTable:
        return self.process.actions

    @property
    def episode(self) -> Episode:
        if self._episode is None:
            raise IrEnvError("the episode has not begun: call reset() first")
        return self._episode

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> Episode:
        """Begin an episode; seed and options are those of :class:`ir_env.env.RestorationEnv`."""
        if seed is not None or self._rng is None:
            self._rng, _ = seeding.np_random(seed)
        with self._lock:
            [self._episode] = start_episodes(self.process, [self._rng], options)
        self.outcome = RESET
        return self._episode

    def call(self, tool: str, task: str | None = None) -> Outcome:
        """Apply a tool, or ``stop``.

        Args:
            tool: its name; an unknown one is a malformed action, which runs nothing, and whose outcome says so.
            task: what it is called for; a tool of another task is malformed, too.
        """
        return self.take(self._index(tool, task))

    def take(self, action: int) -> Outcome:
        """Apply the action of an index, see :meth:`ir_env.process.RestorationProcess.step`."""
        with self._lock:
            [self.outcome] = self.process.step([self.episode], [action])
        return self.outcome

    def _index(self, tool: str, task: str | None) -> int:
        if tool == STOP:
            return self.actions.stop
        named = [index for index, action in enumerate(self.actions) if action.tool == tool and task in (None, action.task)]
        return named[0] if named else MALFORMED

    @property
    def done(self) -> bool:
        return self.episode.done

    @property
    def image(self) -> np.ndarray:
        """The current one, uint8 (H, W, 3)."""
        return self.episode.state.as_uint8()

    @property
    def info(self) -> dict[str, Any]:
        """That of the environments, see :func:`ir_env.observation.inform`."""
        return inform(self.episode, self.process.suite.names, self.outcome)

    @property
    def rewards(self) -> dict[str, float]:
        """The metrics of the current image, oriented so that higher is better: what GRPO takes of a rollout by ``rewards="final"``."""
        oriented = self.process.suite.signs * self.episode.scores[-1]
        return dict(zip(self.process.suite.names, map(float, oriented), strict=True))

    @property
    def invalid_share(self) -> float:
        """Of the calls so far, those that were malformed or forbidden and so made no image, or failed; 0 before the first."""
        episode = self.episode
        taken = len(episode.applied) + (bool(episode.history) and episode.history[-1] == self.actions.stop)
        return 1 - taken / len(episode.history) if episode.history else 0.0
