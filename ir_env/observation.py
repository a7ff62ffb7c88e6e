"""Observation and info: what a policy sees of an episode, and what the environments tell beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import gymnasium
import numpy as np

from ir_env.actions import ActionTable
from ir_env.episode import Episode, Outcome

__all__ = ["batch_infos", "inform", "observation_space", "observe", "view"]

RESET = Outcome()


def observation_space(actions: ActionTable, size: int, max_steps: int) -> gymnasium.spaces.Dict:
    """The space of :func:`observe`."""
    return gymnasium.spaces.Dict(
        {
            "image": gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8),
            "history": gymnasium.spaces.MultiDiscrete([actions.n + 1] * max_steps),
            "step": gymnasium.spaces.Box(0.0, float(max_steps), (1,), np.float32),
            "action_mask": gymnasium.spaces.MultiBinary(actions.n),
        }
    )


def observe(episode: Episode, size: int, max_steps: int) -> dict[str, np.ndarray]:
    """What a policy sees: the picture, the actions so far (index + 1; 0 where none yet, and for malformed ones), how many they are, and
    which are allowed."""
    history = np.zeros(max_steps, np.int64)
    history[: len(episode.history)] = np.asarray(episode.history, np.int64) + 1
    return {
        "image": view(episode.state.as_uint8(), size),
        "history": history,
        "step": np.array([len(episode.history)], np.float32),
        "action_mask": episode.mask,
    }


def inform(episode: Episode, metrics: Sequence[str], outcome: Outcome = RESET, group: int = 0) -> dict[str, Any]:
    """The ``info`` of every environment, after a step or (without an outcome) a reset.

    Args:
        episode: where it stands now.
        metrics: names of the suite's metrics.
        outcome: of the step.
        group: number of the group that shares the sample.
    """
    return {
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


def view(pixels: np.ndarray, size: int, centre: tuple[float, float] = (0.5, 0.5)) -> np.ndarray:
    """A square of native pixels, uint8 (size, size, 3): noise and blocking show at their true scale.

    Args:
        pixels: uint8 (H, W, 3).
        size: side of the square; an image with a shorter side is first enlarged (cubic) until that side fits.
        centre: where in the image the square lies, (down, right), each from 0 to 1.
    """
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    if min(height, width) < size:
        factor = size / min(height, width)
        height, width = max(size, round(height * factor)), max(size, round(width * factor))
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = round((height - size) * centre[0]), round((width - size) * centre[1])
    return np.ascontiguousarray(pixels[top : top + size, left : left + size])
