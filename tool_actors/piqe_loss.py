"""PIQE (Venkatanath et al. 2015) as a term of a loss: a judgement of the result alone, without a network and without a clean image.

PIQE counts blocks: those with activity, and of these those that are impaired (a piece of their border is flat) or noisy. Counts have no
gradient, so each threshold becomes a sigmoid here (``softness`` wide); as that goes to 0 the value goes to pyiqa's PIQE / 100. It rounds
to 256 levels, which lets the gradient through.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["piqe_loss"]

BLOCK, SEGMENT = 16, 6
"""Sides of a block, and of the pieces of its border, in pixels."""
ACTIVE, FLAT = 0.1, 0.1
"""A block is active above this variance; a piece of border flat below this standard deviation."""


def piqe_loss(restored: Tensor, clean: Tensor | None = None, softness: float = 0.02) -> Tensor:
    """PIQE / 100, the mean over images; lower is better.

    Args:
        restored: float (B, 3, H, W) in [0, 1], at least 16 pixels a side; what is beyond whole blocks is left out.
        clean: not looked at.
        softness: width of the thresholds, in units of what is compared.

    Returns:
        A scalar in [0, 1].
    """
    from pyiqa.archs.func_util import normalize_img_with_gauss
    from pyiqa.utils.color_util import to_y_channel

    luma = to_y_channel(restored, 1, "yiq")
    luma = 255 * luma / luma.detach().amax((1, 2, 3), keepdim=True).clamp_min(1e-3)
    luma = luma + (luma.round() - luma).detach()
    rows, columns = (side // BLOCK * BLOCK for side in luma.shape[2:])
    normalised = normalize_img_with_gauss(luma, padding="replicate")[:, 0, :rows, :columns]
    blocks = normalised.unfold(1, BLOCK, BLOCK).unfold(2, BLOCK, BLOCK).flatten(1, 2)

    variance = blocks.var((2, 3))
    active = _above(variance, ACTIVE, softness)
    borders = torch.stack([blocks[:, :, 0], blocks[:, :, -1], blocks[..., 0], blocks[..., -1]], dim=2)
    flattest = _deviation(borders.unfold(-1, SEGMENT, 1), -1).amin((2, 3))
    impaired = 1 - _above(flattest, FLAT, softness)
    noisy = _above(_root(variance) - 2 * _unevenness(blocks, variance), 0.0, softness)

    bad = active * (impaired * (1 - variance) + noisy * variance)
    return ((bad.sum(1) + 1) / (active.sum(1) + 1)).mean()


def _unevenness(blocks: Tensor, variance: Tensor) -> Tensor:
    """How much the spread of a block and that of its middle against its surround differ, in [0, 1]."""
    middle = BLOCK // 2
    centre = _deviation(blocks[..., middle - 1 : middle + 1], (2, 3))
    # the surround is that of the public code, which keeps the second column of the middle and drops the one after it
    surround = _deviation(torch.cat([blocks[..., : middle - 1], blocks[..., middle : middle + 1], blocks[..., middle + 2 :]], -1), (2, 3))
    ratio, spread = centre / surround, _root(variance)
    return (spread - ratio).abs() / torch.maximum(spread, ratio)


def _above(value: Tensor, threshold: float, softness: float) -> Tensor:
    return torch.sigmoid((value - threshold) / softness)


def _deviation(values: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    return _root(values.var(dims))


def _root(variance: Tensor) -> Tensor:
    """Its square root, whose slope is finite on a flat block, too."""
    return (variance + 1e-6).sqrt()
