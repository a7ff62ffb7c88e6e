"""NIQE (Mittal et al. 2013) as BasicSR computes it, with its parameters (``niqe_pristine.npz``, Apache-2.0), in less time.

The formulas and the sizes of blocks are BasicSR's (``basicsr/metrics/niqe.py``). It tabulates the moments of the generalised Gaussian anew
for each block and product; here that is done once, all blocks are fitted together, and an image is halved by matrix products.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import cv2
import numpy as np

from ir_env.matlab_resize import cubic_weights

BLOCK = 96
"""Side of the blocks, in pixels of the first scale; what does not fill one is left out."""
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Neighbours whose products are fitted."""


def niqe(image: np.ndarray) -> float:
    """NIQE of an image; NaN where it has no value.

    Args:
        image: float32 (H, W, 3), RGB, 0 to 255, of at least two blocks.
    """
    mean, covariance, window = _pristine()
    luma = _luma(image).round()
    rows, columns = luma.shape[0] // BLOCK, luma.shape[1] // BLOCK
    luma = luma[: rows * BLOCK, : columns * BLOCK]
    features = []
    # flat and smoothly graded images leave moments of nothing behind
    with np.errstate(all="ignore"):
        for scale in (1, 2):
            local = _filtered(luma, window)
            deviation = np.sqrt(np.abs(_filtered(np.square(luma), window) - np.square(local)))
            side = BLOCK // scale
            blocks = ((luma - local) / (deviation + 1)).reshape(rows, side, columns, side).swapaxes(1, 2).reshape(-1, side, side)
            features.append(_features(blocks))
            if scale == 1:
                luma = _halving(luma.shape[0]) @ luma @ _halving(luma.shape[1]).T
        found = np.concatenate(features, axis=1)
        whole = found[~np.isnan(found).any(1)]
        if len(whole) < 2:
            return float("nan")
        apart = mean - np.nanmean(found, axis=0)
        try:
            inverse = np.linalg.pinv((covariance + np.cov(whole, rowvar=False)) / 2)
        except np.linalg.LinAlgError:
            return float("nan")
        return float(np.sqrt(apart @ inverse @ apart))


def _features(blocks: np.ndarray) -> np.ndarray:
    """The 18 features of each block: the shape and width of its values, and of their products with each neighbour (eq. 5 to 8)."""
    from scipy.special import gamma

    alpha, left, right = _fit(blocks)
    features = [alpha, (left + right) / 2]
    for shift in SHIFTS:
        alpha, left, right = _fit(blocks * np.roll(blocks, shift, axis=(1, 2)))
        features += [alpha, (right - left) * (gamma(2 / alpha) / gamma(1 / alpha)), left, right]
    return np.stack(features, axis=1)


def _fit(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shape and both widths of the asymmetric generalised Gaussian of each block's values, by moments (eq. 7)."""
    from scipy.special import gamma

    flat = values.reshape(len(values), -1)
    shapes, ratios = _moments()
    squares, negative = np.square(flat), flat < 0
    energy, energy_below = squares.sum(1, dtype=np.float64), (squares * negative).sum(1, dtype=np.float64)
    below = np.sqrt(energy_below / np.count_nonzero(negative, axis=1))
    above = np.sqrt((energy - energy_below) / np.count_nonzero(flat > 0, axis=1))
    ratio = below / above
    sample = np.abs(flat).mean(1, dtype=np.float64) ** 2 / (energy / flat.shape[1])
    wanted = sample * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alpha = shapes[[np.argmin(np.square(ratios - each)) for each in wanted]]
    width = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, below * width, above * width


@cache
def _moments() -> tuple[np.ndarray, np.ndarray]:
    """Shapes of a generalised Gaussian, and its squared mean deviation over its variance at each."""
    from scipy.special import gamma

    shapes = np.arange(0.2, 10.001, 0.001)
    inverse = 1 / shapes
    return shapes, np.square(gamma(inverse * 2)) / (gamma(inverse) * gamma(inverse * 3))


@cache
def _pristine() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and covariance of pristine photographs' features, and the window of the local moments."""
    with np.load(Path(__file__).with_name("niqe_pristine.npz")) as told:
        return told["mu_pris_param"].ravel(), told["cov_pris_param"], told["gaussian_window"]


def _luma(image: np.ndarray) -> np.ndarray:
    """Y of YCbCr (BT.601, 16 to 235), rounded to float32 where BasicSR does."""
    scaled = image.astype(np.float32) / 255.0
    return ((scaled @ [65.481, 128.553, 24.966] + 16.0) / 255.0).astype(np.float32) * 255.0


def _filtered(luma: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Sums in double precision, since variances are differences of large numbers; then rounded, as BasicSR's are."""
    return cv2.filter2D(luma.astype(np.float64), -1, window, borderType=cv2.BORDER_REPLICATE).astype(np.float32)


@lru_cache(maxsize=8)
def _halving(length: int) -> np.ndarray:
    """float32 (length / 2, length): along one side, MATLAB's imresize to half the size."""
    weights, indices, before, after = cubic_weights(length, length // 2, 0.5)
    mirrored = np.pad(np.eye(length, dtype=np.float32), ((before, after), (0, 0)), mode="symmetric")
    return np.einsum("ij,ijk->ik", weights.numpy(), mirrored[indices.numpy()])
