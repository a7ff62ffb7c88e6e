"""The server's side of a session."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import EnvironmentMetadata

from ir_env import __version__
from ir_env.integrations.openenv.messages import RestorationAction, RestorationObservation, RestorationState, as_png
from ir_env.tool_episode import ToolEpisode
from tool_actors.errors import IrEnvError


class RestorationEnvironment(Environment[RestorationAction, RestorationObservation, RestorationState]):
    """An :class:`ir_env.tool_episode.ToolEpisode` for each session; sessions share the process, and so its tools and its cache.

    ``reset(seed=..., combo=..., sample=...)`` is that of ``ir_env/Restoration-v0``, whose option ``image`` is left out: a server reads no
    file because a client names it.
    """

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, episode: ToolEpisode):
        super().__init__()
        self._episode = episode
        self._state = RestorationState()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> RestorationObservation:
        if "image" in options:
            raise IrEnvError("reset option image: a server starts from its dataset alone; give a sample or a combo")
        episode = self._episode.reset(seed, options)
        self._state = RestorationState(episode_id=episode_id or uuid.uuid4().hex, sample=episode.sample)
        return self._observe(None)

    def step(self, action: RestorationAction, timeout_s: float | None = None, **_: Any) -> RestorationObservation:
        outcome = self._episode.call(action.tool)
        self._state.step_count += 1
        self._state.total_reward = self._episode.episode.total_reward
        return self._observe(outcome.reward)

    @property
    def state(self) -> RestorationState:
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        return EnvironmentMetadata(
            name="ir_env", description="Choose restoration tools for a degraded photograph, and stop.", version=__version__
        )

    def _observe(self, reward: float | None) -> RestorationObservation:
        held, info = self._episode, self._episode.info
        allowed = [held.actions[index] for index in np.flatnonzero(held.episode.mask[:-1])]
        return RestorationObservation(
            image=as_png(held.image),
            tools={action.tool: action.task for action in allowed},
            calls=[held.actions.name(index) for index in held.episode.history],
            metrics=info["metrics"],
            sample=info["sample"],
            combo=info["combo"],
            invalid=info["invalid"],
            truncated=held.outcome.truncated,
            error=info["error"],
            reward=reward,
            done=held.done,
        )
