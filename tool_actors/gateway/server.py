"""A pool over HTTP, for trainers in another environment or cluster: ``ir-env pool serve``.

``GET /tools`` tells the specs of the tools, ``GET /status`` the counters, and ``POST /run`` runs requests; messages are those of
:mod:`tool_actors.gateway.wire`. The gateway hashes every image itself, so that no client can put a wrong result into the shared cache.

HTTP is not encrypted: across a network that others use, take a tunnel (``ssh -L``) or a proxy with TLS in front.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import threading
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tool_actors.errors import IrEnvError, ToolFailure
from tool_actors.executor import ImageState, Request, Result
from tool_actors.gateway.wire import MAX_BYTES, TOKEN_VARIABLE, pack, unpack
from tool_actors.pool.client import MCPool, PoolExecutor
from tool_actors.pool.counters import plain

SILENCE_S = 60.0
"""A connection on which nothing comes for so long is closed; clients open another."""
AT_ONCE = 64
"""Messages that are worked on at once; to more, the answer is to try later."""


class Gateway(ThreadingHTTPServer):
    """Serves a pool: ``Gateway(pool).serve_forever()``.

    Args:
        pool: whose tools.
        host, port: to listen on; port 0 takes a free one.
        token: clients must send it; by default what :data:`TOKEN_VARIABLE` holds. None: no word is asked for.

    Raises:
        IrEnvError: other machines could reach it and no token is set; or the port is taken.
    """

    daemon_threads = True

    def __init__(self, pool: MCPool, host: str = "127.0.0.1", port: int = 8200, token: str | None = None):
        self.token = token or os.environ.get(TOKEN_VARIABLE) or None
        if self.token is None and not _is_local(host):
            raise IrEnvError(f"{host} can be reached from other machines: set {TOKEN_VARIABLE} here and for the clients, or take 127.0.0.1")
        self.pool = pool
        self.room = threading.BoundedSemaphore(AT_ONCE)
        self._executors: dict[str, PoolExecutor] = {}
        self._lock = threading.Lock()
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise IrEnvError(f"{host}:{port} cannot be listened on ({error.strerror}): give another --host or --port") from error

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]}:{self.server_port}"

    def tools(self) -> dict[str, Any]:
        """What a client has to know of the pool."""
        return {"name": self.pool.name, "specs": [asdict(tool.spec) for tool in self.pool.toolbox], "absent": self.pool.absent}

    def run(self, message: bytes) -> bytes:
        """Run a client's requests; raises :class:`IrEnvError` where it is a wrong message."""
        words, images = unpack(message)
        try:
            quantize, asked = words["quantize"], [(int(image), str(tool)) for image, tool in words["requests"]]
            states = [ImageState.from_pixels(image, quantize) for image in images]
            requests = [Request(states[image], tool) for image, tool in asked]
        except (LookupError, TypeError, ValueError) as error:
            raise IrEnvError(f"a message needs `quantize`, and `requests` of (image, tool): {type(error).__name__}: {error}") from error
        results = self._executor(quantize).run(requests)
        return pack([_told(result) for result in results], [each.state.pixels for each in results if each.state is not None])

    def _executor(self, quantize: Any) -> PoolExecutor:
        with self._lock:
            if quantize not in self._executors:
                self._executors[quantize] = self.pool.executor(quantize)
            return self._executors[quantize]


def _told(result: Result) -> dict[str, Any]:
    told: dict[str, Any] = {"seconds": result.seconds, "cached": result.cached}
    if result.error is not None:
        told["error"] = str(result.error)
        if isinstance(result.error, ToolFailure):
            told["cause"] = result.error.cause
    return told


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    server: Gateway  # pyrefly: ignore[bad-override-mutable-attribute]  # socketserver makes it with the server that it is of
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S

    def do_GET(self) -> None:
        if not self._may():
            return
        if self.path == "/tools":
            self._answer(HTTPStatus.OK, _json(self.server.tools()))
        elif self.path == "/status":
            self._answer(HTTPStatus.OK, _json(plain(self.server.pool.status())))
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there are /tools, /status and /run")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not self._may():
            return
        if self.path != "/run":
            self._refuse(HTTPStatus.NOT_FOUND, "there are /tools, /status and /run")
        elif not length.isdigit():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "a message needs its Content-Length")
        elif int(length) > MAX_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a message may hold {MAX_BYTES} bytes: send fewer images at once")
        elif not self.server.room.acquire(blocking=False):
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, f"{AT_ONCE} messages are being worked on: try again")
        else:
            try:
                self._answer(HTTPStatus.OK, self.server.run(self.rfile.read(int(length))))
            except IrEnvError as error:
                self._refuse(HTTPStatus.BAD_REQUEST, str(error))
            finally:
                self.server.room.release()

    def _may(self) -> bool:
        token = self.server.token
        if token is None or hmac.compare_digest(self.headers.get("Authorization", "").encode(), f"Bearer {token}".encode()):
            return True
        self._refuse(HTTPStatus.UNAUTHORIZED, f"set {TOKEN_VARIABLE} to the word that the gateway was started with")
        return False

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        self.close_connection = True  # what was sent with it has perhaps not been read
        self._answer(status, _json({"error": text}))

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None: ...


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
