"""FFDNet (Zhang, Zuo and Zhang, TIP 2018): denoising at half resolution with a noise-level map."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred

SIGMAS = (15, 25, 50)


def tools() -> list[Deferred]:
    file = "published/ffdnet_color.safetensors"
    return [published(f"ffdnet.sigma{sigma}", "denoise", partial(FFDNet, sigma), file, multiple=2) for sigma in SIGMAS]


class FFDNet(nn.Module):
    """Twelve 3 x 3 convolutions of width 96 on the four half-resolution sub-images of each channel and a map of the noise level.

    Args:
        sigma: noise level of the map, in grey levels of 255.
    """

    LAYERS = 12

    def __init__(self, sigma: float, width: int = 96):
        super().__init__()
        self.level = sigma / 255.0
        widths = [13, *[width] * (self.LAYERS - 1), 12]
        for layer in range(self.LAYERS):
            self.add_module(f"conv{layer}", nn.Conv2d(widths[layer], widths[layer + 1], 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        batch, _, height, width = images.shape
        half = height // 2, width // 2
        # sub-images in the order channel, column offset, row offset
        parts = images.reshape(batch, 3, half[0], 2, half[1], 2).permute(0, 1, 5, 3, 2, 4).reshape(batch, 12, *half)
        features = torch.cat([parts, parts.new_full((batch, 1, *half), self.level)], dim=1)
        for layer in range(self.LAYERS - 1):
            features = F.relu(self.get_submodule(f"conv{layer}")(features))
        parts = self.get_submodule(f"conv{self.LAYERS - 1}")(features)
        return parts.reshape(batch, 3, 2, 2, *half).permute(0, 1, 4, 3, 5, 2).reshape(batch, 3, height, width)
