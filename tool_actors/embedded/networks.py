"""The architectures of the embedded learned tools: small CNNs, fast on a CPU."""

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
        blocks: number of residual blocks; each sees 4 pixels farther.
    """

    multiple = 2

    def __init__(self, width: int = 48, blocks: int = 3):
        super().__init__()
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        features = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)
        return images + F.pixel_shuffle(self.tail(self.blocks(self.head(features))), 2)


class _RowLinear(nn.Linear):
    """A linear layer whose rows do not depend on how many there are: matrix products of one row and of many round differently."""

    def forward(self, rows: Tensor) -> Tensor:
        return (rows[:, None] * self.weight).sum(2) + self.bias


class CurveNet(nn.Module):
    """A curve per place, estimated on an image eight times smaller: for haze and low light, whose inverse varies slowly.

    The output is ``I + c0 I + c1 + (c2 + c3 sqrt(V) + c4 V^2) I / V`` with V the largest channel. c0 and c1 invert Koschmieder's law, the
    others a shift, gamma or stretch of V; the maps c are enlarged to the image's size (the idea of HDRNet).
    """

    multiple = 8
    CURVES = 5
    STRIP = 512
    """Rows bent at once: the maps at full size are the only big thing here."""

    def __init__(self, width: int = 32, blocks: int = 2):
        super().__init__()
        self.head = nn.Conv2d(9, width, 3, padding=1)
        self.whole = nn.Sequential(_RowLinear(2 * width + 27, 2 * width), nn.ReLU(), _RowLinear(2 * width, 2 * width))
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, self.CURVES, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        darkest, brightest = -F.max_pool2d(-images, 8), F.max_pool2d(images, 8)
        small = torch.cat([F.avg_pool2d(images, 8), darkest, brightest], dim=1)
        features = F.relu(self.head(small))
        facts = torch.cat([features.mean((2, 3)), features.std((2, 3)), small.mean((2, 3)), small.amin((2, 3)), small.amax((2, 3))], dim=1)
        scale, shift = self.whole(facts).chunk(2, dim=1)
        maps = self.tail(self.blocks(F.relu(features * (1 + scale[..., None, None]) + shift[..., None, None])))
        strips = range(0, images.shape[2], self.STRIP)
        return torch.cat([self._bend(images[:, :, top : top + self.STRIP], maps.float(), top) for top in strips], dim=2)

    def _bend(self, strip: Tensor, maps: Tensor, top: int) -> Tensor:
        """The curves of the rows from ``top`` on, applied: with one cell more on either side, which interpolation needs."""
        first, last = max(top // 8 - 1, 0), (top + strip.shape[2]) // 8 + 1
        maps = maps[:, :, first:last]
        maps = F.interpolate(maps, scale_factor=8, mode="bilinear", align_corners=False)[:, :, top - 8 * first :][:, :, : strip.shape[2]]
        value = strip.amax(1, keepdim=True)
        gain = maps[:, 0:1] + (maps[:, 2:3] + maps[:, 3:4] * value.sqrt() + maps[:, 4:5] * value.square()) / (value + 1 / 255)
        return strip * (1 + gain) + maps[:, 1:2]


class SuperResolver(nn.Module):
    """Residual blocks at low resolution and a pixel shuffle x4, added to bicubic interpolation."""

    multiple = 1

    def __init__(self, width: int = 40, blocks: int = 4):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.tail = nn.Conv2d(width, 48, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        large = F.interpolate(images, scale_factor=4, mode="bicubic", antialias=True)
        features = images.contiguous(memory_format=torch.channels_last)
        return large + F.pixel_shuffle(self.tail(self.blocks(self.head(features))), 4)


class AllInOneNet(nn.Module):
    """A curve per place and then the residual at half resolution: one network for what light and what detail have suffered.

    Args:
        width: channels of the residual's blocks.
        blocks: number of the residual's blocks.
    """

    multiple = 8

    def __init__(self, width: int = 32, blocks: int = 6):
        super().__init__()
        self.light = CurveNet()
        self.detail = HalfResolutionNet(width, blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.detail(self.light(images))


NETWORKS: dict[str, type[nn.Module]] = {"half": HalfResolutionNet, "curve": CurveNet, "x4": SuperResolver, "all_in_one": AllInOneNet}
