"""Errors whose text names the thing that is wrong and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["DuplicateToolError", "IrEnvError", "ToolFailure", "UnknownNameError", "UnknownToolError"]


class IrEnvError(Exception):
    """Root of the project's own errors: the commands print its text without a traceback."""


class UnknownNameError(IrEnvError, KeyError):
    """A name that is none of the known ones; the message lists them and suggests the nearest."""

    def __init__(self, kind: str, name: object, known: Iterable[str], remedy: str = ""):
        known = sorted(map(str, known))
        nearest = difflib.get_close_matches(str(name), known, n=1)
        text = f"unknown {kind} {name!r}"
        text += f": did you mean {nearest[0]!r}?" if nearest else "."
        text += f" Known: {', '.join(known) or 'none'}."
        if remedy:
            text += f" {remedy}"
        super().__init__(text)

    def __str__(self) -> str:  # KeyError would print the repr
        return self.args[0]


class UnknownToolError(UnknownNameError):
    """A tool that the toolbox does not hold."""

    def __init__(self, name: object, known: Iterable[str]):
        super().__init__("tool", name, known, "`ir-env tools` lists them.")


class DuplicateToolError(IrEnvError, ValueError):
    """Two tools of one name in one toolbox."""


class ToolFailure(IrEnvError, RuntimeError):
    """A tool raised, or returned something that is no image. Holds the tool, the input's shape and the cause."""

    def __init__(self, tool: str, shape: tuple[int, ...], cause: str):
        super().__init__(f"tool {tool!r} failed on an image of shape {tuple(shape)}: {cause}")
        self.tool, self.shape, self.cause = tool, tuple(shape), cause

    def __reduce__(self):
        return type(self), (self.tool, self.shape, self.cause)
