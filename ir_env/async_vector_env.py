"""Sub-environments that do not wait for one another: for callers that can act on whichever is ready."""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from ir_env.episode import Outcome
from ir_env.observation import RESET, inform, observe
from ir_env.reset_options import start_episodes
from ir_env.vector_env import RestorationVectorEnv
from tool_actors.errors import IrEnvError

__all__ = ["AsyncRestorationEnv", "Ready"]


@dataclass(frozen=True, eq=False)
class Ready:
    """What a sub-environment has to tell after a step, or after its reset (reward 0)."""

    env_id: int
    observation: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]


class AsyncRestorationEnv(RestorationVectorEnv):
    """Sub-environments of ``ir_env/Restoration-v0`` in EnvPool's manner: :meth:`send` actions, :meth:`recv` those that are ready.

    A slow tool in one sub-environment does not keep the others. Each step runs in a thread of its own, so this wants an executor that many
    threads may use, ``executor="pool"``, which makes batches of what the threads ask for. ``step`` still steps all together.

    An action sent to a sub-environment that has ended, or failed, begins its next episode, as in NEXT_STEP autoreset. RLlib's env runners
    step all sub-environments together, so they use :class:`RestorationVectorEnv`.

    >>> env = AsyncRestorationEnv(num_envs=32, executor="pool")
    >>> env.async_reset(seed=0)
    >>> while training:
    ...     ready = env.recv(at_least=8)
    ...     env.send({each.env_id: policy(each.observation) for each in ready})
    """

    def __init__(self, num_envs: int = 1, **arguments: Any):
        self._threads = ThreadPoolExecutor(max(num_envs, 1), thread_name_prefix="sub-environment")
        super().__init__(num_envs, **arguments)
        from tool_actors.executor import LocalExecutor

        if isinstance(self.process.executor, LocalExecutor):
            raise IrEnvError("AsyncRestorationEnv needs an executor that serves several threads: executor='pool' (see `ir-env pool start`)")
        self._ready: queue.SimpleQueue[tuple[int, Ready | BaseException]] = queue.SimpleQueue()
        self._taken: list[Ready] = []
        """Out of the queue and not received, as an error or a time-out came in between."""
        self._under_way: set[int] = set()
        """Those that :meth:`recv` has not given back."""

    def async_reset(self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None) -> None:
        """Begin an episode in every sub-environment; :meth:`recv` gives the first observations as they come."""
        if self._under_way:
            raise IrEnvError(f"{len(self._under_way)} sub-environments are under way: receive them before a reset")
        self._reseed(seed)
        self._counts[:] = self._counts.max() + 1 if seed is None else 0
        # only send() and _raise() meet what has not begun
        self.episodes = [None] * self.num_envs  # pyrefly: ignore[bad-assignment]
        for env_id in range(self.num_envs):
            self._spawn(env_id, self._begin, options)

    def send(self, actions: Mapping[int, int]) -> None:
        """Actions by sub-environment, none of which may be under way; returns at once."""
        for env_id, action in actions.items():
            if env_id in self._under_way:
                raise IrEnvError(f"sub-environment {env_id} is under way: receive it before the next action")
            if not self.episodes:
                raise IrEnvError("call async_reset() before send()")
            # there is no episode where the first one could not begin
            if self.episodes[env_id] is None or self.episodes[env_id].done:
                self._counts[env_id] += 1
                self._spawn(env_id, self._begin, None)
            else:
                self._spawn(env_id, self._step, int(action))

    def recv(self, at_least: int = 1, timeout: float | None = None) -> list[Ready]:
        """Those that are ready: at least so many, in the order in which they became so.

        Whatever it raises, those that are ready stay for the next call.

        Raises:
            IrEnvError: fewer are under way, or fewer became ready within ``timeout`` seconds; or a sub-environment failed, which is named.
                Its episode has ended with that, and it may be sent an action again, which begins its next one.
        """
        if at_least > len(self._under_way):
            raise IrEnvError(f"{at_least} sub-environments are asked for and {len(self._under_way)} are under way")
        end = None if timeout is None else time.monotonic() + timeout
        while len(self._taken) < at_least or not self._ready.empty():
            try:
                env_id, answer = self._ready.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                raise IrEnvError(
                    f"{len(self._taken)} of {at_least} sub-environments became ready within {timeout:g} s: receive them with a lower "
                    "at_least, or wait longer"
                ) from None
            if isinstance(answer, BaseException):
                self._raise(env_id, answer)
            self._taken.append(answer)
        ready, self._taken = self._taken, []
        self._under_way.difference_update(each.env_id for each in ready)
        return ready

    def _raise(self, env_id: int, error: BaseException) -> NoReturn:
        self._under_way.discard(env_id)
        episode = self.episodes[env_id]
        if episode is not None and not episode.done:
            episode.terminated, episode.error = True, str(error)
        raise IrEnvError(f"sub-environment {env_id} failed: {error}") from error

    def close_extras(self, **kwargs: Any) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _spawn(self, env_id: int, work, argument: Any) -> None:
        self._under_way.add(env_id)

        def run() -> None:
            try:
                answer = work(env_id, argument)
            except BaseException as error:
                answer = error
            self._ready.put((env_id, answer))

        self._threads.submit(run)

    def _begin(self, env_id: int, options: dict[str, Any] | None) -> Ready:
        [self.episodes[env_id]] = start_episodes(self.process, [self._generator(env_id)], options)
        return self._tell(env_id, RESET)

    def _step(self, env_id: int, action: int) -> Ready:
        [outcome] = self.process.step([self.episodes[env_id]], [action])
        return self._tell(env_id, outcome)

    def _tell(self, env_id: int, outcome: Outcome) -> Ready:
        episode = self.episodes[env_id]
        observation = observe(episode, self.view, self.process.max_steps)
        info = inform(episode, self.process.suite.names, outcome, self._group(env_id))
        return Ready(env_id, observation, outcome.reward, episode.terminated, episode.truncated, info)
