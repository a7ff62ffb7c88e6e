"""Lightness of RGB images, by the two customs that image-quality metrics have."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CUSTOMS: dict[str, tuple[tuple[float, float, float], float]] = {
    "ycbcr": ((65.481 / 255, 128.553 / 255, 24.966 / 255), 16 / 255),
    "yiq": ((0.299, 0.587, 0.114), 0.0),
}
"""Custom -> weights of red, green and blue, and what is added: Y of YCbCr (BT.601, 16 to 235) and full-range Y of YIQ."""


def luma(images: Tensor, custom: str) -> Tensor:
    """float (N, 3, H, W) in [0, 1] to (N, 1, H, W)."""
    weights, offset = CUSTOMS[custom]
    return (images * images.new_tensor(weights)[:, None, None]).sum(1, keepdim=True) + offset
