"""The power spectrum as a picture."""

from __future__ import annotations

import numpy as np

DARKEST, BRIGHTEST = -5.5, 3.0
"""Logarithms of the spectrum's amplitude, for pixels in [0, 1], that become 0 and 255."""


def spectrum(glimpses: np.ndarray) -> np.ndarray:
    """The right half of the log power spectrum of the grey values, in the mean over the glimpses (Welch); the left half is the same turned
    round.

    It shows what a small model learns to see late: the zeros of a blur, the floor of noise, the grid of JPEG blocks, the cut of a reduced
    image. The mean tells these, which all glimpses share, from the things that each shows.

    Args:
        glimpses: uint8 (K, S, S, 3), of native pixels, S even.

    Returns:
        uint8 (S, S / 2, 3); no frequency in the middle of the left edge, the highest ones at the other edges.
    """
    grey = glimpses.mean(3) / 255.0
    side = grey.shape[1]
    window = np.outer(np.hanning(side), np.hanning(side))
    waves = np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * window)[:, :, : side // 2]
    amplitude = np.sqrt((np.abs(waves) ** 2).mean(0))
    shown = (np.log(np.fft.fftshift(amplitude, axes=0) + 1e-3) - DARKEST) / (BRIGHTEST - DARKEST)
    picture = np.round(shown.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    return np.repeat(picture[:, :, None], 3, axis=2)
