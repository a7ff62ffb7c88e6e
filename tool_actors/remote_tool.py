"""What a caller has of a tool that is in a pool."""

from __future__ import annotations

from tool_actors.errors import IrEnvError
from tool_actors.toolbox import Tool, ToolSpec

__all__ = ["RemoteTool"]


class RemoteTool(Tool):
    """A tool that is in a pool: its spec, without its weights."""

    def __init__(self, spec: ToolSpec):
        self.spec = spec

    def __call__(self, images):
        raise IrEnvError(f"tool {self.spec.name!r} is in a pool, its weights are not here: run it with the pool's executor")
