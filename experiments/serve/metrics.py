"""What Prometheus reads."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from starlette.types import Scope

SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one service; :meth:`text` is the exposition."""

    def __init__(self):
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        own = {"registry": self.registry}
        self.requests = Counter("ir_env_requests", "Requests answered; 499: the client left", ["method", "route", "code"], **own)
        self.seconds = Histogram(
            "ir_env_request_seconds", "From the head of a request to the end of its answer", ["route"], buckets=SECONDS, **own
        )
        self.jobs = Counter("ir_env_jobs", "Restorations by what became of them", ["state"], **own)
        self.job_seconds = Histogram("ir_env_job_seconds", "Of a restoration, without its wait", buckets=SECONDS, **own)
        self.tools = Counter("ir_env_tool_runs", "Tools run", ["tool"], **own)
        self.tool_seconds = Counter("ir_env_tool_seconds", "Spent by tools", ["tool"], **own)
        self.uploaded = Counter("ir_env_uploaded_bytes", "Of photographs that were taken", **own)

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        # the pattern of the route, since a client's own paths would be without number
        route = getattr(scope.get("route"), "path", "none")
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST", "DELETE") else "other"
        self.requests.labels(method, route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
