"""What a pool is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from tool_actors.errors import IrEnvError

DEFAULT_NAME = "mc-pool"
INLINE_BYTES = 100 << 10
"""Ray keeps smaller objects in the memory of their owner: a reference to one costs another message, and spares nothing."""


@dataclass(frozen=True)
class Placement:
    """Instances of one kind: actors that hold the same tools and ask Ray for the same resources."""

    tools: tuple[str, ...] = ("*",)
    """Names or patterns (``noise.*``) of the tools that are packed into each instance. A tool that several placements name runs on all."""
    replicas: int | Literal["auto"] = "auto"
    """How many; ``auto`` starts ``min_replicas``, adds one while requests wait, and takes away those that stay idle."""
    min_replicas: int = 1
    max_replicas: int | None = None
    """Of ``auto``; None: as many as the cluster has resources for."""
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    """Share of a GPU that one instance asks for; with a share, its tools run there."""
    scores: bool = True
    """Whether the instances compute metrics, too; a placement with ``tools=()`` is of metric actors alone."""
    warm_up: bool = True
    """Run each tool once on a small image before an instance counts as ready."""

    def __post_init__(self):
        object.__setattr__(self, "tools", (self.tools,) if isinstance(self.tools, str) else tuple(self.tools))
        if not self.tools and not self.scores:
            raise IrEnvError("a placement without tools and without scores does nothing: name tools, or set scores=True")
        if self.replicas != "auto" and (not isinstance(self.replicas, int) or self.replicas < 1):
            raise IrEnvError(f"replicas must be 'auto' or a number from 1 on, not {self.replicas!r}")
        if self.min_replicas < 1 or (self.max_replicas is not None and self.max_replicas < self.min_replicas):
            raise IrEnvError(f"min_replicas ({self.min_replicas}) must be at least 1 and at most max_replicas ({self.max_replicas})")
        if self.num_cpus < 0 or self.num_gpus < 0:
            raise IrEnvError(f"num_cpus ({self.num_cpus}) and num_gpus ({self.num_gpus}) must not be negative")

    @property
    def device(self) -> str:
        return "cuda" if self.num_gpus else "cpu"

    @property
    def bounds(self) -> tuple[int, int | None]:
        """Least and greatest number of instances."""
        return (self.min_replicas, self.max_replicas) if self.replicas == "auto" else (self.replicas, self.replicas)

    def holds(self, tool: str) -> bool:
        return any(fnmatchcase(tool, pattern) for pattern in self.tools)


@dataclass(frozen=True)
class PoolConfig:
    """Settings of a pool; a mapping with the same keys does where one is asked for, e.g. in YAML."""

    toolbox: Any = "default"
    """Name, toolbox file, list of tools, or toolbox, see :func:`tool_actors.toolboxes.load_toolbox`. Instances load their part."""
    placements: tuple[Placement, ...] = (Placement(),)
    max_batch: int = 16
    """Images per call of a tool."""
    max_wait_ms: float = 5.0
    """For so long a fuller batch may overtake an older request. Nothing waits while an instance is idle."""
    max_in_flight: int = 128
    """Requests queued or running at once in a shard, and outstanding at once per caller; more wait at their callers, which take turns."""
    cache_bytes: int = 256 << 20
    """Bound of the results kept, over all shards."""
    reference_bytes: int | None = 512 << 10
    """Images of at least so many bytes go through Ray's object store, and not through the dispatcher (:mod:`tool_actors.pool.pixels`);
    None: never. For smaller ones a reference costs more than it spares (``python -m experiments.measurements.pool --only references``).
    ``cache_bytes`` bounds what the cache keeps there, too."""
    timeout_s: float = 300.0
    """A call of an instance that takes longer counts as hung: the instance is replaced, its requests go to another."""
    caller_timeout_s: float = 600.0
    """A caller that is not heard of for so long has vanished, its answers are dropped. One that lives ends its connection within seconds
    of its last answer, and one that waits is heard of every 20 s."""
    start_timeout_s: float = 180.0
    """For an instance to be placed and to load its tools."""
    attempts: int = 3
    """Executions of one request, counting those that were lost with their instance. A tool's own exception is never retried."""
    shards: int = 1
    """Dispatchers; images are spread over them by their hash, and so are instances. One serves about as many calls per second as
    ``python -m experiments.measurements.pool --only capacity`` prints."""
    idle_s: float = 30.0
    """An ``auto`` instance that had nothing to do for so long goes."""

    def __post_init__(self):
        placements = [each if isinstance(each, Placement) else Placement(**each) for each in self.placements]
        object.__setattr__(self, "placements", tuple(placements))
        for name in ("max_batch", "max_in_flight", "attempts", "shards"):
            if getattr(self, name) < 1:
                raise IrEnvError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("timeout_s", "caller_timeout_s", "start_timeout_s"):
            if getattr(self, name) <= 0:
                raise IrEnvError(f"{name} must be positive, not {getattr(self, name)}")
        if self.reference_bytes is not None and self.reference_bytes < INLINE_BYTES:
            raise IrEnvError(f"reference_bytes must be at least {INLINE_BYTES}, or None, not {self.reference_bytes}")
        for placement in placements:
            if placement.bounds[1] is not None and placement.bounds[1] < self.shards:
                raise IrEnvError(f"{self.shards} shards need at least as many instances of {placement.tools}: raise replicas")

    @classmethod
    def of(cls, settings: PoolConfig | Mapping[str, Any] | None) -> PoolConfig:
        """A config from a mapping; raises :class:`IrEnvError` that names an unknown key."""
        if isinstance(settings, PoolConfig):
            return settings
        known = [each.name for each in fields(cls)]
        for key in settings or {}:
            if key not in known:
                raise IrEnvError(f"a pool has no setting {key!r}; it has {', '.join(known)}")
        return cls(**(settings or {}))


def uncovered(placements: Sequence[Placement], tools: Sequence[str]) -> list[str]:
    """The tools that no placement holds."""
    return [tool for tool in tools if not any(placement.holds(tool) for placement in placements)]
