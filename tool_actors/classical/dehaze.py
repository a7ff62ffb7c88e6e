"""Dehazing by the dark channel prior."""

from __future__ import annotations

import cv2
import numpy as np

from tool_actors.classical.base import ClassicalTool, guided_filter


def tools() -> list[ClassicalTool]:
    return [
        ClassicalTool("dcp.light", "dehaze", dark_channel_prior, strength=0.6, window=9),
        ClassicalTool("dcp.strong", "dehaze", dark_channel_prior, strength=0.9, window=9),
    ]


def dark_channel_prior(image: np.ndarray, strength: float, window: int) -> np.ndarray:
    """The dark channel prior (He, Sun and Tang, CVPR 2009), its transmission refined by a guided filter (ECCV 2010).

    `strength` is the share of the haze that is removed (omega), `window` the side of the minimum filter in pixels; the airlight is
    grey, the mean of the brightest 0.1 % of the dark channel; transmission is kept above 0.15. About 0.5 ms.
    """
    patch = cv2.getStructuringElement(cv2.MORPH_RECT, (window, window))
    dark = cv2.erode(image.min(axis=2), patch)
    brightest = max(1, dark.size // 1000)
    # with all that tie with the last one: which of them a partition puts first depends on the processor
    threshold = np.partition(dark, dark.size - brightest, axis=None)[dark.size - brightest]
    airlight = max(0.5, float(image[dark >= threshold].mean()))
    transmission = 1.0 - strength * cv2.erode(image.min(axis=2) / airlight, patch)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    transmission = np.clip(guided_filter(grey, transmission.astype(np.float32), 3 * window // 2, 1e-3), 0.15, 1.0)
    return np.clip((image - airlight) / transmission[..., None] + airlight, 0, 1).astype(np.float32)
