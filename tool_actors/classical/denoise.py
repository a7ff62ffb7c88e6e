"""Denoising: non-local means and total variation."""

from __future__ import annotations

import cv2
import numpy as np

from tool_actors.classical.base import ClassicalTool, to_float, to_uint8


def tools() -> list[ClassicalTool]:
    return [
        ClassicalTool("nlm.light", "denoise", non_local_means, strength=12),
        ClassicalTool("nlm.strong", "denoise", non_local_means, strength=30),
        ClassicalTool("tv.denoise", "denoise", total_variation, weight=0.12),
    ]


def non_local_means(image: np.ndarray, strength: float) -> np.ndarray:
    """Non-local means in L*a*b (Buades, Coll and Morel, CVPR 2005) by OpenCV's fastNlMeansDenoisingColored.

    Patches of 5 px are averaged over a window of 13 px; `strength` is the filter's h for lightness and colour, in grey levels of
    255. About 5 ms.
    """
    return to_float(cv2.fastNlMeansDenoisingColored(to_uint8(image), None, strength, strength, 5, 13))


def total_variation(image: np.ndarray, weight: float) -> np.ndarray:
    """Total-variation denoising (Rudin, Osher and Fatemi 1992; Chambolle 2004) by scikit-image's denoise_tv_chambolle.

    `weight` trades fidelity for flatness. About 2 ms.
    """
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(image, weight=weight, eps=1e-3, max_num_iter=20, channel_axis=-1).astype(np.float32)
