"""The power spectrum as a picture."""

from __future__ import annotations

import numpy as np

DARKEST, BRIGHTEST = -5.5, 3.0
"""Logarithms of the spectrum's amplitude, for pixels in [0, 1], that become 0 and 255."""


def with_spectrum(pixels: np.ndarray) -> np.ndarray:
    """The pixels, and to their right half of the log power spectrum of their grey values (the other half is the same turned round).

    The spectrum shows what a small model learns to see late: the zeros of a blur, the floor of noise, the grid of JPEG blocks, the cut of
    a reduced image.

    Args:
        pixels: uint8 (H, W, 3), W even.

    Returns:
        uint8 (H, W + W / 2, 3); no frequency in the middle of the right part's left edge, the highest ones at its other edges.
    """
    grey = pixels.mean(2) / 255.0
    height, width = grey.shape
    window = np.outer(np.hanning(height), np.hanning(width))
    amplitude = np.abs(np.fft.rfft2((grey - grey.mean()) * window))[:, : width // 2]
    shown = (np.log(np.fft.fftshift(amplitude, axes=0) + 1e-3) - DARKEST) / (BRIGHTEST - DARKEST)
    picture = np.round(shown.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return np.concatenate([pixels, np.repeat(picture[:, :, None], 3, axis=2)], axis=1)
