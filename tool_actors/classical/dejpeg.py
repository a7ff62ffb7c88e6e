"""Removal of JPEG artefacts."""

from __future__ import annotations

import cv2
import numpy as np

from tool_actors.classical.base import ClassicalTool, to_float, to_uint8


def tools() -> list[ClassicalTool]:
    return [
        ClassicalTool("shifted_jpeg.q15", "dejpeg", shifted_recompression, quality=15),
        ClassicalTool("shifted_jpeg.q30", "dejpeg", shifted_recompression, quality=30),
        ClassicalTool("bilateral.dejpeg", "dejpeg", bilateral, sigma_colour=0.06, sigma_space=2.0),
    ]


def shifted_recompression(image: np.ndarray, quality: int) -> np.ndarray:
    """Deblocking by re-application of JPEG (Nosratinia 1999): the mean over shifts of shift, recompress, shift back.

    16 of the 64 shifts of the 8 x 8 block grid are used, at JPEG `quality`. About 1 ms.
    """
    height, width = image.shape[:2]
    padded = np.pad(to_uint8(image), ((8, 8), (8, 8), (0, 0)), mode="edge")
    total = np.zeros((height, width, 3), np.float32)
    shifts = [(dy, dx) for dy in range(0, 8, 2) for dx in range(0, 8, 2)]
    for dy, dx in shifts:
        shifted = padded[dy:, dx:]
        _, code = cv2.imencode(".jpg", shifted, [cv2.IMWRITE_JPEG_QUALITY, quality])
        total += cv2.imdecode(code, cv2.IMREAD_COLOR)[8 - dy : 8 - dy + height, 8 - dx : 8 - dx + width]
    return to_float(total / len(shifts))


def bilateral(image: np.ndarray, sigma_colour: float, sigma_space: float) -> np.ndarray:
    """Bilateral filter (Tomasi and Manduchi, ICCV 1998): smooths steps below `sigma_colour`, such as block edges. About 0.1 ms."""
    return cv2.bilateralFilter(image, 5, sigma_colour, sigma_space)
