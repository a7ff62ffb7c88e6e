"""Which request runs when, and where: the pool without Ray.

Everything happens in one asyncio event loop, so there are no locks. Instances are given as :class:`Instance`; Ray actors in the pool
(:mod:`tool_actors.pool.dispatcher`), sleeping ones in the simulator (``experiments/measurements/pool_simulation.py``).

A request is answered by the first of these that applies:

1. the cache holds its result;
2. an identical request is queued or running: it joins that one;
3. it waits at its caller while ``max_in_flight`` others are admitted; callers take turns;
4. it queues with the requests it can share a batch with, and runs as soon as an instance is idle.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tool_actors.cache import ByteLRU
from tool_actors.errors import IrEnvError
from tool_actors.pool.config import Placement, PoolConfig
from tool_actors.pool.messages import Outcome, Service

TICK_S = 0.25
"""How often the number of instances is looked at."""
GROW_AFTER_S = 0.5
"""A request that waits longer calls for another ``auto`` instance."""
AHEAD = 1
"""Batches that an instance is sent beyond the one it runs."""
START_FAILURES = 3
"""After so many instances of a kind that did not start in a row, requests that need one are answered with the cause."""


class InstanceLost(Exception):
    """The instance died, or cannot be reached: its requests may run elsewhere."""


class PoolFailure(IrEnvError):
    """The pool could not have a request executed."""


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way."""

    service: Service
    shape: Hashable
    """Jobs of one service and one shape may run as one batch."""
    key: Hashable | None
    """Jobs with equal keys have equal values; None: every execution is another."""
    payload: Any
    caller: str = ""
    again: bool = False
    """Whether what is kept of it is lost."""
    attempts: int = 0
    arrived: float = 0.0
    waiting: list[asyncio.Future] = field(default_factory=list)
    """Futures to answer: its own, and those of the jobs that joined."""


class Instance(Protocol):
    """Something that runs batches, one at a time."""

    async def ready(self) -> None:
        """Returns when it can run; raises what kept it from starting."""

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs of one service and shape; raises :class:`InstanceLost`."""

    def kill(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Slot:
    """An instance, and what it is doing."""

    placement: int
    instance: Instance
    batches: deque[list[Job]] = field(default_factory=deque)
    """What it has been sent: the first is running, another waits there so that it goes on without a pause."""
    ready: bool = False
    lost: bool = False
    idle_since: float = 0.0
    busy_s: float = 0.0
    since: float = 0.0


@dataclass
class ServiceStats:
    """Counters of one tool or metric suite."""

    requests: int = 0
    executions: int = 0
    """Jobs that an instance answered."""
    batches: int = 0
    hits: int = 0
    """Requests answered by the cache."""
    joined: int = 0
    """Requests answered by an identical one that was under way."""
    retries: int = 0
    """Jobs that were sent again because their instance was lost."""
    failures: int = 0
    wait_s: float = 0.0
    """Total time between arrival and start of execution."""
    max_wait_s: float = 0.0
    busy_s: float = 0.0
    """Total running time in instances."""


class Scheduler:
    """Queues, batches, caches and retries.

    Args:
        config: see :class:`PoolConfig`; ``cache_bytes`` is of this scheduler.
        bounds: least and greatest number of instances per placement.
        serves: whether instances of a placement (by its index) run a service.
        launch: makes an instance of a placement.
    """

    def __init__(
        self,
        config: PoolConfig,
        bounds: Sequence[tuple[int, int]],
        serves: Callable[[int, Service], bool],
        launch: Callable[[Placement], Instance],
    ):
        self.config, self.bounds, self.serves, self.launch = config, list(bounds), serves, launch
        self.cache = ByteLRU(config.cache_bytes)
        self.stats: dict[Service, ServiceStats] = {}
        self.lost = 0
        """Instances that died or hung."""
        self.started_at = 0.0
        self._slots: list[_Slot] = []
        self._queues: OrderedDict[tuple, deque[Job]] = OrderedDict()
        self._queued = 0
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._admitted = 0
        self._flying: dict[Hashable, Job] = {}
        self._failures: Counter[int] = Counter()
        self._causes: dict[int, Exception] = {}
        self._gone_busy_s = 0.0
        self._tasks: set[asyncio.Task] = set()
        self._stopped = False

    # -- life ----------------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the least number of instances and wait until one of each kind is ready; raises what kept a kind from starting."""
        self.started_at = self._now()
        for placement, (least, _) in enumerate(self.bounds):
            for _ in range(least):
                self._launch(placement)
        self._spawn(self._tend())
        while missing := [p for p, _ in enumerate(self.bounds) if not any(slot.ready for slot in self._slots if slot.placement == p)]:
            for placement in missing:
                if self._failures[placement] >= START_FAILURES:
                    self.stop()
                    raise self._causes[placement]
            await asyncio.sleep(0.01)

    def stop(self) -> None:
        """End all instances; jobs that are under way fail."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        for slot in self._slots:
            slot.instance.kill()
        self._slots.clear()
        for job in [*self._flying.values(), *(job for queue in (*self._waiting.values(), *self._queues.values()) for job in queue)]:
            self._answer(job, Outcome(error=PoolFailure("the pool was stopped")))

    # -- requests ------------------------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> asyncio.Future[Outcome]:
        """A future of the job's outcome; failures are outcomes, too."""
        future = asyncio.get_running_loop().create_future()
        if self._stopped:
            future.set_result(Outcome(error=PoolFailure("the pool was stopped")))
            return future
        stats = self._stats(job.service)
        stats.requests += 1
        if job.key is not None:
            hit = self.cache.get(job.key)
            if hit is not None and not job.again:
                stats.hits += 1
                future.set_result(hit)
                return future
            twin = self._flying.get(job.key)
            if twin is not None:
                stats.joined += 1
                twin.waiting.append(future)
                return future
            self._flying[job.key] = job
        job.arrived = self._now()
        job.waiting.append(future)
        self._waiting.setdefault(job.caller, deque()).append(job)
        self._admit()
        return future

    def _admit(self) -> None:
        while self._waiting and self._admitted < self.config.max_in_flight:
            caller, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._waiting[caller] = jobs  # behind the others: callers take turns
            self._admitted += 1
            self._enqueue(job)
        self._dispatch()

    def _enqueue(self, job: Job) -> None:
        # what was lost with an instance runs alone: if it was the cause, nothing else is lost with it
        queue = (job.service, job.shape) if not job.attempts else (job.service, job.shape, id(job))
        jobs = self._queues.setdefault(queue, deque())
        if job.attempts:
            self._queues.move_to_end(queue, last=False)
        jobs.append(job)
        self._queued += 1

    def _dispatch(self) -> None:
        if not self._queued:
            return
        ready = [slot for slot in self._slots if slot.ready]
        for sent in range(AHEAD + 1):
            for slot in ready:
                # a few requests wait, and gather, for whichever instance is idle first; only a backlog is sent ahead
                enough = sent * self.config.max_batch * len(ready)
                if self._queued >= max(enough, 1) and len(slot.batches) == sent and (jobs := self._next(slot)):
                    self._begin(slot, jobs)

    def _next(self, slot: _Slot) -> list[Job]:
        """The batch that an idle instance should run: that of the oldest request if it has waited long enough, else the fullest."""
        mine = [(name, queue) for name, queue in self._queues.items() if self.serves(slot.placement, name[0])]
        if not mine:
            return []
        name, queue = min(mine, key=lambda item: item[1][0].arrived)
        if self._now() - queue[0].arrived < self.config.max_wait_ms / 1000:
            name, queue = max(mine, key=lambda item: len(item[1]))
        # the fair share of all work, so that a batch does not leave other instances without any
        running = sum(len(batch) for other in self._slots for batch in other.batches)
        ready = sum(other.ready for other in self._slots)
        size = min(self.config.max_batch, math.ceil((self._queued + running) / ready), len(queue))
        jobs = [queue.popleft() for _ in range(size)]
        if not queue:
            del self._queues[name]
        self._queued -= size
        return jobs

    def _begin(self, slot: _Slot, jobs: list[Job]) -> None:
        now = self._now()
        if not slot.batches:
            slot.since = now
        slot.batches.append(jobs)
        stats = self._stats(jobs[0].service)
        for job in jobs:
            wait = now - job.arrived
            stats.wait_s += wait
            stats.max_wait_s = max(stats.max_wait_s, wait)
        self._spawn(self._run(slot, jobs))

    async def _run(self, slot: _Slot, jobs: list[Job]) -> None:
        stats = self._stats(jobs[0].service)
        allowed = self.config.timeout_s * len(slot.batches)
        try:
            outcomes = await asyncio.wait_for(slot.instance.run(jobs), allowed)
        except (InstanceLost, TimeoutError) as error:
            hung = isinstance(error, TimeoutError)
            cause = f"did not answer within {self.config.timeout_s:g} s" if hung else f"was lost ({error})"
            # what had not begun is not its own fault
            begun = not slot.lost
            self._lose(slot)
            for job in jobs:
                job.attempts += begun
                if job.attempts >= self.config.attempts:
                    stats.failures += 1
                    text = f"{job.service}: {job.attempts} instances in a row ended while they ran it; the last {cause}"
                    self._finish(job, Outcome(error=PoolFailure(text)))
                else:
                    stats.retries += 1
                    self._enqueue(job)
        except Exception as error:  # of the pool itself: nobody must wait for ever
            self._lose(slot)
            for job in jobs:
                self._finish(job, Outcome(error=PoolFailure(f"{type(error).__name__}: {error}")))
        else:
            now = self._now()
            slot.busy_s += now - slot.since
            slot.batches.remove(jobs)
            slot.since = slot.idle_since = now
            stats.batches += 1
            stats.executions += len(jobs)
            for job, outcome in zip(jobs, outcomes, strict=True):
                stats.busy_s += outcome.seconds
                stats.failures += outcome.error is not None
                if job.key is not None and outcome.size:
                    self.cache.put(job.key, outcome._replace(cached=True), outcome.size)
                self._finish(job, outcome._replace(batch=len(jobs)))
        self._admit()

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._admitted -= 1
        self._answer(job, outcome)

    def _answer(self, job: Job, outcome: Outcome) -> None:
        if job.key is not None:
            self._flying.pop(job.key, None)
        joined = outcome._replace(cached=outcome.error is None, batch=0)
        for position, future in enumerate(job.waiting):
            if not future.done():
                future.set_result(outcome if position == 0 else joined)

    # -- instances -----------------------------------------------------------------------------------------------------------------

    def _launch(self, placement: int) -> None:
        slot = _Slot(placement, self.launch(self.config.placements[placement]))
        self._slots.append(slot)
        self._spawn(self._await_ready(slot))

    async def _await_ready(self, slot: _Slot) -> None:
        try:
            await asyncio.wait_for(slot.instance.ready(), self.config.start_timeout_s)
        except Exception as error:
            if isinstance(error, TimeoutError):
                placement = self.config.placements[slot.placement]
                error = PoolFailure(
                    f"an instance of {', '.join(placement.tools) or 'the metrics'} did not start within {self.config.start_timeout_s:g} s: "
                    f"it asks for {placement.num_cpus:g} CPU and {placement.num_gpus:g} GPU. Lower num_cpus, free some, or add nodes."
                )
            self._failures[slot.placement] += 1
            self._causes[slot.placement] = error
            self._remove(slot)
            self._give_up()
            return
        self._failures[slot.placement] = 0
        slot.ready, slot.idle_since = True, self._now()
        self._dispatch()

    def _lose(self, slot: _Slot) -> None:
        if slot.lost:
            return
        slot.lost = True
        self.lost += 1
        self._gone_busy_s += slot.busy_s + self._now() - slot.since
        self._remove(slot)
        self._launch(slot.placement)

    def _remove(self, slot: _Slot) -> None:
        if slot in self._slots:
            self._slots.remove(slot)
        slot.instance.kill()

    def _give_up(self) -> None:
        """Answer the jobs that wait for a kind of instance that does not start."""
        able = {slot.placement for slot in self._slots} | {p for p, _ in enumerate(self.bounds) if self._failures[p] < START_FAILURES}
        for name in list(self._queues):
            if any(self.serves(placement, name[0]) for placement in able):
                continue
            cause = next(self._causes[p] for p, _ in enumerate(self.bounds) if self.serves(p, name[0]))
            for job in self._queues.pop(name):
                self._queued -= 1
                self._stats(job.service).failures += 1
                self._finish(job, Outcome(error=PoolFailure(f"{job.service}: no instance starts: {cause}")))

    async def _tend(self) -> None:
        """Keep the number of instances between its bounds, and near what the queue calls for."""
        while True:
            await asyncio.sleep(TICK_S)
            now = self._now()
            for placement, (least, most) in enumerate(self.bounds):
                slots = [slot for slot in self._slots if slot.placement == placement]
                starting = len(slots) - sum(slot.ready for slot in slots)
                late = any(now - queue[0].arrived > GROW_AFTER_S for name, queue in self._queues.items() if self.serves(placement, name[0]))
                failing = self._failures[placement] >= START_FAILURES
                if (len(slots) < least and (not failing or late)) or (late and len(slots) < most and not starting and not failing):
                    self._launch(placement)
                elif len(slots) > least:
                    idle = [slot for slot in slots if slot.ready and not slot.batches and now - slot.idle_since > self.config.idle_s]
                    if idle:
                        self._gone_busy_s += idle[0].busy_s
                        self._remove(idle[0])

    def instances(self) -> list[Any]:
        """Those that are ready, of the kind that ``launch`` makes."""
        return [slot.instance for slot in self._slots if slot.ready]

    # -- figures -------------------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Counters per :class:`tool_actors.pool.messages.Service` and of the whole, as plain values."""
        now = self._now()
        busy = self._gone_busy_s + sum(slot.busy_s + (now - slot.since if slot.batches else 0.0) for slot in self._slots)
        return {
            "services": {name: vars(stats).copy() for name, stats in self.stats.items()},
            "instances": sum(slot.ready for slot in self._slots),
            "starting": sum(not slot.ready for slot in self._slots),
            "busy": sum(bool(slot.batches) for slot in self._slots),
            "lost": self.lost,
            "queued": self._queued,
            "at_callers": sum(map(len, self._waiting.values())),
            "cache_bytes": self.cache.bytes,
            "cache_entries": len(self.cache),
            "under_way": len(self._flying),
            "busy_s": busy,
            "seconds": now - self.started_at,
        }

    def _stats(self, service: Service) -> ServiceStats:
        if service not in self.stats:
            self.stats[service] = ServiceStats()
        return self.stats[service]

    def _spawn(self, work: Awaitable) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
