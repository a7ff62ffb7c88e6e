"""MATLAB's bicubic ``imresize``, after BasicSR (Apache-2.0, ``basicsr/utils/matlab_functions.py``), with its results to the last bit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 4
"""Of the kernel, in pixels of the smaller image."""


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """An image at another size, antialiased where it becomes smaller; sides are rounded up.

    Args:
        image: (H, W, 3) in [0, 1].
        scale: of both sides.

    Returns:
        float32 (sH, sW, 3), which may leave [0, 1] a little.
    """
    import torch

    pixels = torch.from_numpy(image.transpose(2, 0, 1)).float()
    for dim in (1, 2):
        weights, indices, before, after = cubic_weights(pixels.shape[dim], math.ceil(pixels.shape[dim] * scale), scale)
        first, last = pixels.narrow(dim, 0, before), pixels.narrow(dim, pixels.shape[dim] - after, after)
        # a matrix per channel, so that sums are BasicSR's to the last bit
        lines = torch.cat([first.flip(dim), pixels, last.flip(dim)], dim).movedim(dim, 2)
        spans = [lines[:, :, start : start + weights.shape[1]] for start in indices[:, 0].tolist()]
        made = [torch.stack([channel.mv(row) for channel in span]) for span, row in zip(spans, weights, strict=True)]
        pixels = torch.stack(made, dim)
    return pixels.numpy().transpose(1, 2, 0)


def cubic_weights(length: int, out_length: int, scale: float) -> tuple[Tensor, Tensor, int, int]:
    """What a line of pixels becomes at another length.

    Args:
        length, out_length: in pixels.
        scale: of the two, which rounding may have left a little off their ratio.

    Returns:
        Weights, float32 (out_length, K), rows of sum 1; the pixels that they are for, int64 (out_length, K), counted in the line that is
        continued by mirroring; and by how many pixels it is before its first and after its last.
    """
    import torch

    stretch = min(scale, 1.0)
    width = WIDTH / stretch
    taps = math.ceil(width) + 2
    centres = torch.arange(1, out_length + 1, dtype=torch.float32) / scale + 0.5 * (1 - 1 / scale)
    indices = torch.floor(centres - width / 2)[:, None] + torch.arange(taps, dtype=torch.float32)
    weights = stretch * _cubic((centres[:, None] - indices) * stretch)
    weights = weights / weights.sum(1, keepdim=True)
    # the outermost are of use to some lengths alone
    for start in (1, 0):
        if (weights[:, 0 if start else -1] == 0).any():
            indices, weights = indices.narrow(1, start, taps - 2), weights.narrow(1, start, taps - 2)
    before = int(1 - indices.min())
    return weights.contiguous(), (indices + before - 1).long(), before, int(indices.max() - length)


def _cubic(x: Tensor) -> Tensor:
    """The kernel of Keys (1981), a = -1/2."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return near * (x <= 1) + far * ((x > 1) & (x <= 2))
