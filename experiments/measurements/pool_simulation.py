"""A pool of many GPUs in virtual time: the scheduler itself, instances that only let time pass.

The clock of the event loop jumps to the next thing that happens, so hours of a cluster take seconds here, and what the scheduler itself
computes is measured beside, in real time.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from tool_actors.pool.config import Placement, PoolConfig
from tool_actors.pool.messages import Outcome, Service
from tool_actors.pool.scheduler import Job, Scheduler


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock runs when nobody has anything to do."""

    def __init__(self):
        super().__init__(_Jumping())
        self._selector.loop = self
        self.now = 0.0

    def time(self) -> float:
        return self.now


class _Jumping(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout=None):
        events = super().select(0)
        if not events and timeout:
            self.loop.now += timeout
        return events


@dataclass(frozen=True)
class Simulated:
    """One row."""

    gpus: int
    shards: int
    rollouts: int
    utilisation: float
    """Share of GPU time spent running tools."""
    mean_wait_ms: float
    max_wait_ms: float
    images_per_s: float
    images_per_batch: float
    dispatch_us: float
    """CPU time that the scheduler took per request, on this machine."""
    dispatcher_share: float
    """Of one core: what the dispatchers' own work takes, per shard, at this rate, with the overhead per call that the real one measured."""


def simulate(
    gpus: int, rollouts: int, shards: int = 1, steps: int = 12, overhead_s: float = 0.0, start_s: float = 0.02, image_s: float = 0.06
) -> Simulated:
    """Rollouts that each ask for one tool after another, on GPUs that each hold all tools.

    Args:
        gpus: instances.
        rollouts: in flight at once.
        shards: dispatchers among which images and instances are spread.
        steps: tools per rollout.
        overhead_s: real dispatcher's time per request beyond the scheduler's, as measured (Ray's calls and copies).
        start_s, image_s: of a batch, see :class:`experiments.measurements.pool_tools.Sleeping`.
    """
    rng = np.random.default_rng(0)
    parts = [rollouts // shards + (shard < rollouts % shards) for shard in range(shards)]
    rooms = [gpus // shards + (shard < gpus % shards) for shard in range(shards)]
    started = time.process_time()
    runs = []
    for part, room in zip(parts, rooms, strict=True):
        loop = VirtualLoop()
        try:
            runs.append(loop.run_until_complete(_run(room, part, steps, rng, start_s, image_s, overhead_s)))
        finally:
            loop.close()
    real = time.process_time() - started
    requests = rollouts * steps
    seconds = max(run["seconds"] for run in runs)
    busy = sum(run["busy_s"] for run in runs)
    rate = requests / seconds
    per_request = real / requests + overhead_s
    return Simulated(
        gpus,
        shards,
        rollouts,
        busy / (gpus * seconds),
        1000 * sum(run["wait_s"] for run in runs) / requests,
        1000 * max(run["max_wait_s"] for run in runs),
        rate,
        requests / sum(run["batches"] for run in runs),
        1e6 * real / requests,
        rate / shards * per_request,
    )


async def _run(gpus: int, rollouts: int, steps: int, rng: np.random.Generator, start_s: float, image_s: float, overhead_s: float) -> dict:
    tools = 24
    config = PoolConfig(
        placements=(Placement(replicas=gpus),), max_in_flight=max(128, 4 * gpus), cache_bytes=0, timeout_s=1e9, start_timeout_s=1e9
    )
    busy = [0.0]
    dispatcher = asyncio.Lock()

    class Instance:
        async def ready(self):
            pass

        async def run(self, jobs):
            seconds = start_s + image_s * float(rng.lognormal(0.0, 0.3, len(jobs)).sum())
            # the dispatcher handles one message at a time
            async with dispatcher:
                await asyncio.sleep(overhead_s * len(jobs))
            await asyncio.sleep(seconds)
            busy[0] += seconds
            return [Outcome(seconds=seconds / len(jobs)) for _ in jobs]

        def kill(self):
            pass

    scheduler = Scheduler(config, [(gpus, gpus)], lambda placement, service: True, lambda placement: Instance())
    await scheduler.start()
    begin = asyncio.get_running_loop().time()

    async def rollout(index: int) -> None:
        for tool in rng.integers(tools, size=steps):
            await scheduler.submit(Job(Service("tool", str(tool)), "128", None, None, f"caller {index % 8}"))

    await asyncio.gather(*(rollout(index) for index in range(rollouts)))
    seconds = asyncio.get_running_loop().time() - begin
    services = scheduler.status()["services"].values()
    scheduler.stop()
    return {
        "seconds": seconds,
        "busy_s": busy[0],
        "wait_s": sum(each["wait_s"] for each in services),
        "max_wait_s": max(each["max_wait_s"] for each in services),
        "batches": sum(each["batches"] for each in services),
    }


def rows(overhead_s: float, of_1024: Mapping[str, float] | None = None) -> list[dict]:
    """The table: 32 GPUs, 128 to 4,096 rollouts, one dispatcher and four; more GPUs, until one dispatcher is full; and 1,024 GPUs.

    Args:
        overhead_s: see :func:`simulate`.
        of_1024: name -> overhead of images that 1,024 GPUs get, each by 8 to 64 dispatchers, in four steps.
    """
    settings = [(32, rollouts, shards) for shards in (1, 4) for rollouts in (128, 512, 1024, 4096)]
    settings += [(gpus, 4 * gpus, shards) for gpus, shards in ((128, 1), (128, 4), (512, 1), (512, 8))]
    lines = [{"images": "", **asdict(simulate(gpus, rollouts, shards, overhead_s=overhead_s))} for gpus, rollouts, shards in settings]
    for name, overhead in (of_1024 or {}).items():
        lines += [{"images": name, **asdict(simulate(1024, 4096, shards, 4, overhead))} for shards in (8, 16, 32, 64)]
    return lines
