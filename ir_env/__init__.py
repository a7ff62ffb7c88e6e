"""Image-restoration planning as a Gymnasium environment.

Importing this package registers ``ir_env/Restoration-v0`` and ``ir_env/RestorationPlan-v0`` with Gymnasium; an id such as
``ir_env:ir_env/Restoration-v0`` imports it by itself.
Heavy libraries, Gymnasium and numpy among them, load when they are needed. A policy of one's own needs nothing but

>>> from ir_env import Planner, compare
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ir_env.registration import register_when_imported
from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    from ir_env.env import RestorationEnv
    from ir_env.evaluation import compare, evaluate
    from ir_env.plan_env import RestorationPlanEnv, RestorationPlanVectorEnv
    from ir_env.planner import NothingPlanner, Observation, Planner
    from ir_env.process import RestorationProcess
    from ir_env.vector_env import RestorationVectorEnv

__version__ = "0.1.0"
__all__ = [
    "IrEnvError",
    "NothingPlanner",
    "Observation",
    "Planner",
    "RestorationEnv",
    "RestorationPlanEnv",
    "RestorationPlanVectorEnv",
    "RestorationProcess",
    "RestorationVectorEnv",
    "compare",
    "evaluate",
]

_HOMES = {
    "NothingPlanner": "planner",
    "Observation": "planner",
    "Planner": "planner",
    "RestorationEnv": "env",
    "RestorationPlanEnv": "plan_env",
    "RestorationPlanVectorEnv": "plan_env",
    "RestorationProcess": "process",
    "RestorationVectorEnv": "vector_env",
    "compare": "evaluation",
    "evaluate": "evaluation",
}


def __getattr__(name: str) -> Any:
    """What is public loads when it is first asked for, so that the package itself imports at once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_imported()
