"""Observations: what a policy sees of an episode."""

from __future__ import annotations

import cv2
import gymnasium
import numpy as np

from ir_env.actions import ActionTable
from ir_env.episode import Episode


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
