"""Tells Gymnasium of the environments as soon as it is imported, without importing it: that takes longer than the rest of the package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REGISTRATION = "gymnasium.envs.registration"
ENVS = {
    "ir_env/Restoration-v0": ("ir_env.env:RestorationEnv", "ir_env.vector_env:RestorationVectorEnv"),
    "ir_env/RestorationPlan-v0": ("ir_env.plan_env:RestorationPlanEnv", "ir_env.plan_env:RestorationPlanVectorEnv"),
}
"""Id -> where the environment is, and its vector form."""


def register_when_imported() -> None:
    """Register at once if Gymnasium is imported already, else right after it is."""
    if REGISTRATION in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _Watch())


def register() -> None:
    # of this module alone: the rest of Gymnasium may not be there yet
    from gymnasium.envs import registration

    for name, (one, many) in ENVS.items():
        registration.register(name, entry_point=one, vector_entry_point=many)


class _Watch(MetaPathFinder):
    """Finds nothing by itself; of Gymnasium's registration it sees to it that :func:`register` follows its execution."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != REGISTRATION:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def then_register(module: ModuleType) -> None:
            execute(module)
            register()

        spec.loader.exec_module = then_register  # pyrefly: ignore[missing-attribute]
        return spec
