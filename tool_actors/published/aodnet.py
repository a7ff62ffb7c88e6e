"""AOD-Net (Li, Peng, Wang, Xu and Feng, ICCV 2017): dehazing with 1,761 parameters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred


def tools() -> list[Deferred]:
    return [published("aodnet.dehaze", "dehaze", AODNet, "published/aodnet.safetensors")]


class AODNet(nn.Module):
    """Estimates K, which joins transmission and airlight, and gives J = K x - K + 1."""

    def __init__(self):
        super().__init__()
        self.e_conv1 = nn.Conv2d(3, 3, 1)
        self.e_conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.e_conv3 = nn.Conv2d(6, 3, 5, padding=2)
        self.e_conv4 = nn.Conv2d(6, 3, 7, padding=3)
        self.e_conv5 = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.e_conv1(images))
        second = F.relu(self.e_conv2(first))
        third = F.relu(self.e_conv3(torch.cat([first, second], dim=1)))
        fourth = F.relu(self.e_conv4(torch.cat([second, third], dim=1)))
        k = F.relu(self.e_conv5(torch.cat([first, second, third, fourth], dim=1)))
        return F.relu(k * images - k + 1)
