"""The client: ``with RestorationClient(base_url="http://localhost:8000").sync() as env: ...``"""

from __future__ import annotations

from typing import Any

from openenv.core import EnvClient
from openenv.core.client_types import StepResult

from ir_env.integrations.openenv.messages import RestorationAction, RestorationObservation, RestorationState


class RestorationClient(EnvClient[RestorationAction, RestorationObservation, RestorationState]):
    """A session with a server of :mod:`ir_env.integrations.openenv.app`; asynchronous, and :meth:`sync` gives the other form.

    >>> with RestorationClient(base_url="http://localhost:8000").sync() as env:
    ...     result = env.reset(seed=0, combo="rain+haze")
    ...     result = env.step(RestorationAction(tool="rain.heavy"))
    """

    def _step_payload(self, action: RestorationAction) -> dict[str, Any]:
        return {"tool": action.tool}

    def _parse_result(self, payload: dict[str, Any]) -> StepResult[RestorationObservation]:
        told = RestorationObservation(**payload["observation"], reward=payload.get("reward"), done=payload.get("done", False))
        return StepResult(observation=told, reward=told.reward, done=told.done)

    def _parse_state(self, payload: dict[str, Any]) -> RestorationState:
        return RestorationState(**payload)
