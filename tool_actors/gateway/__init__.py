"""A pool over HTTP: :mod:`~tool_actors.gateway.server` offers it, :mod:`~tool_actors.gateway.client` uses it and needs no Ray."""

from tool_actors.gateway.client import RemoteExecutor

__all__ = ["RemoteExecutor"]
