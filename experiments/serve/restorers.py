"""The deployment of Ray Serve that restores: policies in its replicas, tools in the pool."""

from __future__ import annotations

import asyncio
import contextlib
import io
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.serve.wanted import PREVIEW, Wanted

if TYPE_CHECKING:
    from ir_env.planner import Planner
    from policies.restoration import Restorer

GRACE_S = 30.0
"""A restoration that does not end so long after its time, since one call of a library holds it, makes its replica unhealthy, and Serve
replaces it."""


@dataclass(frozen=True)
class Step:
    """A tool has run; the first is the photograph itself."""

    tool: str | None
    task: str | None
    seconds: float
    thought: dict[str, float] | None
    preview: bytes | None
    """WebP."""


@dataclass(frozen=True)
class Finished:
    """The result as a file, and the trace."""

    image: bytes
    trace: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """Why there is no result; ``expected`` if the photograph or the request is to blame."""

    text: str
    expected: bool


class Cancelled(Exception):
    pass


class Restorers:
    """Restores one photograph per thread.

    Args:
        policies: what :func:`policies.loading.load_policy` takes, by the name that a request knows it by.
        pool: name of the MC-Pool that runs the tools.
        threads: restorations at once.
        timeout_s: for one.
    """

    def __init__(self, policies: Mapping[str, str], pool: str, threads: int, timeout_s: float):
        from policies.loading import load_policy
        from tool_actors.pool import MCPool
        from tool_actors.threads import limit_threads

        limit_threads(1)
        self._executor, self._timeout_s = f"pool:{pool}", timeout_s
        self._toolbox = MCPool.connect(pool).config.toolbox
        self._threads = ThreadPoolExecutor(threads, "restoration")
        self._running: dict[object, float] = {}
        self._planners = {name: load_policy(policy) for name, policy in policies.items()}
        for planner in self._planners.values():  # what is wrong with one is said now
            self._restorer(planner)

    def _restorer(self, planner: Planner, **settings: Any) -> Restorer:
        from policies.restoration import Restorer

        own = planner.toolbox or planner.env_config.get("toolbox")
        return Restorer(planner.fresh(), toolbox=None if own else self._toolbox, device="cpu", executor=self._executor, **settings)

    def check_health(self) -> None:
        late = time.monotonic() - self._timeout_s - GRACE_S
        if any(since < late for since in self._running.values()):
            raise RuntimeError("a restoration does not end")

    def ping(self) -> bool:
        return True

    async def restore(self, data: bytes, suffix: str, result_suffix: str, wanted: Wanted) -> AsyncIterator[Step | Finished | Failed]:
        """The steps as they are taken, and last what became of the photograph.

        Args:
            data: the photograph's file.
            suffix, result_suffix: of its format, and of the result's.
            wanted: how to restore it.
        """
        loop, events, left = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

        def tell(event: Step | Finished | Failed) -> None:
            if left.is_set():
                raise Cancelled
            loop.call_soon_threadsafe(events.put_nowait, event)

        self._threads.submit(self._restored, data, suffix, result_suffix, wanted, tell)
        del data
        try:
            while True:
                event = await events.get()
                yield event
                if not isinstance(event, Step):
                    return
        finally:
            left.set()  # the thread ends at its next step

    def _restored(self, data: bytes, suffix: str, result_suffix: str, wanted: Wanted, tell: Callable) -> None:
        from tool_actors.errors import IrEnvError

        self._running[mark := object()] = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="ir_env_") as folder:
            try:
                tell(self._finished(Path(folder), data, suffix, result_suffix, wanted, tell))
            except Cancelled:
                pass
            except Exception as error:
                expected = isinstance(error, IrEnvError)
                text = str(error).replace(f"{folder}/", "") if expected else f"{type(error).__name__}: {error}"
                with contextlib.suppress(Cancelled):
                    tell(Failed(text, expected))
            finally:
                self._running.pop(mark)

    def _finished(self, folder: Path, data: bytes, suffix: str, result_suffix: str, wanted: Wanted, tell: Callable) -> Finished:
        from experiments.restore_trace import scores_of, trace_of
        from policies.planners import FixedPlan

        start = time.perf_counter()
        source, result = folder / f"photograph{suffix}", folder / f"restored{result_suffix}"
        source.write_bytes(data)
        planner = self._planners[wanted.policy] if wanted.plan is None else FixedPlan(wanted.plan)
        restorer = self._restorer(planner, **wanted.settings())
        told = 0

        def watch(episode, thoughts) -> None:
            nonlocal told
            steps = 1 + len(episode.applied)
            if steps == told:  # the policy stopped, or a tool failed
                return
            told = steps
            action = restorer.process.actions[episode.applied[-1]] if episode.applied else None
            preview = _preview(episode.state.as_uint8()) if wanted.previews else None
            tell(
                Step(
                    action and action.tool,
                    action and action.task,
                    episode.seconds[-1] if episode.seconds else 0.0,
                    thoughts[-1] if thoughts else None,
                    preview,
                )
            )

        restored = restorer(source, watch=watch)
        for tool in restored.tools[len(restored.episode.applied) :]:  # what brought it to the size that was asked for
            tell(Step(tool, "super_resolve", 0.0, None, _preview(restored.pixels) if wanted.previews else None))
        notes = list(restored.notes) + restored.save(result, wanted.quality, wanted.grey == "keep")
        scores = scores_of(restored, wanted.scores)
        seconds = time.perf_counter() - start
        return Finished(result.read_bytes(), trace_of(restored, scores, seconds, notes, wanted.scores, source.name, result.name))


def _preview(pixels) -> bytes:
    """WebP of an image, uint8 or float (H, W, 3), that a screen can show."""
    import cv2
    import numpy as np
    from PIL import Image

    pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255.0).astype(np.uint8)
    height, width = pixels.shape[:2]
    factor = PREVIEW / max(height, width)
    if factor < 1:
        pixels = cv2.resize(pixels, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "WEBP", quality=90, method=2)
    return out.getvalue()
