"""What callers, dispatchers and instances tell one another: named tuples, which cost no more to send than their parts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from tool_actors.executor import Quantize
from tool_actors.pool.pixels import Shelved

Pixels = np.ndarray | Shelved


class Service(NamedTuple):
    """What a job asks for; the kind is part of it, so a tool may be called what it likes."""

    kind: Literal["tool", "metrics"]
    name: str
    """Of the tool; or of the metrics, with commas between them."""

    def __str__(self) -> str:
        return f"{self.kind} {self.name!r}"


class ToolShape(NamedTuple):
    """What images must have in common to go through a tool as one batch."""

    image: tuple[int, int, int]
    dtype: str
    quantize: Quantize


class MetricsShape(NamedTuple):
    """What pairs must have in common to be scored as one batch."""

    image: tuple[int, int, int]
    dtype: str
    reference: tuple[int, int, int] | None


class Pair(NamedTuple):
    """What metrics compare."""

    image: Pixels
    reference: Pixels | None


class Work(NamedTuple):
    """What a caller asks for."""

    service: Service
    shape: ToolShape | MetricsShape
    key: Hashable | None
    """Works of equal keys have equal results; None: every execution is another."""
    payload: Pixels | Pair
    again: bool = False
    """Whether the result that was kept is lost: it is made once more then."""


class Outcome(NamedTuple):
    """What came of it."""

    value: Any = None
    """Pixels, themselves or shelved, or a metric vector."""
    error: Exception | None = None
    """The tool's or the metrics' failure, or a :class:`tool_actors.pool.scheduler.PoolFailure`."""
    seconds: float = 0.0
    """Running time: its share of its batch."""
    cached: bool = False
    """True if nothing ran for it: its value was in the cache, or made for an identical job."""
    batch: int = 0
    """Jobs that ran in the same call of an instance, itself included; 0 if nothing ran for it."""
    size: int = 0
    """Bytes that keeping the value costs; 0: it is not to be kept."""


class Delivery(NamedTuple):
    """What a dispatcher has for a caller."""

    number: int
    """Counts a caller's deliveries, from 1 on; 0 says that the dispatcher knows nothing of the caller."""
    outcomes: Mapping[int, Outcome]
    """By the tickets that the caller gave its works."""


UNKNOWN = Delivery(0, {})
