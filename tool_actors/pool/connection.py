"""A caller's connection to a dispatcher: whatever is ready to go goes out in one message, whatever is ready to come back comes in one."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
import ray
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError

from tool_actors.errors import IrEnvError
from tool_actors.executor import Scorer
from tool_actors.pool.config import PoolConfig
from tool_actors.pool.messages import Delivery, Outcome, Work
from tool_actors.pool.pixels import PixelsLost, fetch
from tool_actors.pool.scheduler import PoolFailure

LOST = (RayActorError, ObjectLostError, OutOfMemoryError)
"""What Ray raises when an actor, or an answer that is still in its node's memory, is lost."""
PAUSE_S = 0.5
"""Between looks at whether a dispatcher that was lost is back."""
IDLE_S = 1.0
"""A connection on which nothing was sent for so long, and no answer is due, ends."""
CLOSE_S = 10.0
"""For so long :meth:`Connection.close` waits for the threads, which may wait for a dispatcher that does not answer."""


class _Open(NamedTuple):
    """A job without an answer."""

    work: Work
    scorer: Scorer | None
    future: Future[Outcome]
    asked: int = 1
    """How often: again when pixels were lost."""


class Connection:
    """Sends jobs, and sets the futures of their answers; safe to use from several threads.

    While a message is under way the next jobs gather, so many callers cost few messages and a lone one does not wait. If the dispatcher is
    lost, what has not been answered is sent again when it is back.

    It ends when it has nothing to do, or is closed: its two threads with it, and whatever the dispatcher keeps for it. A caller then makes
    another, which shares nothing with it, so that no late message of the one can be taken for the other's.
    """

    def __init__(self, dispatcher: ray.actor.ActorHandle, config: PoolConfig):
        self._dispatcher, self._config = dispatcher, config
        self._address = uuid.uuid4().hex
        self._tickets = itertools.count(1)
        self._outgoing: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """Tickets; None to look whether it is over."""
        self._open: dict[int, _Open] = {}
        self._changed = threading.Condition()
        """Of what is open, and of the end."""
        self._ended = False
        self._threads = [threading.Thread(target=work, name="pool connection", daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def send(self, work: Work, scorer: Scorer | None = None) -> Future[Outcome] | None:
        """A future of the outcome; None if the connection has ended."""
        future: Future[Outcome] = Future()
        future.set_running_or_notify_cancel()
        with self._changed:
            if self._ended:
                return None
            ticket = next(self._tickets)
            self._open[ticket] = _Open(work, scorer, future)
            self._outgoing.put(ticket)
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """End now, and wait for it; what has no answer fails with an :class:`IrEnvError`."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._outgoing.put(None)
        self._fail(IrEnvError("the executor was closed before this was answered"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(CLOSE_S)

    def release(self) -> None:
        """End as soon as no answer is due. Takes no lock, so that a finaliser may call it, wherever it runs."""
        self._outgoing.put(None)

    # -- out -----------------------------------------------------------------------------------------------------------------------

    def _send(self) -> None:
        while not self._over(tickets := self._gather()):
            if not tickets:
                continue
            try:
                ray.get(self._post(tickets))
            except LOST:
                continue  # the other thread's call fails, too, and sends everything again
            except Exception as error:
                self._fail(own_error(error), tickets)
        # where Ray has been shut down, a call would start it again
        if ray.is_initialized():
            # whatever this raises: the dispatcher drops what it keeps for those that it does not hear of
            with contextlib.suppress(Exception):
                ray.get(self._dispatcher.release.remote(self._address))

    def _gather(self) -> list[int]:
        """Tickets of what is to be sent; none if there was nothing for a while."""
        tickets: list[int | None] = []
        with contextlib.suppress(queue.Empty):
            tickets.append(self._outgoing.get(timeout=IDLE_S))
            while True:
                tickets.append(self._outgoing.get_nowait())
        return [ticket for ticket in tickets if ticket is not None]

    def _over(self, tickets: Sequence[int]) -> bool:
        with self._changed:
            if not tickets and not self._open:
                self._ended = True
                self._changed.notify_all()
            return self._ended

    def _post(self, tickets: Sequence[int]) -> ray.ObjectRef:
        with self._changed:
            jobs = {ticket: self._open[ticket] for ticket in tickets if ticket in self._open}
        works = {ticket: job.work for ticket, job in jobs.items()}
        scorers = {job.work.service: job.scorer for job in jobs.values() if job.scorer is not None}
        return self._dispatcher.post.remote(self._address, works, scorers)

    # -- in ------------------------------------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        received = losses = 0
        lost = False
        while self._due():
            try:
                if lost:
                    self._send_again()
                received, some = self._deliver(ray.get(self._dispatcher.collect.remote(self._address, received)))
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
            lost = received == 0
            losses = 0 if some else losses

    def _deliver(self, delivery: Delivery) -> tuple[int, bool]:
        """Its number, and whether anything was in it; who waits for the next must not hold on to it."""
        with self._changed:
            answered = [(self._open.pop(ticket, None), outcome) for ticket, outcome in delivery.outcomes.items()]
        values = fetch([outcome.value for _, outcome in answered])
        for (job, outcome), value in zip(answered, values, strict=True):
            lost = next((each for each in (value, outcome.error) if isinstance(each, PixelsLost)), None)
            if job is None or (lost and self._ask_again(job)):
                continue
            if isinstance(value, np.ndarray) and not value.flags.owndata:
                value = value.copy()  # a view would keep the object, or the whole delivery, in the store as long as the caller keeps it
            job.future.set_result(outcome._replace(value=None, error=lost) if lost else outcome._replace(value=value))
        return delivery.number, bool(answered)

    def _ask_again(self, job: _Open) -> bool:
        """Send a job whose pixels were lost once more; False if that was done too often, or the connection has ended."""
        with self._changed:
            if self._ended or job.asked >= self._config.attempts:
                return False
            ticket = next(self._tickets)
            self._open[ticket] = job._replace(work=job.work._replace(again=True), asked=job.asked + 1)
            self._outgoing.put(ticket)
        return True

    def _due(self) -> bool:
        """True when an answer is due; False when the connection has ended."""
        with self._changed:
            self._changed.wait_for(lambda: self._open or self._ended)
            return not self._ended

    def _send_again(self) -> None:
        """Everything without an answer, when the dispatcher is back; raises :class:`PoolFailure` if it does not come back in time."""
        end = time.monotonic() + self._config.start_timeout_s
        while not self._ended:
            try:
                ray.get(self._dispatcher.ready.remote())
                break
            except ActorDiedError:
                raise
            except LOST as error:
                if time.monotonic() > end:
                    raise self._silence(error) from None
            time.sleep(PAUSE_S)
        with self._changed:
            tickets = list(self._open)
        ray.get(self._post(tickets))

    def _silence(self, error: Exception) -> PoolFailure:
        return PoolFailure(f"the pool does not answer: {short(error)} Does it still run? `ir-env pool status`")

    def _fail(self, error: BaseException, tickets: Sequence[int] | None = None) -> None:
        with self._changed:
            jobs = [self._open.pop(ticket) for ticket in (list(self._open) if tickets is None else tickets) if ticket in self._open]
        for job in jobs:
            job.future.set_exception(error)


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
