"""The vector form of ``ir_env/Restoration-v0``: one batched tool call and one batched metric call per vector step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from ir_env.env import check_render_mode
from ir_env.episode import Episode, Outcome
from ir_env.observation import RESET, batch_infos, inform, observation_space, observe
from ir_env.process import RestorationProcess
from ir_env.rendering import film_strip, transcript
from ir_env.reset_options import start_episodes
from ir_env.view import View
from tool_actors.errors import IrEnvError

__all__ = ["RestorationVectorEnv"]


class RestorationVectorEnv(gymnasium.vector.VectorEnv, EzPickle):
    """N sub-environments of ``ir_env/Restoration-v0`` (see :class:`ir_env.env.RestorationEnv`), stepped together.

    Autoreset is NEXT_STEP, the mode RLlib assumes: the step after the one that ended an episode ignores its action, runs no tool, and
    returns the first observation of the next episode with reward 0.

    Sub-environment i belongs to group i // group_size; the k-th episodes of a group's members start from the same sample, and share
    ``info["group"]``. ``reset`` brings the members back into step.

    With :attr:`autoreset` False, a sub-environment that has ended waits for ``reset``: its actions are ignored, it runs no tool, and its
    last observation stands.

    ``info`` holds arrays of length N under the keys of the single environment; ``metrics`` is a dict of arrays.

    Args:
        num_envs: N, a multiple of ``group_size``.
        group_size: G, sub-environments that draw the same sample.
        view: see :class:`ir_env.view.View`; a mapping of its settings, or None for the usual one.
        render_mode: ``rgb_array`` or ``ansi``: :meth:`render` returns one picture or text per sub-environment.
        process_arguments: those of :class:`ir_env.process.RestorationProcess`.
    """

    metadata = {"render_modes": ["rgb_array", "ansi"], "autoreset_mode": AutoresetMode.NEXT_STEP, "render_fps": 2}

    def __init__(
        self,
        num_envs: int = 1,
        group_size: int = 1,
        view: View | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **process_arguments: Any,
    ):
        if group_size < 1 or num_envs < 1 or num_envs % group_size:
            raise IrEnvError(f"num_envs ({num_envs}) must be a positive multiple of group_size ({group_size})")
        check_render_mode(render_mode, self.metadata)
        EzPickle.__init__(
            self,
            num_envs=num_envs,
            group_size=group_size,
            view=view,
            render_mode=render_mode,
            **process_arguments,
        )
        self.process = self._make_process(**process_arguments)
        self.actions = self.process.actions
        self.num_envs, self.group_size = num_envs, group_size
        self.view, self.render_mode = View.of(view), render_mode
        self.single_observation_space = observation_space(self.actions, self.view, self.process.max_steps)
        self.single_action_space = self.process.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.autoreset = True
        """Begin the next episode of a sub-environment one step after its last one ended; may be set at any time."""
        self.episodes: list[Episode] = []
        self._seeds: list[int] = []
        self._counts = np.zeros(num_envs, np.int64)
        """Episodes begun by each sub-environment; the next one's sample depends on (seed, group, count)."""

    _make_process: Callable[..., Any] = RestorationProcess
    _reset_outcome = RESET

    def reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None):
        self._reseed(seed)
        self._counts[:] = self._counts.max() + 1 if seed is None else 0
        self.episodes = start_episodes(self.process, [self._generator(i) for i in range(self.num_envs)], options)
        return self._observations(), self._infos([self._reset_outcome] * self.num_envs)

    def step(self, actions):
        if not self.episodes:
            raise IrEnvError("call reset() before step()")
        actions = self._split(actions)
        live = [i for i, episode in enumerate(self.episodes) if not episode.done]
        ended = [i for i, episode in enumerate(self.episodes) if episode.done]
        outcomes = [self._reset_outcome] * self.num_envs
        for i, outcome in zip(live, self.process.step([self.episodes[i] for i in live], [actions[i] for i in live]), strict=True):
            outcomes[i] = outcome
        if ended and self.autoreset:
            self._counts[ended] += 1
            for i, episode in zip(ended, start_episodes(self.process, [self._generator(i) for i in ended], None), strict=True):
                self.episodes[i] = episode
        rewards = np.array([outcome.reward for outcome in outcomes], np.float64)
        terminated = np.array([episode.terminated for episode in self.episodes])
        truncated = np.array([episode.truncated for episode in self.episodes])
        return self._observations(), rewards, terminated, truncated, self._infos(outcomes)

    def _split(self, actions) -> Any:
        """The actions, one per sub-environment."""
        return np.asarray(actions).reshape(self.num_envs)

    def action_masks(self) -> np.ndarray:
        """bool (N, n + 1): which actions are allowed now."""
        if not self.episodes:
            raise IrEnvError("call reset() before action_masks()")
        return np.stack([episode.mask for episode in self.episodes]).astype(bool)

    def render(self):  # pyrefly: ignore[bad-override]  # see RestorationEnv.render
        if self.render_mode is None or not self.episodes:
            return None
        draw = film_strip if self.render_mode == "rgb_array" else transcript
        return tuple(draw(episode, self.actions, self.process.suite.names) for episode in self.episodes)

    def _reseed(self, seed: int | Sequence[int | None] | None) -> None:
        groups = self.num_envs // self.group_size
        if seed is None:
            if not self._seeds:
                self._seeds = [int(s) for s in np.random.SeedSequence().generate_state(groups)]
        elif isinstance(seed, int | np.integer):
            self._seeds = [int(seed)] * groups
        else:
            if len(seed) != self.num_envs:
                raise IrEnvError(f"{len(seed)} seeds for {self.num_envs} sub-environments")
            fresh = np.random.SeedSequence().generate_state(groups)
            told = zip(seed[:: self.group_size], fresh, strict=True)
            self._seeds = [int(drawn if given is None else given) for given, drawn in told]

    def _generator(self, index: int) -> np.random.Generator:
        group = index // self.group_size
        return np.random.default_rng([self._seeds[group], group, int(self._counts[index])])

    def _observations(self) -> dict[str, np.ndarray]:
        seen = [observe(episode, self.view, self.process.max_steps) for episode in self.episodes]
        return {key: np.stack([each[key] for each in seen]) for key in seen[0]}

    def _group(self, index: int) -> int:
        """Number of the group's present round: its members share it, and their sample."""
        return int(self._counts[index]) * (self.num_envs // self.group_size) + index // self.group_size

    def _infos(self, outcomes: Sequence[Outcome]) -> dict[str, Any]:
        names = self.process.suite.names
        told = zip(self.episodes, outcomes, strict=True)
        return batch_infos([inform(episode, names, outcome, self._group(i)) for i, (episode, outcome) in enumerate(told)])
