"""Observation and info: what a policy sees of an episode, and what the environments tell beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from ir_env.actions import ActionTable
from ir_env.episode import Episode, Outcome
from ir_env.view import View

__all__ = ["batch_infos", "inform", "observation_space", "observe", "observe_state"]

RESET = Outcome()


def observation_space(actions: ActionTable, view: View, max_steps: int) -> gymnasium.spaces.Dict:
    """The space of :func:`observe`."""
    return gymnasium.spaces.Dict(
        {
            **view.spaces(max_steps),
            "history": gymnasium.spaces.MultiDiscrete([actions.n + 1] * max_steps),
            "step": gymnasium.spaces.Box(0.0, float(max_steps), (1,), np.float32),
            "action_mask": gymnasium.spaces.MultiBinary(actions.n),
        }
    )


def observe(episode: Episode, view: View, max_steps: int) -> dict[str, np.ndarray]:
    """What a policy sees of an episode, see :func:`observe_state`."""
    states = episode.states if view.images == "all" else episode.states[-1:]
    return observe_state([state.as_uint8() for state in states], episode.history, episode.mask, view, max_steps)


def observe_state(
    images: Sequence[np.ndarray], history: Sequence[int], mask: np.ndarray, view: View, max_steps: int
) -> dict[str, np.ndarray]:
    """What a policy sees: the pictures of the view, the actions so far (index + 1; 0 where none yet, and for malformed ones), how many
    they are, and which are allowed.

    Args:
        images: uint8 (H, W, 3) each, from the degraded one to the current one; where the view shows the current one alone, it is enough.
        history: indices of the actions so far; those beyond ``max_steps`` are not seen.
        mask: int8 (n,).
        view: what is shown.
        max_steps: of the episode.
    """
    seen = np.zeros(max_steps, np.int64)
    seen[: len(history)] = np.asarray(history[:max_steps], np.int64) + 1
    step = np.array([min(len(history), max_steps)], np.float32)
    return {**view.look(images, max_steps), "history": seen, "step": step, "action_mask": mask}


def inform(episode: Episode, metrics: Sequence[str], outcome: Outcome = RESET, group: int = 0) -> dict[str, Any]:
    """The ``info`` of every environment, after a step or (without an outcome) a reset.

    Args:
        episode: where it stands now.
        metrics: names of the suite's metrics.
        outcome: of the step.
        group: number of the group that shares the sample.
    """
    told = {"parts": dict(outcome.parts)} if outcome.parts else {}
    return {
        **told,
        "metrics": dict(zip(metrics, map(float, episode.scores[-1]), strict=True)),
        "sample": episode.sample,
        "combo": episode.combo,
        "undefined": episode.undefined,
        "group": int(group),
        "tool": outcome.tool,
        "tool_seconds": outcome.seconds,
        "invalid": outcome.invalid,
        "error": outcome.error,
    }


def batch_infos(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Those of N sub-environments as one: arrays (N,) under the same keys, of objects for text; a mapping becomes a dict of arrays."""
    columns = {key: [info[key] for info in infos] for key in infos[0]}
    return {
        key: batch_infos(column) if isinstance(column[0], Mapping) else np.array(column, object if isinstance(column[0], str) else None)
        for key, column in columns.items()
    }
