"""What the service grants, and how it refuses."""

from __future__ import annotations

from dataclasses import dataclass

from tool_actors.errors import IrEnvError


@dataclass(frozen=True)
class Limits:
    """Bounds of the service; each is an option of `ir-env serve`."""

    max_bytes: int = 64 << 20
    """Of a photograph's file."""
    max_pixels: int = 50_000_000
    """Of a photograph, and of whatever a tool enlarges it to."""
    max_plan: int = 12
    """Tools in a plan."""
    timeout_s: float = 300.0
    """For a restoration, once it runs."""
    upload_s: float = 60.0
    """For a whole body to arrive."""
    stall_s: float = 10.0
    """For the head of a request, and between two parts of a body."""
    reading_s: float = 60.0
    """For a client to take the next part of an answer."""
    waiting: int = 64
    """Photographs that wait; more are refused."""
    rate: int = 240
    """Requests a minute, and address, that upload something."""
    connections: int = 256
    """At once."""
    keep_s: float = 900.0
    """For so long a result is kept."""
    disk_bytes: int = 2 << 30
    """Of photographs and results together; the oldest results make room."""

    def __post_init__(self):
        for name, value in vars(self).items():
            if value <= 0:
                raise IrEnvError(f"{name} must be greater than 0, not {value}")
        if self.disk_bytes < 4 * self.max_bytes:
            raise IrEnvError(f"disk_bytes ({self.disk_bytes}) must hold at least four photographs of max_bytes ({self.max_bytes})")


class Refused(Exception):
    """A request that is not served, with its HTTP status, what is wrong with it and what to do."""

    def __init__(self, status: int, text: str, retry_s: float | None = None):
        super().__init__(text)
        self.status, self.text, self.retry_s = status, text, retry_s

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_s is None else {"retry-after": str(max(1, round(self.retry_s)))}


def megabytes(count: float) -> str:
    return f"{count / 2**20:.3g} MB"
