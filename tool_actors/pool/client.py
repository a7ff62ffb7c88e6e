"""How callers use a pool: :class:`MCPool` is the handle, :class:`PoolExecutor` runs requests on it.

>>> pool = MCPool.start({"toolbox": "default"})              # or MCPool.connect() to one that runs
>>> [result] = pool.executor().run([Request(state, "noise.gaussian25")])
>>> env = gymnasium.make("ir_env/Restoration-v0", executor="pool")
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from tool_actors.errors import IrEnvError
from tool_actors.executor import ExecutorStats, ImageState, Quantize, Request, Result, Scorer
from tool_actors.pool.config import DEFAULT_NAME, PoolConfig
from tool_actors.pool.connection import Connection, own_error
from tool_actors.pool.dispatcher import NAMESPACE, Dispatcher, actor_name
from tool_actors.pool.messages import MetricsShape, Outcome, Pair, Service, ToolShape, Work
from tool_actors.pool.pixels import Shelf
from tool_actors.remote_tool import RemoteTool
from tool_actors.toolbox import Toolbox
from tool_actors.toolboxes import names_of

CONCURRENT_CALLS = 10_000
ARGUMENT_BYTES = 100 << 10
"""Of an actor's argument that Ray keeps by itself."""
REFERENCES = 512
"""Clean images whose hash a caller remembers."""


class MCPool:
    """Handle of a globally shared model-call pool (TIR-Agent, section 3.4): a named service that any process of the cluster may use."""

    def __init__(self, name: str, dispatchers: Sequence[ray.actor.ActorHandle], kept: ray.ObjectRef | None = None):
        self.name, self.dispatchers, self._kept = name, list(dispatchers), kept
        info = _get(self.dispatchers[0].info.remote())
        self.config: PoolConfig = info["config"]
        self.toolbox = Toolbox([RemoteTool(spec) for spec in info["specs"]], name=f"pool {name}")
        self.absent: list[str] = info["absent"]
        """Tools of the pool's toolbox whose weights its instances did not find."""

    @classmethod
    def start(
        cls,
        config: PoolConfig | Mapping[str, Any] | None = None,
        name: str = DEFAULT_NAME,
        address: str | None = None,
        detached: bool = False,
    ) -> MCPool:
        """Start a pool and wait until it can serve.

        Args:
            config: see :class:`PoolConfig`.
            name: by which others find it.
            address: of the Ray cluster, if this process is not connected yet; by default the running one, or else a new one here.
            detached: the pool outlives this process, until :meth:`stop`. Name its toolbox then, or its file: of large tools that are given
                as objects, Ray has no copy left to start a lost dispatcher again with.

        Raises:
            IrEnvError: a wrong setting; a pool of that name runs; or what kept its instances from starting.
        """
        config = PoolConfig.of(config)
        _connect(address)
        if find(name) is not None:
            raise IrEnvError(f"a pool named {name!r} runs already: connect to it, stop it (`ir-env pool stop`), or give another name")
        remote = ray.remote(Dispatcher)
        # Ray forgets an actor's large arguments, and cannot start it again then (ray-project/ray#53727): what a handle refers to stays
        large = len(ray.cloudpickle.dumps(config)) > ARGUMENT_BYTES
        kept = ray.put(config) if large and not detached else None
        dispatchers = [
            remote.options(
                name=actor_name(name, shard),
                namespace=NAMESPACE,
                lifetime="detached" if detached else None,
                num_cpus=0,
                max_restarts=-1,
                max_concurrency=CONCURRENT_CALLS,
            ).remote([kept or config], shard)
            for shard in range(config.shards)
        ]
        try:
            _get([dispatcher.ready.remote() for dispatcher in dispatchers])
            return cls(name, dispatchers, kept)
        except BaseException:
            for dispatcher in dispatchers:
                ray.kill(dispatcher)
            raise

    @classmethod
    def connect(cls, name: str = DEFAULT_NAME, address: str | None = None) -> MCPool:
        """The pool of that name; raises :class:`IrEnvError` if there is none."""
        _connect(address)
        first = find(name)
        if first is None:
            raise IrEnvError(f"no pool named {name!r} runs in this Ray cluster: start one with MCPool.start() or `ir-env pool start`")
        config = _get(first.info.remote())["config"]
        return cls(name, [first, *(ray.get_actor(actor_name(name, shard), NAMESPACE) for shard in range(1, config.shards))])

    def executor(self, quantize: Quantize = "uint8", toolbox: Any = None) -> PoolExecutor:
        """A caller of its own; any number may be used at once, from any thread. Costs nothing while it is not used.

        Args:
            quantize: see :class:`tool_actors.executor.LocalExecutor`.
            toolbox: which of the pool's tools to use, see :func:`tool_actors.toolboxes.load_toolbox`; by default all.

        Raises:
            IrEnvError: a tool of ``toolbox`` is not in the pool.
        """
        chosen = self.toolbox
        if toolbox is not None:
            names = names_of(toolbox)
            if missing := [name for name in names if name not in self.toolbox.names and name not in self.absent]:
                raise IrEnvError(f"pool {self.name!r} does not hold {', '.join(missing)}: start it with a toolbox that does")
            chosen = self.toolbox.select([name for name in names if name not in self.absent])
        return PoolExecutor(self, quantize, chosen)

    def status(self) -> dict[str, Any]:
        """Counters of all shards together, see :meth:`tool_actors.pool.dispatcher.Dispatcher.status`."""
        return merged(_get([dispatcher.status.remote() for dispatcher in self.dispatchers]))

    def stop(self) -> None:
        """End the pool; whoever waits for an answer gets an error."""
        for dispatcher in self.dispatchers:
            with contextlib.suppress(RayActorError, ray.exceptions.GetTimeoutError):
                ray.get(dispatcher.stop.remote(), timeout=10)
            ray.kill(dispatcher)

    def __reduce__(self):
        return MCPool.connect, (self.name,)


class PoolExecutor:
    """Runs requests in a pool; the same pixels as :class:`tool_actors.executor.LocalExecutor`.

    At most ``max_in_flight`` requests are outstanding at once; :meth:`submit` blocks beyond that. Safe to use from several threads.

    Between uses it holds no threads, and the pool keeps nothing for it: a connection that has nothing to do ends after a second, and
    another is made when there is. :meth:`close`, or ``with``, ends it at once, with whatever it waits for.

    :attr:`stats` counts what was answered here. A call of a tool may run images of several callers: each counts its share, so the ``calls``
    of all callers add up to the pool's batches.
    """

    def __init__(self, pool: MCPool, quantize: Quantize = "uint8", toolbox: Toolbox | None = None):
        if quantize not in ("uint8", "none"):
            raise IrEnvError(f"quantize must be 'uint8' or 'none', not {quantize!r}")
        self.pool, self.toolbox = pool, toolbox or pool.toolbox
        self.quantize: Quantize = quantize
        self.stats = ExecutorStats()
        self._shelf = Shelf(pool.config.reference_bytes)
        self._window = threading.BoundedSemaphore(pool.config.max_in_flight)
        self._connections: dict[int, Connection] = {}
        """By shard."""
        self._closed = False
        self._lock = threading.Lock()
        self._references: OrderedDict[int, tuple[np.ndarray, str]] = OrderedDict()
        # not at the end of the process: Ray goes then, too
        finalizer = weakref.finalize(self, _release, self._connections)
        finalizer.atexit = False  # pyrefly: ignore[missing-attribute]  # typeshed has its empty __slots__, and not that it is a property

    def close(self) -> None:
        """End it, and wait until the pool knows; requests without an answer fail, and so does every later one."""
        with self._lock:
            self._closed = True
            connections = list(self._connections.values())
        for connection in connections:
            connection.close()

    def __enter__(self) -> PoolExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer requests, in order; see :meth:`LocalExecutor.run`.

        A failure of the tool, or of the pool after its attempts, comes back in :attr:`Result.error`.

        Raises:
            UnknownToolError: a request names a tool that the pool does not hold (nothing is run then).
            IrEnvError: the executor is closed.
        """
        for request in requests:
            self.toolbox[request.tool]  # all are known, before the first is sent
        outcomes = self._outcomes((request.state.root, self._work(request)) for request in requests)
        return [self._result(request, outcome) for request, outcome in zip(requests, outcomes, strict=True)]

    def score(self, scorer: Scorer, states: Sequence[ImageState], references: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Metric vectors (K,) of states; raises what the metrics raise."""
        service = Service("metrics", ",".join(scorer.names))

        def work(state: ImageState, reference: np.ndarray | None) -> Work:
            shape = MetricsShape(state.shape, state.pixels.dtype.str, None if reference is None else reference.shape)
            mark = self._hash(reference)
            clean = None if reference is None else self._shelf.put(reference, mark)
            return Work(service, shape, (service, *state.key, mark), Pair(self._shelf.put(state.pixels, state.key), clean))

        pairs = zip(states, references, strict=True)
        outcomes = self._outcomes(((state.root, work(state, reference)) for state, reference in pairs), scorer)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [outcome.value for outcome in outcomes]

    def submit(self, request: Request) -> Future[Result]:
        """A future of the result; blocks while ``max_in_flight`` requests are outstanding."""
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()

        def finish(done: Future) -> None:
            error = done.exception()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(self._result(request, done.result()))

        self._send(request.state.root, self._work(request)).add_done_callback(finish)
        return future

    async def stream(self, requests: Sequence[Request]) -> AsyncIterator[tuple[int, Result]]:
        """(index, result) as results come in: ``async for index, result in executor.stream(requests)``."""
        import asyncio

        queue: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def feed() -> None:
            for index, request in enumerate(requests):
                future = self.submit(request)
                future.add_done_callback(lambda done, index=index: loop.call_soon_threadsafe(queue.put_nowait, (index, done)))

        # submit blocks when the window is full, which the event loop must not
        feeding = loop.run_in_executor(None, feed)
        for _ in requests:
            index, done = await queue.get()
            yield index, done.result()
        await feeding

    # -- sending -------------------------------------------------------------------------------------------------------------------

    def _work(self, request: Request) -> Work:
        spec = self.toolbox[request.tool].spec
        state = request.state
        key = (*state.key, spec.fingerprint, self.quantize) if spec.deterministic else None
        pixels = self._shelf.put(state.pixels, state.key)
        return Work(Service("tool", spec.name), ToolShape(state.shape, state.pixels.dtype.str, self.quantize), key, pixels)

    def _send(self, root: str, work: Work, scorer: Scorer | None = None) -> Future[Outcome]:
        self._window.acquire()
        try:
            future = self._send_to(int(root[:8], 16) % len(self.pool.dispatchers), work, scorer)
        except BaseException:
            self._window.release()
            raise
        # this keeps the executor until the answer is here, whoever else forgets it
        future.add_done_callback(lambda done: self._window.release())
        return future

    def _send_to(self, shard: int, work: Work, scorer: Scorer | None) -> Future[Outcome]:
        with self._lock:
            while not self._closed:
                connection = self._connections.get(shard)
                if connection is not None and (future := connection.send(work, scorer)) is not None:
                    return future
                self._connections[shard] = Connection(self.pool.dispatchers[shard], self.pool.config)
        raise IrEnvError("this executor is closed: take another, pool.executor()")

    def _outcomes(self, works: Iterable[tuple[str, Work]], scorer: Scorer | None = None) -> list[Outcome]:
        """Outcomes of (root, work) pairs; identical works are sent once. A work is taken when there is room to send it, with its pixels."""
        sent: dict[Any, Future[Outcome]] = {}
        futures = []
        for index, (root, work) in enumerate(works):
            key = ("once", index) if work.key is None else work.key
            first = key not in sent
            if first:
                sent[key] = self._send(root, work, scorer)
            futures.append((sent[key], first))
        outcomes = [(future.result(), first) for future, first in futures]
        return [outcome if first else outcome._replace(cached=outcome.error is None, batch=0) for outcome, first in outcomes]

    def _result(self, request: Request, outcome: Outcome) -> Result:
        pixels, error, seconds, cached = outcome.value, outcome.error, outcome.seconds, outcome.cached
        with self._lock:
            self.stats.requests += 1
            self.stats.hits += cached
            self.stats.failures += error is not None
            if outcome.batch:
                self.stats.executions += 1
                self.stats.calls += 1 / outcome.batch
                self.stats.seconds[request.tool] += seconds
        if error is not None:
            return Result(None, error, seconds)
        spec = self.toolbox[request.tool].spec
        step = spec.fingerprint if spec.deterministic else uuid.uuid4().hex
        return Result(ImageState(pixels, request.state.root, (*request.state.path, step)), None, seconds, cached)

    def _hash(self, reference: np.ndarray | None) -> str:
        if reference is None:
            return ""
        with self._lock:
            known = self._references.get(id(reference))
            # the array is kept beside its hash, so that its id cannot come to mean another
            if known is None or known[0] is not reference:
                known = self._references[id(reference)] = (reference, ImageState.from_pixels(reference).root)
                if len(self._references) > REFERENCES:
                    self._references.popitem(last=False)
            return known[1]


def _release(connections: dict[int, Connection]) -> None:
    for connection in connections.values():
        connection.release()


def find(name: str) -> ray.actor.ActorHandle | None:
    """The first dispatcher of a pool, if there is one."""
    try:
        return ray.get_actor(actor_name(name, 0), NAMESPACE)
    except ValueError:
        return None


def merged(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One status of several shards'."""
    total: dict[str, Any] = {"services": {}, "shards": len(parts)}
    for part in parts:
        for key, value in part.items():
            if key == "services":
                for name, stats in value.items():
                    mine = total["services"].setdefault(name, dict.fromkeys(stats, 0))
                    for counter, count in stats.items():
                        mine[counter] = max(mine[counter], count) if counter.startswith("max") else mine[counter] + count
            elif key == "seconds":
                total[key] = max(total.get(key, 0.0), value)
            elif key in total:
                total[key] += value
            else:
                total[key] = value
    return total


def _connect(address: str | None) -> None:
    if ray.is_initialized():
        return
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="warning")
    except ConnectionError as error:
        raise no_cluster(address) from error


def no_cluster(address: str | None) -> IrEnvError:
    """What to say where Ray does not answer; Ray itself does not tell a missing token from a missing cluster."""
    where = address if address and address != "auto" else os.environ.get("RAY_ADDRESS", "auto")
    return IrEnvError(
        f"no Ray cluster answers at {where!r}: start one with `ray start --head`, or give its address (--address, or RAY_ADDRESS); if it "
        "asks for a token, set RAY_AUTH_MODE=token, too"
    )


def _get(references: Any) -> Any:
    try:
        return ray.get(references)
    except (RayTaskError, RayActorError) as error:
        raise own_error(error) from None
