"""IMDN (Hui, Gao, Yang and Wang, ACM MM 2019): lightweight super-resolution."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred


def tools() -> list[Deferred]:
    return [
        published(f"imdn.x{scale}", "super_resolve", partial(IMDN, scale), f"published/imdn_x{scale}.safetensors", scale=scale)
        for scale in (2, 3, 4)
    ]


class IMDN(nn.Module):
    """Six information multi-distillation blocks of width 64 and a pixel shuffle; about 700,000 parameters.

    Args:
        scale: 2, 3 or 4.
    """

    BLOCKS = 6

    def __init__(self, scale: int, width: int = 64):
        super().__init__()
        self.fea_conv = nn.Conv2d(3, width, 3, padding=1)
        for block in range(1, self.BLOCKS + 1):
            self.add_module(f"IMDB{block}", _Block(width))
        self.c = nn.Sequential(nn.Conv2d(width * self.BLOCKS, width, 1), nn.LeakyReLU(0.05))
        self.LR_conv = nn.Conv2d(width, width, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(width, 3 * scale * scale, 3, padding=1), nn.PixelShuffle(scale))

    def forward(self, images: Tensor) -> Tensor:
        first = self.fea_conv(images)
        features, kept = first, []
        for block in range(1, self.BLOCKS + 1):
            features = self.get_submodule(f"IMDB{block}")(features)
            kept.append(features)
        return self.upsampler(self.LR_conv(self.c(torch.cat(kept, dim=1))) + first)


class _Block(nn.Module):
    """Keeps a quarter of the channels after each of three convolutions, and weighs what was kept by its contrast."""

    def __init__(self, width: int):
        super().__init__()
        self.kept = width // 4
        self.c1 = nn.Conv2d(width, width, 3, padding=1)
        self.c2 = nn.Conv2d(width - self.kept, width, 3, padding=1)
        self.c3 = nn.Conv2d(width - self.kept, width, 3, padding=1)
        self.c4 = nn.Conv2d(width - self.kept, self.kept, 3, padding=1)
        self.c5 = nn.Conv2d(4 * self.kept, width, 1)
        self.cca = _ContrastAttention(4 * self.kept)

    def forward(self, features: Tensor) -> Tensor:
        remaining, kept = features, []
        for layer in (self.c1, self.c2, self.c3):
            distilled = F.leaky_relu(layer(remaining), 0.05)
            kept.append(distilled[:, : self.kept])
            remaining = distilled[:, self.kept :]
        return self.c5(self.cca(torch.cat([*kept, self.c4(remaining)], dim=1))) + features


class _ContrastAttention(nn.Module):
    """Channel weights from the sum of each channel's mean and standard deviation."""

    def __init__(self, width: int):
        super().__init__()
        self.conv_du = nn.Sequential(nn.Conv2d(width, width // 16, 1), nn.ReLU(), nn.Conv2d(width // 16, width, 1), nn.Sigmoid())

    def forward(self, features: Tensor) -> Tensor:
        contrast = features.mean((2, 3), keepdim=True) + features.std((2, 3), keepdim=True, correction=0)
        return features * self.conv_du(contrast)
