"""DnCNN (Zhang, Zuo, Chen, Meng and Zhang, TIP 2017): blind colour denoising, and JPEG artefacts channel by channel."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred


def tools() -> list[Deferred]:
    return [
        published("dncnn.blind", "denoise", partial(DnCNN, channels=3), "published/cdncnn_blind.safetensors"),
        published("dncnn.jpeg", "dejpeg", partial(DnCNN, channels=1), "published/dncnn3_jpeg.safetensors"),
    ]


class DnCNN(nn.Module):
    """Twenty 3 x 3 convolutions of width 64 that estimate the residual, about 670,000 parameters.

    Args:
        channels: 3, or 1 to run each colour channel by itself.
    """

    LAYERS = 20

    def __init__(self, channels: int, width: int = 64):
        super().__init__()
        self.channels = channels
        widths = [channels, *[width] * (self.LAYERS - 1), channels]
        for layer in range(self.LAYERS):
            self.add_module(f"conv{layer}", nn.Conv2d(widths[layer], widths[layer + 1], 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        features = images.reshape(-1, self.channels, *images.shape[2:])
        for layer in range(self.LAYERS - 1):
            features = F.relu(self.get_submodule(f"conv{layer}")(features))
        residual = self.get_submodule(f"conv{self.LAYERS - 1}")(features)
        return images - residual.reshape(images.shape)
