"""The named actor that everybody talks to: a :class:`Scheduler` whose instances are Ray actors."""

from __future__ import annotations

import asyncio
import contextlib
import math
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
from tool_actors.pool.mailbox import Mailbox
from tool_actors.pool.messages import Delivery, Outcome, Service, ToolShape, Work
from tool_actors.pool.pixels import Shelved
from tool_actors.pool.scheduler import AHEAD, InstanceLost, Job, Scheduler
from tool_actors.toolboxes import names_of

NAMESPACE = "ir_env"
ROOM_S = 5.0
"""How often the number of ``auto`` instances that the cluster has room for is looked up: nodes come and go."""
VANISHED_LOOK_S = 10.0
"""How often it is looked whether callers have vanished."""


def actor_name(pool: str, shard: int) -> str:
    return f"{pool}/{shard}"


class RayInstance:
    """An actor as the scheduler sees it."""

    def __init__(self, config: PoolConfig, placement: Placement, scorers: dict[Service, Scorer]):
        self._scorers, self._least = scorers, config.reference_bytes
        self.actor = (
            ray.remote(ToolInstance)
            .options(
                num_cpus=placement.num_cpus,
                num_gpus=placement.num_gpus,
                max_restarts=0,
                # the batch that is sent ahead begins at once, where the weights are on the GPU already
                max_concurrency=1 + AHEAD if placement.num_gpus and placement.warm_up else 1,
            )
            .remote(config.toolbox, placement)
        )
        self.specs: list = []
        self.pid: int | None = None

    async def ready(self) -> None:
        self.specs, self.pid = await self._call(self.actor.describe.remote())

    async def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        service, shape, payloads = jobs[0].service, jobs[0].shape, [job.payload for job in jobs]
        if isinstance(shape, ToolShape) and self._apart(service.name, shape):
            told, *pixels = self.actor.run_apart.options(num_returns=1 + len(jobs)).remote(service.name, payloads, shape.quantize)
            outcomes = await self._call(told)
            return [each if each.error else each._replace(value=Shelved(value)) for each, value in zip(outcomes, pixels, strict=True)]
        if isinstance(shape, ToolShape):
            call = self.actor.run.remote(service.name, payloads, shape.quantize)
        else:
            call = self.actor.score.remote(service, self._scorers[service], payloads)
        # copies: a view would keep the whole batch in the object store for as long as one of its images is cached
        return [each if each.value is None else each._replace(value=each.value.copy()) for each in await self._call(call)]

    def _apart(self, tool: str, shape: ToolShape) -> bool:
        """Whether what comes of an image is big, so that it goes by reference."""
        scale = next(spec.scale for spec in self.specs if spec.name == tool)
        size = math.prod(shape.image) * scale**2 * (1 if shape.quantize == "uint8" else 4)
        return self._least is not None and size >= self._least

    async def _call(self, reference: ray.ObjectRef) -> Any:
        try:
            return await reference
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, IrEnvError) else error from None
        except LOST as error:
            raise InstanceLost(" ".join(str(error).split())[:200]) from error

    def kill(self) -> None:
        ray.kill(self.actor)


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
        self.config: PoolConfig
        """This and the scheduler are there once it is ready."""
        self._scorers: dict[Service, Scorer] = {}
        self._started: asyncio.Task | None = None
        self._tending: list[asyncio.Task] = []
        self._specs: list = []
        self._names: list[str] = []
        self._mailboxes: dict[str, Mailbox] = {}
        self._scheduler: Scheduler

    def _serves(self, placement: int, service: Service) -> bool:
        chosen = self.config.placements[placement]
        return chosen.scores if service.kind == "metrics" else chosen.holds(service.name)

    def _launch(self, placement: Placement) -> RayInstance:
        return RayInstance(self.config, placement, self._scorers)

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
        self._tending = [asyncio.ensure_future(work()) for work in (self._follow_cluster, self._drop_the_vanished)]
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

    async def _drop_the_vanished(self) -> None:
        while True:
            await asyncio.sleep(min(VANISHED_LOOK_S, self.config.caller_timeout_s / 2))
            for address, mailbox in list(self._mailboxes.items()):
                if mailbox.silence_s() > self.config.caller_timeout_s:
                    await self.release(address)

    async def info(self) -> dict[str, Any]:
        """The config, the specs of the tools in the toolbox's order, and the names of those whose weights are absent."""
        await self.ready()
        there = {spec.name for spec in self._specs}
        return {"config": self.config, "specs": self._specs, "absent": [name for name in self._names if name not in there]}

    # -- callers -------------------------------------------------------------------------------------------------------------------

    async def post(self, address: str, works: Mapping[int, Work], scorers: Mapping[Service, Scorer]) -> None:
        """Take works on, by the caller's tickets; :meth:`collect` gives their outcomes. Scorers are kept for the instances.

        Args:
            address: of the caller's connection; it names its mailbox here.
            works: those whose tickets are here already, and not answered, are not begun again.
            scorers: of metrics.
        """
        await self.ready()
        for service, scorer in scorers.items():
            self._scorers.setdefault(service, scorer)
        mailbox = self._mailbox(address)
        for ticket, work in works.items():
            if mailbox.expect(ticket):
                self._scheduler.submit(Job(**work._asdict(), caller=address)).add_done_callback(partial(mailbox.put, ticket))

    async def collect(self, address: str, received: int) -> Delivery:
        """The next delivery: all outcomes since the last.

        Waits until there is one, for a while; ``received`` is the number of the last that reached the caller, which is given again if one
        was lost on the way. :data:`tool_actors.pool.messages.UNKNOWN` if no job of the caller's is known here.
        """
        await self.ready()
        mailbox = self._mailbox(address)
        delivery = await mailbox.collect(received)
        if not mailbox.due and self._mailboxes.get(address) is mailbox:
            await self.release(address)
        return delivery

    async def release(self, address: str) -> None:
        """Drop whatever is kept for a connection; answers to what is under way go nowhere."""
        if mailbox := self._mailboxes.pop(address, None):
            mailbox.close()

    def _mailbox(self, address: str) -> Mailbox:
        if address not in self._mailboxes:
            self._mailboxes[address] = Mailbox()
        return self._mailboxes[address]

    async def status(self) -> dict[str, Any]:
        """Counters, see :meth:`Scheduler.status`; and of callers, their number, their mailboxes and the bytes of answers in these."""
        await self.ready()
        mailboxes = self._mailboxes.values()
        return {
            **self._scheduler.status(),
            "callers": sum(mailbox.due for mailbox in mailboxes),
            "mailboxes": len(mailboxes),
            "kept_bytes": sum(mailbox.kept_bytes for mailbox in mailboxes),
            "pids": [instance.pid for instance in self._scheduler.instances()],
            "dispatcher_pids": [os.getpid()],
        }

    async def stop(self) -> None:
        for task in self._tending:
            task.cancel()
        if hasattr(self, "_scheduler"):  # it may have failed to start
            self._scheduler.stop()


def _room(placement: Placement) -> int:
    """How many instances the cluster's resources hold."""
    resources = ray.cluster_resources()
    rooms = [resources.get(kind, 0) / share for kind, share in (("CPU", placement.num_cpus), ("GPU", placement.num_gpus)) if share]
    return int(min(rooms, default=1))
