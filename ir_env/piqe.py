"""PIQE (Venkatanath et al., NCC 2015): how much of what is conspicuous in a photograph is distorted, by blocks and without a reference.

Written from the paper and the documentation of MATLAB's ``piqe``; tests compare it with pyiqa's.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from ir_env.luma import luma

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 16
"""Side of a block in pixels."""
SEGMENT = 6
"""Pixels of a border in which blockiness shows."""
ACTIVE, FLAT = 0.1, 0.1
"""Variance above which a block is conspicuous, and deviation below which a segment of its border has no texture."""


def piqe(image: Tensor) -> Tensor:
    """PIQE of an image, 0 (good) to 100; NaN of a black one.

    Args:
        image: float32 (3, H, W) in [0, 1], of at least a block.

    Returns:
        float32 ().
    """
    blocks = _blocks(_normalised(image))
    variance = blocks.var((1, 2))
    deviation = variance.sqrt()
    active = variance > ACTIVE
    artefacts, noise = _has_flat_border(blocks), deviation > 2 * _contrast(blocks, deviation)
    distortion = artefacts * (1 - variance) + noise * variance
    return 100 * ((active * distortion).sum() + 1) / (active.sum() + 1)


def _normalised(image: Tensor) -> Tensor:
    """Lightness of 256 levels, of which the brightest pixel takes the last, less its local mean and over its local deviation, (1, 1, H, W).

    It is continued by mirroring, by as many pixels as the sides are longer than whole blocks."""
    import torch
    import torch.nn.functional as F

    grey = luma(image[None], "yiq")
    grey = (255 * (grey / grey.max())).round()
    for dim in (2, 3):
        extra = grey.shape[dim] % BLOCK
        grey = torch.cat([grey, grey.narrow(dim, grey.shape[dim] - extra, extra).flip(dim)], dim)
    window = _window().to(grey)
    padded = F.pad(grey, [window.shape[-1] // 2] * 4, mode="replicate")
    mean, square = F.conv2d(padded, window), F.conv2d(padded**2, window)
    # the tiniest number keeps the root's slope finite, as in pyiqa
    local = ((square - mean**2).abs() + torch.finfo(grey.dtype).eps).sqrt()
    return (grey - mean) / (local + 1)


@cache
def _window() -> Tensor:
    """Gaussian of 7 x 7 pixels, sigma 7/6: float32 (1, 1, 7, 7)."""
    import torch

    squares = np.arange(-3, 4) ** 2
    weights = np.exp(-(squares[:, None] + squares) / (2 * (7 / 6) ** 2))
    return torch.from_numpy(weights / weights.sum()).float()[None, None]


def _blocks(grey: Tensor) -> Tensor:
    """(1, 1, H, W) to (N, 16, 16)."""
    return grey[0, 0].unfold(0, BLOCK, BLOCK).unfold(1, BLOCK, BLOCK).reshape(-1, BLOCK, BLOCK)


def _has_flat_border(blocks: Tensor) -> Tensor:
    """bool (N,): whether a segment of a side has no texture, as where compression or blur has eaten it."""
    import torch

    sides = torch.stack([blocks[:, 0], blocks[:, -1], blocks[:, :, 0], blocks[:, :, -1]], 1)
    return (sides.unfold(2, SEGMENT, 1).std(3) < FLAT).flatten(1).any(1)


def _contrast(blocks: Tensor, deviation: Tensor) -> Tensor:
    """(N,): how unlike a block's deviation is to that of its two middle columns over that of the others.

    MATLAB's, which takes a column after the middle ones for the second of them when it leaves them out, is kept: thresholds were set on it.
    """
    import torch

    middle = BLOCK // 2
    others = [column for column in range(BLOCK) if column not in (middle - 1, middle + 1)]
    ratio = (blocks[:, :, middle - 1 : middle + 1].std((1, 2)) / blocks[:, :, others].std((1, 2))).nan_to_num()
    return (deviation - ratio).abs() / torch.maximum(deviation, ratio)
