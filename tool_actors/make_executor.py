"""Executors by name."""

from __future__ import annotations

from typing import Any

from tool_actors.errors import IrEnvError
from tool_actors.executor import Executor, LocalExecutor, Quantize
from tool_actors.extras import need
from tool_actors.toolboxes import load_toolbox

__all__ = ["make_executor"]


def make_executor(executor: Executor | str | None, toolbox: Any, quantize: Quantize = "uint8", cache_bytes: int = 128 << 20) -> Executor:
    """An executor by name.

    Args:
        executor: ``"local"`` or None: in this process; ``"pool"`` or ``"pool:NAME"``: a running MC-Pool (:mod:`tool_actors.pool`);
            ``"pool:http://HOST:PORT"``: one of another environment or cluster, through its gateway; or an executor, as it is.
        toolbox: see :func:`tool_actors.toolboxes.load_toolbox`; a pool must hold its tools, and may hold more.
        quantize, cache_bytes: of an executor that is made; a pool has a cache of its own.

    Raises:
        IrEnvError: no executor of that name; no such pool; a tool that the pool does not hold.
    """
    if executor is None or executor == "local":
        return LocalExecutor(load_toolbox(toolbox), quantize, cache_bytes)
    if not isinstance(executor, str):
        return executor
    kind, _, name = executor.partition(":")
    if kind != "pool":
        raise IrEnvError(f"executor {executor!r} is not known: write local, pool, pool:NAME, or pool:http://HOST:PORT")
    if name.startswith(("http://", "https://")):
        from tool_actors.gateway import RemoteExecutor

        return RemoteExecutor(name, quantize, toolbox)
    need("ray")
    from tool_actors.pool import DEFAULT_NAME, MCPool

    return MCPool.connect(name or DEFAULT_NAME).executor(quantize, toolbox)
