"""RL-Restore's twelve tools (Yu, Dong, Lin and Loy, CVPR 2018; MIT licence)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred

TASKS = (*["defocus_deblur"] * 4, *["denoise"] * 4, *["dejpeg"] * 4)
"""Tools 1-4 undo Gaussian blur, 5-8 noise, 9-12 JPEG; of each four the first two are small and the last two deep."""


def tools() -> list[Deferred]:
    return [
        published(
            f"rl_restore.tool{number:02}",
            task,
            SmallTool if (number - 1) % 4 < 2 else DeepTool,
            f"rl_restore/tool{number:02}.safetensors",
        )
        for number, task in enumerate(TASKS, start=1)
    ]


class SmallTool(nn.Module):
    """RL-Restore's small tool: three convolutions (9, 5, 5) and a skip, 21,827 parameters.

    It was trained on images with rows and columns exchanged, so they are exchanged on the way in and out.
    """

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 9, padding=4)
        self.conv2 = nn.Conv2d(32, 16, 5, padding=2)
        self.conv3 = nn.Conv2d(16, 3, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        images = images.transpose(2, 3)
        return (images + self.conv3(F.relu(self.conv2(F.relu(self.conv1(images)))))).transpose(2, 3)


class DeepTool(nn.Module):
    """RL-Restore's deep tool: two pre-activation residual blocks between 5 x 5 convolutions, 50,851 parameters; see :class:`SmallTool`."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 5, padding=2)
        self.conv1_2 = nn.Conv2d(64, 32, 1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2a = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2c = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2d = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2_2 = nn.Conv2d(32, 64, 1)
        self.conv3 = nn.Conv2d(64, 3, 5, padding=2)

    def forward(self, images: Tensor) -> Tensor:
        images = images.transpose(2, 3)
        first = self.conv1_2(F.relu(self.conv1(images)))
        second = first + self.conv2a(F.relu(self.conv2(F.relu(first))))
        third = second + self.conv2d(F.relu(self.conv2c(F.relu(second))))
        return (images + self.conv3(F.relu(self.conv2_2(third)))).transpose(2, 3)
