"""Restorations from their upload to the end of their keep: a queue, workers that call the deployment, and results in files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.serve.limits import Limits, Refused
from experiments.serve.metrics import Metrics
from experiments.serve.restorers import Failed, Finished, Step
from experiments.serve.uploads import Upload
from experiments.serve.wanted import Wanted

logger = logging.getLogger(__name__)
State = Literal["waiting", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
SWEEP_S = 5.0
RETRY_S = 10.0
"""After so long a client that was refused for want of room may try again."""


@dataclass(eq=False)
class Job:
    """One restoration. Its id is random, and who knows it may read and end it."""

    id: str
    folder: Path
    upload: Upload | None = None
    wanted: Wanted | None = None
    state: State = "waiting"
    steps: list[dict[str, Any]] = field(default_factory=list)
    error: Refused | None = None
    trace: dict[str, Any] | None = None
    result: Path | None = None
    bytes: int = 0
    """On disk."""
    ended: float = 0.0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    task: asyncio.Task | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ENDED

    def preview(self, number: int) -> Path:
        return self.folder / f"step-{number}.webp"

    async def over(self) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: self.is_over)


class Jobs:
    """All of them.

    Args:
        handle: of the deployment, see :class:`experiments.serve.restorers.Restorers`; its ``restore`` is a stream.
        limits, metrics: of the service.
        workers: restorations at once.
    """

    def __init__(self, handle: Any, limits: Limits, metrics: Metrics, workers: int):
        self.handle, self.limits, self.metrics, self.workers = handle, limits, metrics, workers
        self._jobs: dict[str, Job] = {}
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._tasks: list[asyncio.Task] = []
        self.folder = Path()
        metrics.watch("ir_env_waiting", "Photographs that wait", lambda: self.waiting)
        metrics.watch(
            "ir_env_running", "Photographs that are restored now", lambda: sum(job.state == "running" for job in self._jobs.values())
        )
        metrics.watch("ir_env_kept_bytes", "Of photographs and results on disk", lambda: self.kept_bytes)

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Workers and a folder of the service's own, which only its user can enter, for as long as it runs."""
        with tempfile.TemporaryDirectory(prefix="ir_env_serve_") as folder:
            self.folder = Path(folder)
            self._tasks = [asyncio.create_task(self._work()) for _ in range(self.workers)] + [asyncio.create_task(self._sweep())]
            try:
                yield
            finally:
                running = [job.task for job in self._jobs.values() if job.task]
                for task in (*self._tasks, *running):
                    task.cancel()
                await asyncio.gather(*self._tasks, *running, return_exceptions=True)

    @property
    def kept_bytes(self) -> int:
        return sum(job.bytes for job in self._jobs.values())

    @property
    def waiting(self) -> int:
        return sum(job.state == "waiting" and job.upload is not None for job in self._jobs.values())

    def get(self, id: str) -> Job:
        if (job := self._jobs.get(id)) is None:
            raise Refused(404, "there is no such job, or its result is no longer kept")
        return job

    def position(self, job: Job) -> int:
        """How many wait before it."""
        return [each.id for each in self._jobs.values() if each.state == "waiting" and each.upload].index(job.id)

    def begin(self, size: int) -> Job:
        """A job for a photograph of at most so many bytes, which is on its way; raises :class:`Refused` if there is no room for it."""
        if self.waiting >= self.limits.waiting:
            raise Refused(503, f"{self.waiting} photographs wait already", RETRY_S)
        self._make_room(size)
        if self.kept_bytes + size > self.limits.disk_bytes:
            raise Refused(503, "the disk space of the service is in use", RETRY_S)
        job = Job(id := secrets.token_urlsafe(16), self.folder / secrets.token_hex(8))
        job.bytes = size
        job.folder.mkdir()
        self._jobs[id] = job
        return job

    def queue(self, job: Job, upload: Upload, wanted: Wanted) -> None:
        job.upload, job.wanted, job.bytes = upload, wanted, upload.size
        self.metrics.uploaded.inc(upload.size)
        self._queue.put_nowait(job)

    def drop(self, job: Job) -> None:
        """End it, and forget it."""
        if self._jobs.pop(job.id, None) is None:
            return
        if job.task:
            job.task.cancel()
        elif not job.is_over:
            job.state = "cancelled"
            self._telling = asyncio.ensure_future(self._set(job, "cancelled"))
        shutil.rmtree(job.folder, ignore_errors=True)

    def _make_room(self, count: int) -> None:
        over = sorted((job for job in self._jobs.values() if job.is_over), key=lambda job: job.ended)
        kept = self.kept_bytes
        for job in over:
            if kept + count <= self.limits.disk_bytes:
                return
            kept -= job.bytes
            self.drop(job)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self._make_room(0)
            for job in list(self._jobs.values()):
                if job.is_over and time.monotonic() - job.ended > self.limits.keep_s:
                    self.drop(job)

    async def _work(self) -> None:
        while True:
            job = await self._queue.get()
            if job.is_over:
                continue
            job.task = asyncio.create_task(self._run(job))
            await asyncio.wait([job.task])
            job.task = None

    async def _run(self, job: Job) -> None:
        start = time.perf_counter()
        state: State = "failed"
        try:
            await self._set(job, "running")
            async with asyncio.timeout(self.limits.timeout_s):
                await self._restore(job)
            state = "failed" if job.error else "done"
        except TimeoutError:
            job.error = Refused(504, f"it took longer than {self.limits.timeout_s:g} s: shrink the photograph, or ask for less")
        except asyncio.CancelledError:
            state = "cancelled"
        except Exception as error:
            logger.exception("a restoration was lost")
            job.error = Refused(503, f"the process that restored it was lost ({type(error).__name__}): try again", RETRY_S)
        job.ended = time.monotonic()
        self.metrics.jobs.labels(state).inc()
        self.metrics.job_seconds.observe(time.perf_counter() - start)
        if job.upload:
            job.upload.path.unlink(missing_ok=True)
            job.bytes = sum(file.stat().st_size for file in job.folder.glob("*"))
        await self._set(job, state)

    async def _restore(self, job: Job) -> None:
        assert job.upload and job.wanted
        suffix = job.wanted.suffix_for(job.upload)
        data = await asyncio.to_thread(job.upload.path.read_bytes)
        events = self.handle.options(stream=True).restore.remote(data, job.upload.suffix, suffix, job.wanted)
        del data
        try:
            async for event in events:
                if isinstance(event, Step):
                    await self._step(job, event)
                elif isinstance(event, Failed):
                    job.error = Refused(422 if event.expected else 500, event.text)
                elif isinstance(event, Finished):
                    path = job.folder / f"restored{suffix}"
                    await asyncio.to_thread(path.write_bytes, event.image)
                    job.trace, job.result = event.trace, path
        except (TimeoutError, asyncio.CancelledError):
            events.cancel()
            raise
        if not job.error and not job.result:
            raise RuntimeError("no result")

    async def _step(self, job: Job, step: Step) -> None:
        number = len(job.steps)
        if step.preview:
            job.preview(number).write_bytes(step.preview)
            job.bytes += len(step.preview)
        if step.tool:
            self.metrics.tools.labels(step.tool).inc()
            self.metrics.tool_seconds.labels(step.tool).inc(step.seconds)
        job.steps.append(
            {
                "tool": step.tool,
                "task": step.task,
                "seconds": round(step.seconds, 4),
                "thought": step.thought,
                "preview": f"/v1/jobs/{job.id}/steps/{number}" if step.preview else None,
            }
        )
        await self._set(job, "running")

    async def _set(self, job: Job, state: State) -> None:
        async with job.changed:
            job.state = state
            job.changed.notify_all()


def told(job: Job, jobs: Jobs) -> dict[str, Any]:
    """A job as clients see it."""
    here = f"/v1/jobs/{job.id}"
    return {
        "id": job.id,
        "state": job.state,
        "before": jobs.position(job) if job.state == "waiting" and job.upload else 0,
        "steps": job.steps,
        "error": job.error.text if job.error else None,
        "trace": job.trace,
        "links": {"self": here, "events": f"{here}/events", **({"image": f"{here}/image"} if job.result else {})},
    }


def as_event(job: Job, jobs: Jobs) -> bytes:
    return f"data: {json.dumps(told(job, jobs))}\n\n".encode()
