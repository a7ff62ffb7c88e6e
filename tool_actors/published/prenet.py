"""PReNet and PRN_r (Ren, Zuo, Hu, Zhu and Meng, CVPR 2019): progressive deraining in six recurrent stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred

STAGES = 6


def tools() -> list[Deferred]:
    variants = ("rain100h", "rain100l", "rain1400")
    made = [published(f"prenet.{name}", "derain", PReNet, f"published/prenet_{name}.safetensors") for name in variants]
    return [*made, published("prn_r.rain100l", "derain", PRNr, "published/prn_r_rain100l.safetensors")]


def _conv(inputs: int, *after: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, 32, 3, padding=1), *after)


class PReNet(nn.Module):
    """A convolutional LSTM and five residual blocks, run six times on the image and the last estimate; 169,000 parameters."""

    BLOCKS = 5

    def __init__(self):
        super().__init__()
        self.conv0 = _conv(6, nn.ReLU())
        for block in range(1, self.BLOCKS + 1):
            self.add_module(f"res_conv{block}", _conv(32, nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()))
        self.conv_i, self.conv_f = _conv(64, nn.Sigmoid()), _conv(64, nn.Sigmoid())
        self.conv_g, self.conv_o = _conv(64, nn.Tanh()), _conv(64, nn.Sigmoid())
        self.conv = nn.Sequential(nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        estimate = images
        hidden = cell = images.new_zeros(len(images), 32, *images.shape[2:])
        for _ in range(STAGES):
            seen = torch.cat([self.conv0(torch.cat([images, estimate], dim=1)), hidden], dim=1)
            cell = self.conv_f(seen) * cell + self.conv_i(seen) * self.conv_g(seen)
            hidden = self.conv_o(seen) * torch.tanh(cell)
            features = hidden
            for block in range(1, self.BLOCKS + 1):
                features = F.relu(self.get_submodule(f"res_conv{block}")(features) + features)
            estimate = self.conv(features) + images
        return estimate


class PRNr(nn.Module):
    """One residual block, used five times in each of six stages; 21,000 parameters."""

    def __init__(self):
        super().__init__()
        self.conv0 = _conv(6, nn.ReLU())
        self.res_conv1 = _conv(32, nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(32, 3, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        estimate = images
        for _ in range(STAGES):
            features = self.conv0(torch.cat([images, estimate], dim=1))
            for _ in range(5):
                features = F.relu(self.res_conv1(features) + features)
            estimate = self.conv(features) + images
        return estimate
