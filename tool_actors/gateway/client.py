"""A pool in another environment or cluster, through its gateway: ``executor="pool:http://HOST:8200"``."""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tool_actors.errors import IrEnvError, ToolFailure
from tool_actors.executor import ExecutorStats, ImageState, LocalExecutor, Quantize, Request, Result, Scorer
from tool_actors.gateway.wire import MAX_BYTES, TOKEN_VARIABLE, pack, unpack
from tool_actors.remote_tool import RemoteTool
from tool_actors.toolbox import Toolbox, ToolSpec
from tool_actors.toolboxes import names_of

ATTEMPTS = 3
"""Of a message, where the connection breaks or the gateway has no room; running a request again changes nothing."""
PAUSE_S = 0.5
PART_BYTES = MAX_BYTES // 8
"""Images of about so many bytes go in one message."""


class RemoteExecutor:
    """Runs requests in a pool behind a gateway; the same pixels as :class:`tool_actors.executor.LocalExecutor`.

    Metrics are computed in this process: they are code of the trainer's, which a gateway does not run. Safe to use from several threads.

    Args:
        url: of the gateway.
        quantize: see :class:`tool_actors.executor.LocalExecutor`.
        toolbox: which of the pool's tools to use, see :func:`tool_actors.toolboxes.load_toolbox`; by default all.
        token: the gateway's word; by default what :data:`TOKEN_VARIABLE` holds.
        timeout_s: of an answer.

    Raises:
        IrEnvError: no gateway answers there; it refuses; or a tool of ``toolbox`` is not in the pool.
    """

    def __init__(self, url: str, quantize: Quantize = "uint8", toolbox: Any = None, token: str | None = None, timeout_s: float = 600.0):
        self._place = urllib.parse.urlsplit(url)
        if self._place.scheme not in ("http", "https") or not self._place.hostname:
            raise IrEnvError(f"{url!r} is no address of a pool's gateway: give one like http://HOST:8200")
        token = token or os.environ.get(TOKEN_VARIABLE)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url, self.timeout_s = url, timeout_s
        self._local = threading.local()
        self._lock = threading.Lock()
        told = json.loads(self._ask("GET", "/tools"))
        there = Toolbox([RemoteTool(ToolSpec(**spec)) for spec in told["specs"]], name=f"pool {told['name']}")
        if toolbox is not None:
            names = names_of(toolbox)
            if missing := [name for name in names if name not in there.names and name not in told["absent"]]:
                raise IrEnvError(f"the pool at {url} does not hold {', '.join(missing)}: start it with a toolbox that does")
            there = there.select([name for name in names if name not in told["absent"]])
        self.toolbox = there
        self.quantize: Quantize = quantize
        self.stats = ExecutorStats()
        self._scores = LocalExecutor(there, quantize)

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer requests, in order; see :meth:`LocalExecutor.run`.

        Raises:
            UnknownToolError: a request names a tool that the pool does not hold (nothing is run then).
            IrEnvError: the gateway does not answer, or refuses.
        """
        for request in requests:
            self.toolbox[request.tool]  # all are known, before the first is sent
        results = [result for part in _parts(requests) for result in self._run(part)]
        with self._lock:
            self.stats.requests += len(results)
            self.stats.hits += sum(result.cached for result in results)
            self.stats.failures += sum(result.error is not None for result in results)
            for request, result in zip(requests, results, strict=True):
                if not result.cached:
                    self.stats.executions += 1
                    self.stats.seconds[request.tool] += result.seconds
        return results

    def score(self, scorer: Scorer, states: Sequence[ImageState], references: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Metric vectors (K,) of states, computed here."""
        with self._lock:
            return self._scores.score(scorer, states, references)

    def _run(self, requests: Sequence[Request]) -> list[Result]:
        images = {request.state.key: request.state.pixels for request in requests}
        places = {key: index for index, key in enumerate(images)}
        words = {"quantize": self.quantize, "requests": [(places[request.state.key], request.tool) for request in requests]}
        told, arrays = unpack(self._ask("POST", "/run", pack(words, list(images.values()))))
        pixels = iter(arrays)
        return [self._result(request, each, pixels) for request, each in zip(requests, told, strict=True)]

    def _result(self, request: Request, told: dict[str, Any], pixels: Iterator[np.ndarray]) -> Result:
        state, spec = request.state, self.toolbox[request.tool].spec
        if "cause" in told:
            return Result(None, ToolFailure(request.tool, state.shape, told["cause"]), told["seconds"])
        if "error" in told:
            return Result(None, IrEnvError(told["error"]), told["seconds"])
        step = spec.fingerprint if spec.deterministic else uuid.uuid4().hex
        return Result(ImageState(next(pixels), state.root, (*state.path, step)), None, told["seconds"], told["cached"])

    # -- the connection ------------------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        failure = ""
        for attempt in range(ATTEMPTS):
            time.sleep(PAUSE_S * attempt)
            try:
                connection = self._connection()
                connection.request(method, self._place.path.rstrip("/") + path, body, self._headers)
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection(new=True)
                failure = f"{type(error).__name__}: {error}"
                continue
            if answer.status == http.HTTPStatus.OK:
                return said
            failure = _reason(said) or answer.reason
            if answer.status != http.HTTPStatus.SERVICE_UNAVAILABLE:
                raise IrEnvError(f"the pool at {self.url} refuses: {failure}")
        raise IrEnvError(f"the pool at {self.url} does not answer ({failure}). Does `ir-env pool serve` run there?")

    def _connection(self, new: bool = False) -> http.client.HTTPConnection:
        """That of this thread."""
        if new or not hasattr(self._local, "connection"):
            kind = http.client.HTTPSConnection if self._place.scheme == "https" else http.client.HTTPConnection
            self._local.connection = kind(self._place.hostname or "", self._place.port, timeout=self.timeout_s)
        return self._local.connection


def _parts(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """The requests in order, in parts that each fit into a message."""
    part: list[Request] = []
    size = 0
    for request in requests:
        if part and size + request.state.pixels.nbytes > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(request)
        size += request.state.pixels.nbytes
    if part:
        yield part


def _reason(said: bytes) -> str:
    try:
        return str(json.loads(said)["error"])
    except (ValueError, LookupError, TypeError):
        return ""
