"""The named actor that everybody talks to: a :class:`Scheduler` whose instances are Ray actors."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tool_actors.errors import IrEnvError
from tool_actors.executor import Scorer
from tool_actors.pool.config import Placement, PoolConfig, uncovered
from tool_actors.pool.connection import LOST
from tool_actors.pool.instance import ToolInstance
from tool_actors.pool.scheduler import InstanceLost, Job, Outcome, Scheduler
from tool_actors.toolboxes import names_of

NAMESPACE = "ir_env"
SCORE = "score:"
"""Services of this prefix are metric suites, all others tools."""
COLLECT_S = 20.0
"""A caller that waits for answers asks again after so long."""
ROOM_S = 5.0
"""How often the number of ``auto`` instances that the cluster has room for is looked up: nodes come and go."""


def actor_name(pool: str, shard: int) -> str:
    return f"{pool}/{shard}"


class RayInstance:
    """An actor as the scheduler sees it."""

    def __init__(self, toolbox: Any, placement: Placement, scorers: dict[str, Scorer]):
        self._scorers = scorers
        self.actor = (
            ray.remote(ToolInstance)
            .options(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, max_restarts=0)
            .remote(toolbox, placement)
        )
        self.specs: list = []
        self.pid: int | None = None

    async def ready(self) -> None:
        self.specs, self.pid = await self._call(self.actor.describe.remote())

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        first, payloads = jobs[0], [job.payload for job in jobs]
        if first.service.startswith(SCORE):
            call = self.actor.score.remote(first.service, self._scorers[first.service], payloads)
        else:
            quantize = first.shape[-1]
            call = self.actor.run.remote(first.service, payloads, quantize)
        # copies: a view would keep the whole batch in the object store for as long as one of its images is cached
        return [
            Outcome(None if value is None else value.copy(), error, seconds, False, 0 if value is None else value.nbytes)
            for value, error, seconds in await self._call(call)
        ]

    async def _call(self, reference: ray.ObjectRef) -> Any:
        try:
            return await reference
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, IrEnvError) else error from None
        except LOST as error:
            raise InstanceLost(" ".join(str(error).split())[:200]) from error

    def kill(self) -> None:
        ray.kill(self.actor)


class _Mail:
    """Answers that wait for a caller."""

    def __init__(self):
        self.answers: list[tuple] = []
        self.last: list[tuple] = []
        self.number, self.open = 0, 0
        self.arrived = asyncio.Event()

    def put(self, ticket: int, done: asyncio.Future[Outcome]) -> None:
        outcome = done.result()
        self.answers.append((ticket, (outcome.value, outcome.error, outcome.seconds, outcome.cached)))
        self.arrived.set()


class Dispatcher:
    """One shard of a pool.

    A Ray actor whose methods are coroutines. If it dies, Ray starts it again; what it had cached is gone, what was under way is sent again
    by the callers.

    Args:
        given: the config, or a reference to it, in a list.
        shard: which of the pool's dispatchers this is.
    """

    def __init__(self, given: Sequence[PoolConfig | ray.ObjectRef], shard: int):
        [self._given], self.shard = given, shard
        self.config: PoolConfig | None = None
        self._scorers: dict[str, Scorer] = {}
        self._started: asyncio.Task | None = None
        self._following: asyncio.Task | None = None
        self._specs: list = []
        self._names: list[str] = []
        self._mail: dict[str, _Mail] = {}
        self._scheduler: Scheduler | None = None

    def _serves(self, placement: int, service: str) -> bool:
        chosen = self.config.placements[placement]
        return chosen.scores if service.startswith(SCORE) else chosen.holds(service)

    def _launch(self, placement: Placement) -> RayInstance:
        return RayInstance(self.config.toolbox, placement, self._scorers)

    async def ready(self) -> None:
        """Returns when each kind of instance has one that runs."""
        # what kept it from starting may be over: there was no room on the nodes that are left, and now there is
        if self._started is None or (self._started.done() and self._started.exception()):
            self._started = asyncio.ensure_future(self._start())
        await asyncio.shield(self._started)

    async def _start(self) -> None:
        self.config = config = await self._given if isinstance(self._given, ray.ObjectRef) else self._given
        self._names = names_of(config.toolbox)
        if missing := uncovered(config.placements, self._names):
            raise IrEnvError(f"no placement of the pool holds {', '.join(missing)}: add one, e.g. Placement(tools=('*',))")
        own = replace(config, cache_bytes=config.cache_bytes // config.shards)
        self._scheduler = Scheduler(own, self._bounds(), self._serves, self._launch)
        await self._scheduler.start()
        self._following = asyncio.ensure_future(self._follow_cluster())
        found = {spec.name: spec for instance in self._scheduler.instances() for spec in instance.specs}
        self._specs = [found[name] for name in self._names if name in found]

    def _bounds(self) -> list[tuple[int, int]]:
        """Least and greatest number of this shard's instances, per placement."""
        shards, bounds = self.config.shards, []
        for placement in self.config.placements:
            least, most = placement.bounds
            most = most or max(least, shards, _room(placement))
            bounds.append(tuple(max(1, number // shards + (self.shard < number % shards)) for number in (least, most)))
        return bounds

    async def _follow_cluster(self) -> None:
        while True:
            await asyncio.sleep(ROOM_S)
            with contextlib.suppress(RayError):
                self._scheduler.bounds = await asyncio.to_thread(self._bounds)

    async def info(self) -> dict[str, Any]:
        """The config, the specs of the tools in the toolbox's order, and the names of those whose weights are absent."""
        await self.ready()
        there = {spec.name for spec in self._specs}
        return {"config": self.config, "specs": self._specs, "absent": [name for name in self._names if name not in there]}

    async def post(self, caller: str, jobs: Sequence[tuple], scorers: Mapping[str, Scorer]) -> None:
        """Take jobs (ticket, service, shape, key, payload) on; :meth:`collect` gives their answers. Scorers are kept for the instances."""
        await self.ready()
        for service, scorer in scorers.items():
            self._scorers.setdefault(service, scorer)
        mail = self._mail.setdefault(caller, _Mail())
        mail.open += len(jobs)
        for ticket, *job in jobs:
            self._scheduler.submit(Job(*job, caller)).add_done_callback(partial(mail.put, ticket))

    async def collect(self, caller: str, received: int) -> tuple[int, list[tuple]]:
        """The next delivery: its number, and (ticket, (value, error, seconds, cached)) of all jobs that were answered since the last.

        Waits until there is one, for a while; ``received`` is the number of the last that reached the caller, which is given again if one
        was lost on the way. Number 0 says that nothing of the caller's is known here.
        """
        await self.ready()
        mail = self._mail.setdefault(caller, _Mail())
        if mail.number < received:
            return 0, []  # the dispatcher that made that delivery is gone, and the caller's jobs with it
        if mail.number > received:
            return mail.number, mail.last
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(mail.arrived.wait(), COLLECT_S)
        mail.arrived.clear()
        mail.last, mail.answers = mail.answers, []
        mail.number = received + 1
        mail.open -= len(mail.last)
        if not mail.open and not mail.last:
            self._mail.pop(caller, None)
            return 0, []
        return mail.number, mail.last

    async def status(self) -> dict[str, Any]:
        """Counters, see :meth:`Scheduler.status`."""
        await self.ready()
        pids = [instance.pid for instance in self._scheduler.instances()]
        callers = sum(mail.open > 0 for mail in self._mail.values())
        return {
            **self._scheduler.status(),
            "callers": callers,
            "pids": pids,
            "dispatcher_pids": [os.getpid()],
        }

    async def stop(self) -> None:
        if self._scheduler is not None:
            self._scheduler.stop()


def _room(placement: Placement) -> int:
    """How many instances the cluster's resources hold."""
    resources = ray.cluster_resources()
    rooms = [resources.get(kind, 0) / share for kind, share in (("CPU", placement.num_cpus), ("GPU", placement.num_gpus)) if share]
    return int(min(rooms, default=1))
