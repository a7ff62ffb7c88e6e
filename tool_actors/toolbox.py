"""Tools and the ordered set that holds them; :mod:`tool_actors.toolboxes` has the named sets.

A tool is a :class:`ToolSpec` and a callable from a float tensor (B, 3, H, W) in [0, 1] to (B, 3, sH, sW), s = ``spec.scale``.
A :class:`Toolbox` is built from an explicit list. Users add a tool of their own by

* a subclass of :class:`Tool` and :meth:`Toolbox.add`, or
* an entry point of the group ``ir_env.tools`` in their own package, see :mod:`tool_actors.toolboxes`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

from tool_actors.errors import DuplicateToolError, IrEnvError, UnknownNameError, UnknownToolError
from tool_actors.tasks import ALL_IN_ONE, TASK_OF, is_task

if TYPE_CHECKING:
    import torch

    from tool_actors.manifest import Checkpoint

__all__ = ["Deferred", "Tool", "ToolSpec", "Toolbox", "fingerprint"]


@dataclass(frozen=True)
class ToolSpec:
    """What a tool is, without its weights."""

    name: str
    """Unique, `family.variant`, e.g. ``restormer.derain``."""
    task: str
    """One of those of :data:`tool_actors.tasks.TASK_OF`, or :data:`tool_actors.tasks.ALL_IN_ONE`."""
    fingerprint: str
    """Changes whenever weights, parameters or code change what the tool returns; part of every cache key."""
    scale: int = 1
    """Output side over input side."""
    deterministic: bool = True
    """False if the same input may give another output: such results are never cached or shared."""
    tile: int | None = None
    """Longest side, in input pixels, that it takes at once; longer images go through in overlapping tiles. None: no limit of its own."""
    batch_invariant: bool = False
    """True if the tool itself promises that what it returns for an image is the same, to the last bit, in whatever batch: for tools with a
    high cost per call, such as another process's. Others get one image at a time on a CPU, which keeps that promise for them."""
    differentiable: bool = False
    """True if gradients flow from the output to the input (learned tools)."""
    description: str = ""
    """What it does, with parameters, source and cost."""
    summary: str = ""
    """The same in a few words, for lists."""

    def __post_init__(self):
        if not is_task(self.task):
            raise UnknownNameError("task", self.task, [*TASK_OF.values(), ALL_IN_ONE])
        if self.scale < 1:
            raise IrEnvError(f"tool {self.name!r}: scale must be at least 1, not {self.scale}")
        # ":" separates a kind from a name wherever users write both, such as fixed:TOOL and pool:NAME
        if not self.name or {"/", ":"} & set(self.name) or self.name != self.name.strip():
            raise IrEnvError(f"tool name {self.name!r} is not usable: write `family.variant`, without spaces, slashes or colons")


class Tool(ABC):
    """One restorer of one task.

    What executors promise for deterministic tools, as :func:`tool_actors.executor.run_tool` keeps it:

    * On one machine's CPU a result is the same to the last bit, whether its image is alone or in any batch, here or in a pool, and however
      many threads the process uses: a tool gets one image at a time, and torch one thread for it.
    * On another processor what a tool of the toolbox `default` makes of a state differs by at most one level.
    * On a GPU, which takes whole batches and other precisions where a tool says so, results are near, and no more is promised.
    """

    spec: ToolSpec

    @abstractmethod
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Restore a batch.

        Args:
            images: float32 (B, 3, H, W), RGB in [0, 1].

        Returns:
            float32 (B, 3, sH, sW), RGB in [0, 1], on the same device.
        """

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.spec.name}: {self.spec.task}>"


@dataclass(frozen=True)
class Deferred:
    """A tool that is not loaded yet, because its weights are big, or perhaps not there."""

    name: str
    task: str
    build: Callable[[], Tool]
    """Loads the weights; raises ``WeightsMissing`` or ``UnsupportedCheckpointError``."""
    summary: str = ""
    checkpoint: Checkpoint | None = None
    """Of tools that a toolbox file describes."""
    scale: int = 0
    """Output side over input side, of tools whose weights are there for certain; 0 if that is known only when they are built."""


def fingerprint(*parts: object) -> str:
    """A short hash of everything that decides what a tool returns (code, parameters, weights)."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


class Toolbox(Sequence[Tool]):
    """An ordered set of tools with unique names.

    The order is the order of the actions of an environment, so it is part of what a policy has learned.
    """

    def __init__(self, tools: Iterable[Tool] = (), name: str = "custom"):
        self.name = name
        self.absent: dict[str, IrEnvError] = {}
        """Tools that belong here, but whose weights are not there or not usable: the error that choosing one raises."""
        self._described: dict[str, dict] = {}
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            self.add(tool)

    def add(self, tool: Tool, described: dict | None = None) -> Toolbox:
        """Append a tool (``described``: its checkpoint, as in a toolbox file); raises :class:`DuplicateToolError` if its name is taken."""
        if not isinstance(getattr(tool, "spec", None), ToolSpec):
            raise IrEnvError(f"{tool!r} is no tool: it needs an attribute `spec` that is a ToolSpec")
        if tool.spec.name in self._tools:
            raise DuplicateToolError(f"toolbox {self.name!r} already holds a tool named {tool.spec.name!r}: rename one")
        self._tools[tool.spec.name] = tool
        if described:
            self._described[tool.spec.name] = described
        return self

    def select(self, names: Iterable[str]) -> Toolbox:
        """The toolbox of just these tools, in this order; raises :class:`UnknownToolError`."""
        chosen = Toolbox()
        for name in names:
            chosen.add(self[name], self._described.get(name))
        return chosen

    def for_task(self, task: str) -> list[Tool]:
        return [tool for tool in self if tool.spec.task == task]

    @property
    def references(self) -> list[str | dict]:
        """Per tool what a list of tools must hold to mean it: its name, or the description of its checkpoint."""
        return [self._described.get(name, name) for name in self._tools]

    @property
    def names(self) -> list[str]:
        return list(self._tools)

    @overload
    def __getitem__(self, key: int | str) -> Tool: ...
    @overload
    def __getitem__(self, key: slice) -> list[Tool]: ...
    def __getitem__(self, key):
        if isinstance(key, str):
            try:
                return self._tools[key]
            except KeyError:
                raise self.absent.get(key) or UnknownToolError(key, self._tools) from None
        return list(self._tools.values())[key]

    def __contains__(self, key: object) -> bool:
        return key in self._tools or key in self._tools.values()

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __repr__(self) -> str:
        return f"Toolbox({self.name!r}, {self.names})"
