"""The package's extras: what is not installed by itself, and which extra brings it."""

from __future__ import annotations

from importlib.util import find_spec

from tool_actors.errors import IrEnvError

__all__ = ["MissingExtraError", "missing_extra", "need"]

EXTRA_OF = {
    "ray": "rllib",
    "tree": "rllib",
    "tensorboard": "rllib",
    "tensorboardX": "rllib",
    "transformers": "vlm",
    "tokenizers": "vlm",
    "peft": "vlm",
    "datasets": "vlm",
    "pyiqa": "metrics",
    "pyarrow": "bench",
    "trl": "trl",
    "openenv": "openenv",
    "verl": "verl",
    "skyrl_gym": "skyrl",
    "fastapi": "serve",
    "mcp": "mcp",
    "spandrel_extra_arches": "extra-arches",
    "pillow_heif": "heic",
}
"""Module -> the extra of ``ir-env`` that installs it."""


class MissingExtraError(IrEnvError, ModuleNotFoundError):
    """Something was asked for that an extra of the package brings, and that extra is not installed; names both."""

    def __init__(self, module: str):
        extra = EXTRA_OF[module]
        super().__init__(f"this needs {module}, which is not installed: pip install 'ir-env[{extra}]'", name=module)


def need(*modules: str) -> None:
    """Raise :class:`MissingExtraError` unless modules of :data:`EXTRA_OF` can be imported; call it before what imports them.

    >>> need("ray")
    """
    for module in modules:
        if find_spec(module) is None:
            raise MissingExtraError(module)


def missing_extra(error: BaseException) -> MissingExtraError | None:
    """An import that failed for want of an extra, as the error that says so; None if an error is anything else."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return MissingExtraError(module) if module in EXTRA_OF else None
