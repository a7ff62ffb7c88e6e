"""The named toolboxes, and how to get one.

A package offers tools of its own through an entry point of the group ``ir_env.tools`` whose value is a callable that returns tools; they
are the toolbox ``plugins``, and a list of names may mix them with the others.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence

from tool_actors.checkpoints import WeightsMissing
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.toolbox import Tool, Toolbox

ENTRY_POINT_GROUP = "ir_env.tools"
UNSHIPPED = ("rl_restore", "ffdnet", "dncnn", "aodnet", "prenet", "prn_r", "imdn")
"""Families whose weights are found, not shipped."""


def _classical() -> list[Tool]:
    from tool_actors.classical import classical_tools

    return classical_tools()


def _published() -> list[Tool]:
    from tool_actors.published import published_tools

    return published_tools()


def _rl_restore() -> list[Tool]:
    from tool_actors.published import rl_restore_tools

    return rl_restore_tools()


def _plugins() -> list[Tool]:
    """The tools that installed packages offer through the entry point group ``ir_env.tools``."""
    tools: list[Tool] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            tools.extend(entry.load()())
        except Exception as error:
            raise IrEnvError(
                f"entry point {entry.name!r} of the group {ENTRY_POINT_GROUP!r} ({entry.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}. Mend or uninstall the package that declares it."
            ) from error
    return tools


NAMED_TOOLBOXES: dict[str, Callable[[], list[Tool]]] = {
    "classical": _classical,
    "plugins": _plugins,
    "rl_restore": _rl_restore,
    "published": _published,
}


def load_toolbox(toolbox: str | Sequence[str] | Toolbox) -> Toolbox:
    """A toolbox by name (one of :data:`NAMED_TOOLBOXES`), from a list of tool names, or as it is.

    Raises:
        UnknownNameError: no toolbox of that name.
        UnknownToolError: a name in the list that no toolbox holds.
        WeightsMissing: the toolbox, or the only toolbox that could hold a name of the list, needs weights that are not there.
    """
    if isinstance(toolbox, Toolbox):
        return toolbox
    if isinstance(toolbox, str):
        if toolbox not in NAMED_TOOLBOXES:
            raise UnknownNameError("toolbox", toolbox, NAMED_TOOLBOXES, "A list of tool names is a toolbox, too.")
        return Toolbox(NAMED_TOOLBOXES[toolbox](), name=toolbox)
    found = Toolbox(name="everything")
    missing: WeightsMissing | None = None
    for build in NAMED_TOOLBOXES.values():
        if all(name in found for name in toolbox):
            break
        try:
            tools = build()
        except WeightsMissing as error:
            missing = missing or error
            continue
        for tool in tools:
            if tool.spec.name not in found:
                found.add(tool)
    unknown = [name for name in toolbox if name not in found]
    if unknown and missing is not None and unknown[0].split(".")[0] in UNSHIPPED:
        raise missing
    return found.select(toolbox)
