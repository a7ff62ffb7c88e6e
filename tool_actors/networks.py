"""The architectures of the embedded learned tools: small residual CNNs, fast on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.second(F.relu(self.first(features)))


class HalfResolutionNet(nn.Module):
    """Residual blocks on the four half-resolution sub-images of each channel (the idea of FFDNet), which estimate the residual.

    Args:
        width: channels of the blocks.
        blocks: number of residual blocks; each sees 8 pixels farther.
        context: add a branch on the picture's mean, which moves brightness and contrast as a whole (for haze and low light).
    """

    MULTIPLE = 2

    def __init__(self, width: int = 48, blocks: int = 3, context: bool = False):
        super().__init__()
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, 12, 3, padding=1)
        self.context = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 2 * width)) if context else None

    def forward(self, images: Tensor) -> Tensor:
        features = self.head(F.pixel_unshuffle(images, 2))
        if self.context is not None:
            summary = features.flatten(2)
            scale, shift = self.context(torch.cat([summary.mean(2), summary.std(2)], dim=1)).chunk(2, dim=1)
            features = features * (1 + scale[..., None, None]) + shift[..., None, None]
        return images + F.pixel_shuffle(self.tail(self.blocks(F.relu(features))), 2)


class SuperResolver(nn.Module):
    """Residual blocks at low resolution and a pixel shuffle x4, added to bicubic interpolation."""

    MULTIPLE = 1

    def __init__(self, width: int = 40, blocks: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, 48, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        large = F.interpolate(images, scale_factor=4, mode="bicubic", antialias=True)
        return large + F.pixel_shuffle(self.tail(self.blocks(F.relu(self.head(images)))), 4)


NETWORKS: dict[str, type[nn.Module]] = {"half": HalfResolutionNet, "x4": SuperResolver}
