"""What a dispatcher keeps for its callers, without Ray: until they have it, and no longer."""

import asyncio

import pytest

from tool_actors.errors import IrEnvError
from tool_actors.pool.config import Placement, PoolConfig
from tool_actors.pool.dispatcher import Dispatcher
from tool_actors.pool.mailbox import Mailbox
from tool_actors.pool.messages import UNKNOWN, Delivery, Outcome, Service, Work

PATIENCE_S = 60.0


def done(value: int) -> asyncio.Future:
    future = asyncio.get_running_loop().create_future()
    future.set_result(Outcome(value, size=value))
    return future


async def begun(work) -> asyncio.Task:
    """The task of something that waits, when it has begun to."""
    task = asyncio.ensure_future(work)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def until(condition) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_delivery_is_given_again_until_the_next_is_asked_for(monkeypatch):
    async def main():
        mailbox = Mailbox()
        assert mailbox.expect(1) and mailbox.expect(2) and not mailbox.expect(1), "what is sent again is not new"
        mailbox.put(1, done(10))
        first = Delivery(1, {1: Outcome(10, size=10)})
        assert await mailbox.collect(0) == first
        assert await mailbox.collect(0) == first, "it was lost on the way"
        assert mailbox.kept_bytes == 10
        waiting = await begun(mailbox.collect(1))
        assert mailbox.kept_bytes == 0 and mailbox.due
        mailbox.put(2, done(20))
        assert await waiting == Delivery(2, {2: Outcome(20, size=20)})
        monkeypatch.setattr("tool_actors.pool.mailbox.COLLECT_S", 0.0)
        assert await mailbox.collect(2) == UNKNOWN and not mailbox.due and mailbox.kept_bytes == 0

    asyncio.run(main())


def test_a_call_that_was_cut_off_takes_nothing_from_the_one_that_follows_it():
    async def main():
        mailbox = Mailbox()
        mailbox.expect(1)
        calls = [await begun(mailbox.collect(0)) for _ in range(2)]
        mailbox.put(1, done(10))
        assert await asyncio.gather(*calls) == [Delivery(1, {1: Outcome(10, size=10)})] * 2

    asyncio.run(main())


def test_who_waits_at_a_mailbox_that_is_closed_or_new_is_told():
    async def main():
        mailbox = Mailbox()
        assert await mailbox.collect(3) == UNKNOWN, "another dispatcher made the third delivery"
        mailbox.expect(1)
        waiting = await begun(mailbox.collect(0))
        mailbox.close()
        mailbox.put(1, done(10))
        assert await waiting == UNKNOWN and mailbox.kept_bytes == 0

    asyncio.run(main())


class Instance:
    """Answers when it may."""

    pid, specs = 0, []

    def __init__(self, may: asyncio.Event, ran: list):
        self.may, self.ran = may, ran

    async def ready(self): ...

    async def run(self, jobs):
        self.ran += [job.payload for job in jobs]
        await self.may.wait()
        return [Outcome(job.payload, size=100) for job in jobs]

    def kill(self): ...


def dispatched(monkeypatch, test, **settings):
    """Runs ``test(dispatcher, may, ran)``."""

    async def main():
        may, ran = asyncio.Event(), []
        monkeypatch.setattr(Dispatcher, "_launch", lambda self, placement: Instance(may, ran))
        dispatcher = Dispatcher([PoolConfig(toolbox=["tv.denoise"], placements=(Placement(replicas=1),), **settings)], 0)
        await dispatcher.ready()
        await test(dispatcher, may, ran)
        await dispatcher.stop()

    asyncio.run(main())


def works(*values):
    return {value: Work(Service("tool", "tv.denoise"), None, None, value) for value in values}


def test_what_is_sent_again_runs_once(monkeypatch):
    async def test(dispatcher, may, ran):
        await dispatcher.post("a", works(1, 2), {})
        await dispatcher.post("a", works(1, 2, 3), {})
        may.set()
        received, outcomes = 0, {}
        while len(outcomes) < 3:
            received, answered = await dispatcher.collect("a", received)
            outcomes |= answered
        assert sorted(ran) == [1, 2, 3] and {ticket: each.value for ticket, each in outcomes.items()} == {1: 1, 2: 2, 3: 3}
        assert {each.batch for each in outcomes.values()} == {1, 2}, "the first runs alone, the others together"

    dispatched(monkeypatch, test)


def test_callers_that_vanish_expire_and_those_that_wait_do_not(monkeypatch):
    async def test(dispatcher, may, ran):
        await dispatcher.post("waits", works(1), {})
        waiting = await begun(dispatcher.collect("waits", 0))
        await dispatcher.post("vanishes", works(2), {})
        await until(lambda: "vanishes" not in dispatcher._mailboxes)
        assert not waiting.done(), "it was silent for as long"
        may.set()
        assert (await waiting).outcomes[1].value == 1
        await dispatcher.post("vanishes, too", works(3), {})
        await until(lambda: ran == [1, 2, 3] and not dispatcher._mailboxes)
        status = await dispatcher.status()
        assert (status["mailboxes"], status["kept_bytes"], status["callers"]) == (0, 0, 0)

    dispatched(monkeypatch, test, caller_timeout_s=0.1)
    with pytest.raises(IrEnvError, match="caller_timeout_s"):
        PoolConfig(caller_timeout_s=0)
