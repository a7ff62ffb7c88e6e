"""A caller's line to a dispatcher: whatever is ready to go goes out in one message, whatever is ready to come back comes in one."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from tool_actors.errors import IrEnvError
from tool_actors.pool.config import PoolConfig
from tool_actors.pool.scheduler import PoolFailure

LOST = (RayActorError, ObjectLostError, OutOfMemoryError)
"""What Ray raises when an actor, or an answer that is still in its node's memory, is lost."""
PAUSE_S = 0.5
"""Between looks at whether a dispatcher that was lost is back."""


class Line:
    """Sends jobs, and sets the futures of their answers; safe to use from several threads.

    While a message is under way the next jobs gather, so many callers cost few messages and a lone one does not wait. If the dispatcher is
    lost, what has not been answered is sent again when it is back.
    """

    def __init__(self, dispatcher: ray.actor.ActorHandle, caller: str, config: PoolConfig):
        self._dispatcher, self._caller, self._config = dispatcher, caller, config
        self._tickets = itertools.count(1)
        self._outgoing: queue.SimpleQueue = queue.SimpleQueue()
        self._open: dict[int, tuple[tuple, Any, Future]] = {}
        """Jobs without an answer, with their scorers and futures, by ticket."""
        self._something = threading.Condition()
        self._started = False

    def send(self, job: tuple, scorer: Any = None) -> Future:
        """A future of (value, error, seconds, cached) for a job (service, shape, key, payload)."""
        future: Future = Future()
        future.set_running_or_notify_cancel()
        with self._something:
            ticket = next(self._tickets)
            self._open[ticket] = (job, scorer, future)
            self._something.notify()
            if not self._started:
                self._started = True
                for work in (self._send, self._receive):
                    threading.Thread(target=work, name="pool line", daemon=True).start()
        self._outgoing.put(ticket)
        return future

    def _send(self) -> None:
        while True:
            tickets = [self._outgoing.get()]
            while not self._outgoing.empty():
                tickets.append(self._outgoing.get())
            try:
                ray.get(self._post(tickets))
            except LOST:
                continue  # the other thread's call fails, too, and sends everything again
            except Exception as error:
                self._fail(own_error(error), tickets)

    def _post(self, tickets: list[int]) -> ray.ObjectRef:
        with self._something:
            jobs = [(ticket, *self._open[ticket][0]) for ticket in tickets if ticket in self._open]
            scorers = {self._open[job[0]][0][0]: self._open[job[0]][1] for job in jobs if self._open[job[0]][1] is not None}
        return self._dispatcher.post.remote(self._caller, jobs, scorers)

    def _receive(self) -> None:
        received = losses = 0
        lost = False
        while True:
            with self._something:
                while not self._open:
                    self._something.wait()
            try:
                if lost:
                    self._send_again()
                number, answers = ray.get(self._dispatcher.collect.remote(self._caller, received))
            except LOST as error:
                lost, received, losses = True, 0, losses + 1
                if losses >= self._config.attempts:
                    self._fail(self._silence(error))
                    losses = 0
                continue
            except Exception as error:
                self._fail(own_error(error))
                continue
            # number 0: the dispatcher was lost and is back, unnoticed here
            lost, received = number == 0, number
            losses = 0 if answers else losses
            for ticket, answer in answers:
                with self._something:
                    entry = self._open.pop(ticket, None)
                if entry is not None:
                    entry[2].set_result(answer)

    def _send_again(self) -> None:
        """Everything without an answer, when the dispatcher is back; raises :class:`PoolFailure` if it does not come back in time."""
        end = time.monotonic() + self._config.start_timeout_s
        while True:
            try:
                ray.get(self._dispatcher.ready.remote())
                break
            except ActorDiedError:
                raise
            except LOST as error:
                if time.monotonic() > end:
                    raise self._silence(error) from None
            time.sleep(PAUSE_S)
        ray.get(self._post(list(self._open)))

    def _silence(self, error: Exception) -> PoolFailure:
        return PoolFailure(f"the pool does not answer: {short(error)} Does it still run? `ir-env pool status`")

    def _fail(self, error: BaseException, tickets: list[int] | None = None) -> None:
        with self._something:
            entries = [self._open.pop(ticket) for ticket in (list(self._open) if tickets is None else tickets) if ticket in self._open]
        for *_, future in entries:
            future.set_exception(error)


def own_error(error: BaseException) -> BaseException:
    """The project's own error inside Ray's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, IrEnvError):
            return cause
        cause = (cause.cause if isinstance(cause, RayTaskError) else None) or cause.__cause__
    return error


def short(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
