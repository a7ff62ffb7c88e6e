"""What a dispatcher keeps for one connection: until the caller has it, and no longer."""

from __future__ import annotations

import asyncio
import contextlib

from tool_actors.pool.messages import UNKNOWN, Delivery, Outcome

COLLECT_S = 20.0
"""A caller that waits for answers asks again after so long."""


class Mailbox:
    """The answers to a connection's jobs; all of it in one event loop.

    A delivery is kept until the caller asks for the next one, which says that it came: if it was lost on the way, it is given again.
    """

    def __init__(self):
        self._tickets: set[int] = set()
        """Of jobs whose answers are not known to have reached the caller."""
        self._outcomes: dict[int, Outcome] = {}
        self._delivery = UNKNOWN
        self._changed = asyncio.Event()
        self._collectors = 0
        self._closed = False
        self._heard = asyncio.get_running_loop().time()

    def expect(self, ticket: int) -> bool:
        """Whether the job is new, and not one that a caller sends again because it does not know that it came."""
        self._heard = asyncio.get_running_loop().time()
        new = ticket not in self._tickets
        self._tickets.add(ticket)
        return new

    def put(self, ticket: int, done: asyncio.Future[Outcome]) -> None:
        if not self._closed:
            self._outcomes[ticket] = done.result()
            self._changed.set()

    async def collect(self, received: int) -> Delivery:
        """The delivery after ``received``, as soon as there is one; :data:`UNKNOWN` if none is due, and if ``received`` is not known."""
        self._collectors += 1
        try:
            return await self._collect(received)
        finally:
            self._collectors -= 1
            self._heard = asyncio.get_running_loop().time()

    async def _collect(self, received: int) -> Delivery:
        if received > self._delivery.number:
            return UNKNOWN  # the dispatcher that made that delivery is gone, and the caller's jobs with it
        if received == self._delivery.number:
            self._tickets.difference_update(self._delivery.outcomes)
            self._delivery = Delivery(received, {})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), COLLECT_S)
        # a call that was cut off may have waited, too, and have made the delivery
        if received == self._delivery.number and not self._closed:
            if not self._tickets:
                return UNKNOWN
            self._delivery, self._outcomes = Delivery(received + 1, self._outcomes), {}
            self._changed.clear()
        return UNKNOWN if self._closed else self._delivery

    def close(self) -> None:
        """Drop everything; who waits is told."""
        self._closed = True
        self._tickets, self._outcomes, self._delivery = set(), {}, UNKNOWN
        self._changed.set()

    @property
    def due(self) -> bool:
        """Whether jobs are open."""
        return bool(self._tickets)

    @property
    def kept_bytes(self) -> int:
        """Size of the answers in it."""
        return sum(outcome.size for outcomes in (self._outcomes, self._delivery.outcomes) for outcome in outcomes.values())

    def silence_s(self) -> float:
        """For how long nothing was heard of the caller; 0 while it waits for a delivery."""
        return 0.0 if self._collectors else asyncio.get_running_loop().time() - self._heard
