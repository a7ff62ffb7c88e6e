"""The pool's scheduling, without Ray: instances here are coroutines that take as long as the test says."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tool_actors.pool.config import Placement, PoolConfig
from tool_actors.pool.messages import Outcome, Service
from tool_actors.pool.scheduler import InstanceLost, Job, PoolFailure, Scheduler


class Instance:
    """Doubles numbers; ``spoil`` may make a batch raise, or last."""

    def __init__(self, log, spoil=None, seconds=0.0, start=None):
        self.log, self.spoil, self.seconds, self.start = log, spoil, seconds, start
        self.killed, self.turn = False, asyncio.Lock()

    async def ready(self):
        if self.start:
            await self.start()

    async def run(self, jobs):
        async with self.turn:
            if self.killed:
                raise InstanceLost("killed")
            self.log.append([job.payload for job in jobs])
            if self.spoil:
                await self.spoil(self, jobs)
            await asyncio.sleep(self.seconds)
        return [Outcome(job.payload * 2, seconds=0.001, size=8) for job in jobs]

    def kill(self):
        self.killed = True


def pool(log, replicas=1, spoil=None, seconds=0.0, start=None, **arguments):
    config = PoolConfig(**{"placements": [Placement(replicas=replicas)], **arguments})
    bounds = [placement.bounds for placement in config.placements]
    serves = lambda placement, service: config.placements[placement].holds(service.name)  # noqa: E731
    return Scheduler(config, bounds, serves, lambda placement: Instance(log, spoil, seconds, start))


def job(value, caller="a", service="tool", shape=1, key=True):
    return Job(Service("tool", service), shape, (service, value) if key is True else key, value, caller)


async def answers(scheduler, jobs):
    return await asyncio.gather(*(scheduler.submit(each) for each in jobs))


def test_answers_come_in_order_and_batches_form_while_the_instance_is_busy():
    async def main():
        log = []
        scheduler = pool(log, seconds=0.01, max_batch=8)
        await scheduler.start()
        outcomes = await answers(scheduler, [job(i) for i in range(20)])
        assert [outcome.value for outcome in outcomes] == [2 * i for i in range(20)]
        assert len(log[0]) == 1, "a lone request never waits for company while an instance is idle"
        assert [len(batch) for batch in log] == [1, 8, 8, 3]
        scheduler.stop()

    asyncio.run(main())


def test_a_backlog_is_shared_among_instances():
    async def main():
        log = []
        scheduler = pool(log, replicas=4, seconds=0.01, max_batch=64)
        await scheduler.start()
        while scheduler.status()["instances"] < 4:
            await asyncio.sleep(0.005)
        await answers(scheduler, [job(i) for i in range(4)] + [job(i) for i in range(4, 40)])
        assert max(map(len, log)) <= 10
        scheduler.stop()

    asyncio.run(main())


def test_identical_jobs_run_once_and_results_are_kept_within_the_bound():
    async def main():
        log = []
        scheduler = pool(log, seconds=0.01, cache_bytes=80)
        await scheduler.start()
        outcomes = await answers(scheduler, [job(1), job(1), job(1)])
        assert [outcome.cached for outcome in outcomes] == [False, True, True]
        [again] = await answers(scheduler, [job(1)])
        assert again.cached and again.value == 2 and sum(map(len, log)) == 1
        different = await answers(scheduler, [job(3, key=None), job(3, key=None)])
        assert not any(outcome.cached for outcome in different)
        await answers(scheduler, [job(i) for i in range(100)])
        status = scheduler.status()
        assert status["cache_bytes"] <= 80 and status["under_way"] == 0 and status["queued"] == 0
        stats = scheduler.stats[Service("tool", "tool")]
        assert stats.requests == 106 and stats.hits + stats.joined + stats.executions == 106
        scheduler.stop()

    asyncio.run(main())


def test_callers_take_turns():
    async def main():
        log = []
        scheduler = pool(log, seconds=0.001, max_batch=1, max_in_flight=2)
        await scheduler.start()
        greedy = [job(i, "greedy") for i in range(50)]
        modest = [job(1000 + i, "modest") for i in range(3)]
        await answers(scheduler, greedy + modest)
        order = [value for [value] in log]
        assert max(order.index(1000 + i) for i in range(3)) < 12, "the modest caller is not kept behind fifty requests of another"
        scheduler.stop()

    asyncio.run(main())


def test_a_fuller_batch_overtakes_but_not_for_long():
    async def main():
        log = []
        scheduler = pool(log, seconds=0.02, max_batch=4, max_wait_ms=30)
        await scheduler.start()
        first = scheduler.submit(job(0))
        lone = scheduler.submit(job(1, service="rare"))
        crowd = [scheduler.submit(job(10 + i)) for i in range(40)]
        await asyncio.gather(first, lone, *crowd)
        position = log.index([1])
        assert 1 < position <= 4
        scheduler.stop()

    asyncio.run(main())


def test_what_is_lost_with_an_instance_runs_on_another_alone():
    async def main():
        log = []

        async def poison(instance, jobs):
            if any(each.payload == 7 for each in jobs) and len([b for b in log if 7 in b]) < 3:
                raise InstanceLost("killed")

        scheduler = pool(log, seconds=0.005, spoil=poison)
        await scheduler.start()
        outcomes = await answers(scheduler, [job(i) for i in range(12)])
        assert [outcome.value for outcome in outcomes] == [2 * i for i in range(12)]
        assert [7] in log and scheduler.lost == 2
        assert max(Counter(value for batch in log for value in batch).values()) <= 3
        scheduler.stop()

    asyncio.run(main())


def test_a_request_that_always_kills_is_given_up_after_three_and_takes_nobody_with_it():
    async def main():
        log = []

        async def poison(instance, jobs):
            if any(each.payload == 7 for each in jobs):
                raise InstanceLost("killed")

        scheduler = pool(log, spoil=poison)
        await scheduler.start()
        outcomes = await answers(scheduler, [job(i) for i in range(12)])
        assert isinstance(outcomes[7].error, PoolFailure) and "3 instances in a row" in str(outcomes[7].error)
        assert all(outcomes[i].value == 2 * i for i in range(12) if i != 7)
        assert Counter(value for batch in log for value in batch)[7] == 3
        scheduler.stop()

    asyncio.run(main())


def test_a_hung_instance_is_replaced():
    async def main():
        log, hung = [], []

        async def hang(instance, jobs):
            if not hung:
                hung.append(instance)
                await asyncio.sleep(60)

        scheduler = pool(log, spoil=hang, timeout_s=0.05)
        await scheduler.start()
        [outcome] = await answers(scheduler, [job(4)])
        assert outcome.value == 8 and hung[0].killed
        scheduler.stop()

    asyncio.run(main())


def test_an_instance_that_never_starts_is_named_and_nobody_waits():
    async def main():
        async def fail():
            raise PoolFailure("weights are missing")

        with pytest.raises(PoolFailure, match="weights are missing"):
            await pool([], start=fail).start()

        async def forever():
            await asyncio.sleep(60)

        with pytest.raises(PoolFailure, match="did not start within"):
            await pool([], start=forever, start_timeout_s=0.02).start()

    asyncio.run(main())


def test_instances_come_with_the_queue_and_go_with_it():
    async def main():
        log = []
        config = {"placements": [Placement(replicas="auto", min_replicas=1, max_replicas=3)], "max_batch": 1, "idle_s": 0.3}
        scheduler = pool(log, seconds=0.1, **config)
        scheduler.bounds = [(1, 3)]
        await scheduler.start()
        await answers(scheduler, [job(i) for i in range(40)])
        assert scheduler.status()["instances"] == 3
        await asyncio.sleep(1.5)
        assert scheduler.status()["instances"] == 1
        scheduler.stop()

    asyncio.run(main())


def test_stopping_answers_those_who_wait():
    async def main():
        scheduler = pool([], seconds=60)
        await scheduler.start()
        futures = [scheduler.submit(job(i)) for i in range(200)]
        await asyncio.sleep(0.01)
        scheduler.stop()
        outcomes = await asyncio.wait_for(asyncio.gather(*futures), 1)
        assert all("stopped" in str(outcome.error) for outcome in outcomes)
        assert "stopped" in str((await scheduler.submit(job(1))).error)

    asyncio.run(main())


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.tuples(st.integers(0, 15), st.sampled_from("ab"), st.sampled_from(["x", "y"]), st.integers(1, 2)), max_size=60),
    replicas=st.integers(1, 4),
    max_batch=st.integers(1, 5),
    max_in_flight=st.integers(1, 9),
    losses=st.sets(st.integers(0, 30), max_size=4),
)
def test_every_request_is_answered_rightly_whatever_happens(values, replicas, max_batch, max_in_flight, losses):
    async def main():
        log = []

        async def lose(instance, jobs):
            assert len({(each.service, each.shape) for each in jobs}) == 1 and len(jobs) <= max_batch
            if len(log) in losses:
                raise InstanceLost("killed")

        scheduler = pool(log, replicas, spoil=lose, max_batch=max_batch, max_in_flight=max_in_flight, attempts=10)
        await scheduler.start()
        jobs = [Job(Service("tool", service), shape, (service, shape, value), value, caller) for value, caller, service, shape in values]
        outcomes = await asyncio.wait_for(answers(scheduler, jobs), 5)
        assert [outcome.value for outcome in outcomes] == [2 * value for value, *_ in values]
        assert scheduler._admitted == 0 and scheduler._queued == 0 and not scheduler._flying
        scheduler.stop()

    asyncio.run(main())
