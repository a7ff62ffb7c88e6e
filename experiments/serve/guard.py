"""What stands before the application: an ASGI middleware for every request, and a protocol of uvicorn for what is no request yet."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Collection
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from experiments.serve.limits import Limits, Refused, megabytes
from experiments.serve.metrics import Metrics

LOCAL = frozenset({"localhost", "127.0.0.1", "[::1]"})
CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
ADDRESSES = 4096
"""Whose rate is remembered."""
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses what comes from other sites, too often, too large or too slowly, and counts what was answered.

    A name that resolves to this machine, or a form on another page, is how a web site would reach a service on its visitor's loopback: the
    ``Host`` must be one of ``hosts``, and the ``Origin``, where a browser tells it of a request that changes something, must be this
    service.

    Args:
        app: the application.
        limits: the bounds.
        metrics: the counters.
        hosts: names by which the service may be asked for, without port; ``*`` for any.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics, hosts: Collection[str]):
        self.app, self.limits, self.metrics = app, limits, metrics
        self.hosts = {name.lower() for name in hosts}
        self._tokens: OrderedDict[str, tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send) if scope["type"] == "lifespan" else None
        start, status = time.perf_counter(), 500
        body = _Body(receive, self.limits)

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *((key.encode(), value.encode()) for key, value in HEADERS.items())]
            try:
                await asyncio.wait_for(send(message), self.limits.reading_s)
            except TimeoutError:
                raise ConnectionError("the client takes no answer") from None

        try:
            self._admit(scope)
            body.expect(scope)
            await self.app(scope, body, guarded_send)
        except Refused as refused:
            await refuse(refused, guarded_send)
        except (ConnectionError, ClientDisconnect):
            status = 499
        finally:
            self.metrics.answered(scope, status, time.perf_counter() - start)

    def _admit(self, scope: Scope) -> None:
        headers = _headers(scope)
        host = headers.get("host", "").lower()
        if "*" not in self.hosts and _name(host) not in self.hosts:
            raise Refused(421, "this service is not known by that name: ask for it as it was started, or name it with --allow-host")
        if scope["method"] not in CHANGING:
            return
        origin = headers.get("origin")
        if (origin is not None and origin.partition("://")[2].lower() != host) or headers.get("sec-fetch-site") == "cross-site":
            raise Refused(403, "requests from other sites' pages are not answered")
        if scope["method"] == "POST":
            self._count((scope.get("client") or ("",))[0])

    def _count(self, address: str) -> None:
        """A bucket of tokens for each address."""
        now = time.monotonic()
        tokens, then = self._tokens.pop(address, (float(self.limits.rate), now))
        tokens = min(float(self.limits.rate), tokens + (now - then) * self.limits.rate / 60)
        self._tokens[address] = (max(0.0, tokens - 1), now)
        while len(self._tokens) > ADDRESSES:
            self._tokens.popitem(last=False)
        if tokens < 1:
            raise Refused(429, f"more than {self.limits.rate} photographs a minute: wait a little", 60 / self.limits.rate)


class _Body:
    """``receive`` within the bounds of size and time."""

    def __init__(self, receive: Receive, limits: Limits):
        self._receive, self._limits = receive, limits
        # what a form adds around a photograph
        self._room = limits.max_bytes + (64 << 10)
        self._end = time.monotonic() + limits.upload_s
        self._arrived = False

    def expect(self, scope: Scope) -> None:
        length = _headers(scope).get("content-length", "0")
        if not length.isdigit():
            raise Refused(400, "content-length is no number")
        if int(length[:20]) > self._room:
            self._too_large()

    async def __call__(self) -> Message:
        if self._arrived:  # nothing comes any more but the end of the connection
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0, min(self._limits.stall_s, self._end - time.monotonic())))
        except TimeoutError:
            raise Refused(408, "the photograph arrives too slowly") from None
        if message["type"] == "http.request":
            self._arrived = not message.get("more_body", False)
            self._room -= len(message.get("body", b""))
            if self._room < 0:
                self._too_large()
        return message

    def _too_large(self) -> None:
        raise Refused(413, f"the file is larger than {megabytes(self._limits.max_bytes)}: save it smaller, or raise --max-megabytes")


async def refuse(refused: Refused, send: Send) -> None:
    body = json.dumps({"error": refused.text}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    pairs = [(key.encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}


def _name(host: str) -> str:
    """Without the port."""
    head, colon, port = host.rpartition(":")
    return head if colon and port.isdigit() else host


class PatientProtocol(H11Protocol):
    """Ends connections that send no whole head of a request in time, from their beginning or from the end of the last answer on.

    uvicorn waits for a head for ever. What is left of a body that was refused is read, so that the client sees the answer, but not longer.
    """

    stall_s = Limits.stall_s

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._watch = self.loop.call_later(self.stall_s, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        if self.transport.is_closing():
            return
        idle = self.cycle is None or self.cycle.response_complete
        left = self._idle_since + self.stall_s - self.loop.time() if idle else self.stall_s
        if left <= 0:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(max(0.05, left), self._look)
