"""The table of actions: index <-> (task, tool), and stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tool_actors.errors import IrEnvError
from tool_actors.toolbox import Toolbox

__all__ = ["MALFORMED", "Action", "ActionTable"]

MALFORMED = -1
"""Stands for an answer that names no action, as a language model may write one: never allowed, it runs nothing, and the step counts."""


@dataclass(frozen=True)
class Action:
    """Apply one tool."""

    task: str
    tool: str

    def __str__(self) -> str:
        return self.tool


class ActionTable(Sequence[Action]):
    """The (task, tool) pairs of a toolbox, in its order; the index after the last is stop.

    Args:
        toolbox: gives one action per tool.
        low_resolution_below: an image counts as low-resolution, and may be super-resolved, while its longer side is shorter than this
            many pixels. The published systems use 300 on photographs of 512 px and more.
    """

    def __init__(self, toolbox: Toolbox, low_resolution_below: int = 300):
        enlarges = [tool.spec.scale > 1 for tool in toolbox]
        self._fill([Action(tool.spec.task, tool.spec.name) for tool in toolbox], enlarges, low_resolution_below)

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[str, str]], low_resolution_below: int = 300) -> ActionTable:
        """The table of (task, tool) pairs, for those that only name actions: the tools themselves are not loaded."""
        table = cls.__new__(cls)
        table._fill([Action(*pair) for pair in pairs], [task == "super_resolve" for task, _ in pairs], low_resolution_below)
        return table

    def _fill(self, actions: list[Action], enlarges: list[bool], low_resolution_below: int) -> None:
        if not actions:
            raise IrEnvError("the toolbox is empty: a policy needs at least one tool")
        self._actions, self._enlarges = actions, np.array(enlarges)
        self._index = {action.tool: index for index, action in enumerate(actions)}
        self.low_resolution_below = low_resolution_below
        self.forbidden: frozenset[int] = frozenset()
        """Actions that :meth:`mask` never allows, such as the tools that a user does not want."""

    @property
    def stop(self) -> int:
        return len(self._actions)

    @property
    def n(self) -> int:
        """Number of actions with stop: the size of the ``Discrete`` action space."""
        return len(self._actions) + 1

    @property
    def enlarging(self) -> frozenset[int]:
        """The actions that make the image larger."""
        return frozenset(np.flatnonzero(self._enlarges).tolist())

    def index(self, tool: str) -> int:  # type: ignore[override]
        """The index of a tool's action, or of ``"stop"``."""
        if tool == "stop":
            return self.stop
        if tool not in self._index:
            raise IrEnvError(f"no action uses the tool {tool!r}; there are {', '.join(self._index)} and stop")
        return self._index[tool]

    def name(self, index: int) -> str:
        """Of the tool; ``"stop"``, or ``"malformed"``."""
        return {self.stop: "stop", MALFORMED: "malformed"}.get(index) or self._actions[index].tool

    def allows(self, index: int, mask: np.ndarray) -> bool:
        """Whether an action (or :data:`MALFORMED`) is allowed by a mask of :meth:`mask`."""
        return index != MALFORMED and bool(mask[index])

    def mask(self, size: tuple[int, int], history: Sequence[int]) -> np.ndarray:
        """int8 (n,): 1 where an action is allowed.

        By itself only super-resolution is ever forbidden: it is allowed once, and while the image is low-resolution. Repeats and tools for
        degradations that are not there can help, so they stay allowed; stop always is.
        """
        mask = np.ones(self.n, np.int8)
        if max(size) >= self.low_resolution_below or any(self._enlarges[index] for index in history if 0 <= index < self.stop):
            mask[:-1][self._enlarges] = 0
        mask[list(self.forbidden)] = 0
        return mask

    def __getitem__(self, index):
        return self._actions[index]

    def __len__(self) -> int:
        return len(self._actions)
