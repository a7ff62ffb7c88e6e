"""Other ways to serve tools, as the systems of the literature do it, on the same networks and with the same Ray actors where they use any.

Each has ``call(state, tool) -> state``, is used by many threads at once, and counts ``executions``.
"""

from __future__ import annotations

import http.client
import multiprocessing
import queue
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import cv2
import numpy as np

from tool_actors.errors import IrEnvError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.toolboxes import load_toolbox


class Rival:
    """What they share."""

    name = ""

    def __init__(self):
        self.executions = 0
        self._lock = threading.Lock()

    def call(self, state: ImageState, tool: str) -> ImageState:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def _count(self) -> None:
        with self._lock:
            self.executions += 1


class SubprocessPerCall(Rival):
    """AgenticIR's way: each call starts a Python process that loads the tool, reads a PNG and writes one; two at once on two cores."""

    name = "subprocess per call"
    WORKER = (
        "import sys, cv2\n"
        "from tool_actors.executor import ImageState, LocalExecutor, Request\n"
        "from tool_actors.threads import limit_threads\n"
        "from tool_actors.toolboxes import load_toolbox\n"
        "limit_threads(1)\n"
        "source, tool, target = sys.argv[1:]\n"
        "state = ImageState.from_pixels(cv2.imread(source)[..., ::-1].copy())\n"
        "[result] = LocalExecutor(load_toolbox([tool])).run([Request(state, tool)])\n"
        "cv2.imwrite(target, result.state.pixels[..., ::-1])\n"
    )

    def __init__(self, processes: int):
        super().__init__()
        self._slots = threading.BoundedSemaphore(processes)
        self._folder = tempfile.TemporaryDirectory()

    def call(self, state: ImageState, tool: str) -> ImageState:
        with self._slots, tempfile.TemporaryDirectory(dir=self._folder.name) as folder:
            source, target = Path(folder) / "in.png", Path(folder) / "out.png"
            cv2.imwrite(str(source), state.pixels[..., ::-1])
            subprocess.run([sys.executable, "-c", self.WORKER, str(source), tool, str(target)], check=True)
            self._count()
            return ImageState.from_pixels(cv2.imread(str(target))[..., ::-1].copy())

    def close(self) -> None:
        self._folder.cleanup()


class HttpWorkers(Rival):
    """OPERA's way: workers behind HTTP that take one PNG at a time."""

    name = "HTTP worker, batch 1, PNG"

    def __init__(self, workers: int):
        super().__init__()
        context = multiprocessing.get_context("spawn")
        ports = context.Queue()
        self._processes = [context.Process(target=_serve_http, args=(ports,), daemon=True) for _ in range(workers)]
        for process in self._processes:
            process.start()
        self._free: queue.Queue = queue.Queue()
        for _ in self._processes:
            self._free.put(ports.get(timeout=300))

    def call(self, state: ImageState, tool: str) -> ImageState:
        body = cv2.imencode(".png", state.pixels[..., ::-1])[1].tobytes()
        port = self._free.get()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
            connection.request("POST", f"/{tool}", body)
            answer = connection.getresponse().read()
            connection.close()
        finally:
            self._free.put(port)
        self._count()
        return ImageState.from_pixels(cv2.imdecode(np.frombuffer(answer, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].copy())

    def close(self) -> None:
        for process in self._processes:
            process.terminate()


def _serve_http(ports) -> None:
    from tool_actors.threads import limit_threads

    limit_threads(1)
    executor = LocalExecutor(load_toolbox("default"), cache_bytes=0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state = ImageState.from_pixels(cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR)[..., ::-1].copy())
            [result] = executor.run([Request(state, self.path[1:])])
            answer = cv2.imencode(".png", result.state.pixels[..., ::-1])[1].tobytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    ports.put(server.server_port)
    server.serve_forever()


class LockedActors(Rival):
    """TIR-Agent's way: the pool's own actors, each behind a lock; one image per call, nothing shared, three attempts."""

    name = "locks, batch 1"

    def __init__(self, instances: int):
        super().__init__()
        import ray

        from tool_actors.pool.config import Placement
        from tool_actors.pool.instance import ToolInstance

        self._ray = ray
        actors = [ray.remote(ToolInstance).options(num_cpus=1).remote("default", Placement()) for _ in range(instances)]
        ray.get([actor.describe.remote() for actor in actors])
        self._actors = actors
        self._free: queue.Queue = queue.Queue()
        for actor in actors:
            self._free.put(actor)

    def call(self, state: ImageState, tool: str) -> ImageState:
        for attempt in range(3):
            actor = self._free.get()
            try:
                [outcome] = self._ray.get(actor.run.remote(tool, [state.pixels], "uint8"))
            except self._ray.exceptions.RayActorError:
                if attempt == 2:
                    raise
                continue
            finally:
                self._free.put(actor)
            if outcome.error is not None:
                raise outcome.error
            self._count()
            return ImageState(outcome.value, state.root, (*state.path, tool))
        raise AssertionError

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)


class RayServe(Rival):
    """Ray Serve with its own dynamic batching; what comes together is grouped by tool and shape."""

    name = "Ray Serve, dynamic batches"

    def __init__(self, replicas: int, max_batch: int):
        super().__init__()
        from ray import serve

        self._serve = serve

        @serve.deployment(num_replicas=replicas, ray_actor_options={"num_cpus": 1}, max_ongoing_requests=256)
        class Tools:
            def __init__(self):
                from tool_actors.threads import limit_threads

                limit_threads(1)
                self.toolbox = load_toolbox("default")

            @serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=0.005)
            async def __call__(self, calls: list[tuple]) -> list:
                from tool_actors.executor import run_tool

                groups = defaultdict(list)
                for index, (tool, pixels) in enumerate(calls):
                    groups[tool, pixels.shape].append(index)
                answers: list = [None] * len(calls)
                for (tool, _), indices in groups.items():
                    outputs = run_tool(self.toolbox[tool], [calls[index][1] for index in indices])
                    for index, output in zip(indices, outputs, strict=True):
                        answers[index] = output
                return answers

        self._handle = serve.run(Tools.bind(), name="tools", route_prefix=None)

    def call(self, state: ImageState, tool: str) -> ImageState:
        pixels = self._handle.remote((tool, state.pixels)).result()
        self._count()
        return ImageState(pixels, state.root, (*state.path, tool))

    def close(self) -> None:
        self._serve.shutdown()


class Pooled(Rival):
    """MC-Pool."""

    name = "MC-Pool"

    def __init__(self, instances: int, max_batch: int):
        super().__init__()
        from tool_actors.pool import MCPool

        self.pool = MCPool.start({"placements": [{"replicas": instances}], "max_batch": max_batch}, "bench")
        wait_for_instances(self.pool, instances)
        self._executor = self.pool.executor()

    def call(self, state: ImageState, tool: str) -> ImageState:
        result = self._executor.submit(Request(state, tool)).result()
        if result.state is None:
            raise IrEnvError(str(result.error)) from result.error
        with self._lock:
            self.executions = self._executor.stats.executions
        return result.state

    def close(self) -> None:
        self.pool.stop()


def wait_for_instances(pool, count: int, seconds: float = 300) -> None:
    """Until so many instances are ready."""
    import time

    end = time.monotonic() + seconds
    while pool.status()["instances"] < count:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} instances were not ready within {seconds:g} s")
        time.sleep(0.2)
