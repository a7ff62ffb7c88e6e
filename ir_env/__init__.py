"""Image-restoration planning as a Gymnasium environment.

Importing this package registers ``ir_env/Restoration-v0`` with Gymnasium; the id ``ir_env:ir_env/Restoration-v0`` imports it by itself.
Heavy libraries load when an environment is made.
"""

from __future__ import annotations

from tool_actors.errors import IrEnvError

__version__ = "0.1.0"
__all__ = ["IrEnvError"]


def _register_envs() -> None:
    import gymnasium

    gymnasium.register(
        "ir_env/Restoration-v0",
        entry_point="ir_env.env:RestorationEnv",
        vector_entry_point="ir_env.vector_env:RestorationVectorEnv",
    )


_register_envs()
