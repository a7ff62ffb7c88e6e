"""Who acts on pixels: restoration tools, the toolbox that holds them, and the executors that run them.

Nothing in this package knows a reward, a policy or an environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tool_actors.errors import IrEnvError
    from tool_actors.executor import ImageState, LocalExecutor, Request, Result
    from tool_actors.plans import iter_plans, run_plans
    from tool_actors.toolbox import Tool, Toolbox, ToolSpec
    from tool_actors.toolboxes import load_toolbox

__all__ = [
    "ImageState",
    "IrEnvError",
    "LocalExecutor",
    "Request",
    "Result",
    "Tool",
    "ToolSpec",
    "Toolbox",
    "iter_plans",
    "load_toolbox",
    "run_plans",
]

_MODULES = {
    "errors": ("IrEnvError",),
    "executor": ("ImageState", "LocalExecutor", "Request", "Result"),
    "plans": ("iter_plans", "run_plans"),
    "toolbox": ("Tool", "ToolSpec", "Toolbox"),
    "toolboxes": ("load_toolbox",),
}
"""Where each name is; loaded at its first use, so that importing the package costs nothing."""


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
