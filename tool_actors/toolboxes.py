"""The named toolboxes, and how to get one.

A package offers tools of its own through an entry point of the group ``ir_env.tools`` whose value is a callable that returns tools; they
are the toolbox ``plugins``, and a list of names may mix them with the others.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence

from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.toolbox import Tool, Toolbox

ENTRY_POINT_GROUP = "ir_env.tools"


def _classical() -> list[Tool]:
    from tool_actors.classical import classical_tools

    return classical_tools()


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
}


def load_toolbox(toolbox: str | Sequence[str] | Toolbox) -> Toolbox:
    """A toolbox by name (``classical``, ``plugins``), from a list of tool names, or as it is.

    Raises:
        UnknownNameError: no toolbox of that name.
        UnknownToolError: a name in the list that no toolbox holds.
    """
    if isinstance(toolbox, Toolbox):
        return toolbox
    if isinstance(toolbox, str):
        if toolbox not in NAMED_TOOLBOXES:
            raise UnknownNameError("toolbox", toolbox, NAMED_TOOLBOXES, "A list of tool names is a toolbox, too.")
        return Toolbox(NAMED_TOOLBOXES[toolbox](), name=toolbox)
    everything = Toolbox(name="everything")
    for build in NAMED_TOOLBOXES.values():
        for tool in build():
            if tool.spec.name not in everything:
                everything.add(tool)
    return everything.select(toolbox)
