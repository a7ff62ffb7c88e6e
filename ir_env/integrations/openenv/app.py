"""The server: ``python -m ir_env.integrations.openenv.app --port 8000``; ``app`` is what openenv.yaml names.

``IR_ENV_OPENENV`` holds the arguments of :class:`ir_env.process.RestorationProcess` as JSON, such as
``{"dataset": {"photos": "FOLDER"}, "executor": "pool"}``, and ``IR_ENV_OPENENV_SESSIONS`` how many sessions there may be at once (64).
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from openenv.core.env_server.http_server import create_app

from ir_env.integrations.openenv.environment import RestorationEnvironment
from ir_env.integrations.openenv.messages import RestorationAction, RestorationObservation
from ir_env.process import RestorationProcess
from ir_env.tool_episode import ToolEpisode
from tool_actors.errors import IrEnvError
from tool_actors.executor import LocalExecutor

SETTINGS, SESSIONS = "IR_ENV_OPENENV", "IR_ENV_OPENENV_SESSIONS"


def make_app(settings: Mapping[str, Any] | None = None, sessions: int = 64) -> FastAPI:
    """OpenEnv's application: its endpoints over HTTP and WebSocket, with one process behind all sessions.

    Args:
        settings: arguments of :class:`ir_env.process.RestorationProcess`.
        sessions: most sessions at once; a further one is refused.
    """
    process = RestorationProcess(**dict(settings or {}))
    lock = threading.Lock() if isinstance(process.executor, LocalExecutor) else None

    def session() -> RestorationEnvironment:
        return RestorationEnvironment(ToolEpisode(process, lock))

    return create_app(session, RestorationAction, RestorationObservation, env_name="ir_env", max_concurrent_envs=sessions)


def settings_of(environ: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of :func:`make_app` from environment variables."""
    try:
        settings = json.loads(environ.get(SETTINGS) or "{}")
        if not isinstance(settings, dict):
            raise ValueError("it is no JSON object")
        return {"settings": settings, "sessions": int(environ.get(SESSIONS) or 64)}
    except ValueError as error:
        raise IrEnvError(f"{SETTINGS} holds arguments of RestorationProcess as JSON, {SESSIONS} a whole number: {error}") from error


def __getattr__(name: str) -> Any:
    """``app`` is made when a server asks for it, so that importing this module loads no tool."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()["app"] = make_app(**settings_of(os.environ))
    return value


def main(arguments: list[str] | None = None) -> None:
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    uvicorn.run(make_app(**settings_of(os.environ)), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
