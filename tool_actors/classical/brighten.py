"""Brightening: the three tools of AgenticIR and a linear stretch, all on the V channel of HSV or the L channel of L*a*b."""

from __future__ import annotations

import cv2
import numpy as np

from tool_actors.classical.base import ClassicalTool, to_float, to_uint8


def tools() -> list[ClassicalTool]:
    return [
        ClassicalTool("clahe.brighten", "brighten", clahe, clip_limit=2.0, grid=8),
        ClassicalTool("gamma.brighten", "brighten", gamma, exponent=1.5),
        ClassicalTool("shift.brighten", "brighten", constant_shift, shift=40),
        ClassicalTool("stretch.brighten", "brighten", stretch, percentile=99.5),
    ]


def clahe(image: np.ndarray, clip_limit: float, grid: int) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation of the lightness (Zuiderveld 1994), as AgenticIR's tool. About 0.1 ms."""
    lab = cv2.cvtColor(to_uint8(image), cv2.COLOR_RGB2LAB)
    lab[..., 0] = cv2.createCLAHE(clip_limit, (grid, grid)).apply(np.ascontiguousarray(lab[..., 0]))
    return to_float(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


def gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    """Gamma correction V <- V^(1/exponent), as AgenticIR's tool. Below 0.1 ms."""
    return _on_value(image, lambda value: np.power(value, 1.0 / exponent))


def constant_shift(image: np.ndarray, shift: int) -> np.ndarray:
    """V <- V + shift, in grey levels of 255, as AgenticIR's tool. Below 0.1 ms."""
    return _on_value(image, lambda value: value + shift / 255.0)


def stretch(image: np.ndarray, percentile: float) -> np.ndarray:
    """V <- V / (its `percentile`), which undoes a compressed range. About 0.1 ms."""
    return _on_value(image, lambda value: value / max(float(np.percentile(value, percentile)), 1.0 / 255.0))


def _on_value(image: np.ndarray, change) -> np.ndarray:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 2] = np.clip(change(hsv[..., 2]), 0, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
