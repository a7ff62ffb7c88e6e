"""Big images in overlapping tiles, so that a network's memory has a bound."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["tiled"]


def tiled(network: Callable[[Tensor], Tensor], images: Tensor, tile: int, overlap: int, scale: int = 1, multiple: int = 1) -> Tensor:
    """Apply a network tile by tile.

    Neighbouring tiles share ``overlap`` pixels. The outer third of it, next to a tile's cut edge, counts for nothing; over the middle third
    one tile fades into the other; so a network that sees at most ``overlap / 3`` pixels far gives what it gives on the whole image.

    Args:
        network: (B, 3, h, w) -> (B, 3, h * scale, w * scale).
        images: (B, 3, H, W) with sides that are multiples of ``multiple``.
        tile: largest side that the network gets.
        overlap: pixels that neighbours share.
        scale: output side over input side.
        multiple: tiles start and end at multiples of this.

    Returns:
        (B, 3, H * scale, W * scale); gradients flow.
    """
    height, width = images.shape[-2:]
    if height <= tile and width <= tile:
        return network(images)
    rows, columns = (_spans(side, tile, overlap, multiple) for side in (height, width))
    output = images.new_zeros(*images.shape[:-2], height * scale, width * scale)
    for (top, bottom), fade_rows in zip(rows, _fades(rows, scale, images), strict=True):
        for (left, right), fade_columns in zip(columns, _fades(columns, scale, images), strict=True):
            part = network(images[..., top:bottom, left:right])
            place = (..., slice(top * scale, bottom * scale), slice(left * scale, right * scale))
            output[place] = output[place] + part * fade_rows[:, None] * fade_columns
    return output


def _spans(side: int, tile: int, overlap: int, multiple: int) -> list[tuple[int, int]]:
    """Evenly placed [start, end) of one length that cover a side and share ``overlap`` pixels or more, give or take a multiple.

    As few as ``tile`` allows, and then as short as they can be: two full tiles over a side that is a little longer than one would compute
    nearly all of it twice.
    """
    tile -= tile % multiple
    if side <= tile:
        return [(0, side)]
    count = -(-(side - overlap) // (tile - overlap))
    length = -(-(side + (count - 1) * overlap) // count)
    # starts are rounded to multiples, by half of one at most in either direction
    length = min(length + (multiple if multiple > 1 else 1), tile)
    length += -length % multiple
    starts = [round(index * (side - length) / (count - 1) / multiple) * multiple for index in range(count)]
    return [(start, min(start + length, side)) for start in starts]


def _fades(spans: list[tuple[int, int]], scale: int, like: Tensor) -> list[Tensor]:
    """Per span its weight at each output pixel; over all spans the weights sum to one everywhere."""
    fades = [like.new_ones((end - start) * scale) for start, end in spans]
    for index, ((first, end), (start, _)) in enumerate(pairwise(spans)):
        shared = (end - start) * scale
        outer = shared // 3
        rise = torch.linspace(0, 1, shared - 2 * outer + 2, device=like.device, dtype=like.dtype)[1:-1]
        rise = torch.cat([like.new_zeros(outer), rise, like.new_ones(outer)])
        fades[index][(start - first) * scale :] *= 1 - rise
        fades[index + 1][:shared] *= rise
    total = like.new_zeros(spans[-1][1] * scale)
    for (start, end), fade in zip(spans, fades, strict=True):
        total[start * scale : end * scale] += fade
    # even spacing can make three tiles meet
    return [fade / total[start * scale : end * scale] for (start, end), fade in zip(spans, fades, strict=True)]
