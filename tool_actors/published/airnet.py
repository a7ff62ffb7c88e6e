"""AirNet (Li, Liu, Hu, Wu, Lv and Peng, CVPR 2022): one network for several degradations, guided by what an encoder tells them apart by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.tasks import ALL_IN_ONE
from tool_actors.toolbox import Deferred


def tools() -> list[Deferred]:
    return [published("airnet.three", ALL_IN_ONE, AirNet, "published/airnet.safetensors")]


class AirNet(nn.Module):
    """Residual groups whose convolutions are deformed, scaled and shifted by the features of an encoder of the degradation.

    (B, 3, H, W) in [0, 1] to about the same range. The release of 64 channels (``All.pth``) was trained on noise, rain and haze, one at a
    time. Its encoder was taught by contrast (MoCo); the second encoder and the queue that this wants are left out here.

    Args:
        width: channels.
        groups, blocks: of the restorer, and of each group.
    """

    def __init__(self, width: int = 64, groups: int = 5, blocks: int = 5):
        super().__init__()
        self.R = _Restorer(width, groups, blocks)
        # as deep as the published names: AirNet.E is its CBDE, whose E is MoCo
        self.E = nn.ModuleDict({"E": nn.ModuleDict({"encoder_q": _Encoder(width)})})
        self.register_load_state_dict_pre_hook(_leave_out_training)

    def forward(self, images: Tensor) -> Tensor:
        return self.R(images, self.E["E"]["encoder_q"](images))


class _Encoder(nn.Module):
    """What is here of the encoder is what restoring needs: its first block. The rest, which training by contrast needs, is loaded too."""

    def __init__(self, width: int):
        super().__init__()
        self.E_pre = _Residual(3, width)
        self.E = nn.Sequential(_Residual(width, 2 * width, 2), _Residual(2 * width, 4 * width, 2))
        self.mlp = nn.Sequential(nn.Linear(4 * width, 4 * width), nn.LeakyReLU(0.1), nn.Linear(4 * width, 4 * width))

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, width, H, W)."""
        return self.E_pre(images)


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int, stride: int = 1):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(channels, out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.LeakyReLU(0.1),
            nn.Conv2d(out, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, features: Tensor) -> Tensor:
        return F.leaky_relu(self.backbone(features) + self.shortcut(features), 0.1)


class _Restorer(nn.Module):
    def __init__(self, width: int, groups: int, blocks: int):
        super().__init__()
        self.head = nn.Sequential(_conv(3, width))
        self.body = nn.Sequential(*(_Group(width, blocks) for _ in range(groups)), _conv(width, width))
        self.tail = nn.Sequential(_conv(width, 3))

    def forward(self, images: Tensor, degradation: Tensor) -> Tensor:
        """The image anew: nothing is added to the degraded one."""
        features = self.head(images)
        return self.tail(features + _guided(self.body, features, degradation))


class _Group(nn.Module):
    def __init__(self, width: int, blocks: int):
        super().__init__()
        self.body = nn.Sequential(*(_Block(width) for _ in range(blocks)), _conv(width, width))

    def forward(self, features: Tensor, degradation: Tensor) -> Tensor:
        return features + _guided(self.body, features, degradation)


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.dgm1, self.dgm2 = _Guided(width), _Guided(width)
        self.conv1, self.conv2 = _conv(width, width), _conv(width, width)

    def forward(self, features: Tensor, degradation: Tensor) -> Tensor:
        changed = F.leaky_relu(self.conv1(F.leaky_relu(self.dgm1(features, degradation), 0.1)), 0.1)
        return features + self.conv2(F.leaky_relu(self.dgm2(changed, degradation), 0.1))


class _Guided(nn.Module):
    """Features, and added to them what a deformable convolution and a scale and shift, both told by the degradation, make of them."""

    def __init__(self, width: int):
        super().__init__()
        self.dcn, self.sft = _Deformed(width), _Scaled(width)

    def forward(self, features: Tensor, degradation: Tensor) -> Tensor:
        return features + self.dcn(features, degradation) + self.sft(features, degradation)


class _Deformed(nn.Module):
    """A 3 x 3 convolution that looks where the degradation says, as much as it says (DCNv2)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width, 3, 3).uniform_(-1, 1) / (9 * width) ** 0.5)
        self.conv_offset_mask = nn.Conv2d(2 * width, 27, 3, padding=1)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)

    def forward(self, features: Tensor, degradation: Tensor) -> Tensor:
        from torchvision.ops import deform_conv2d

        told = self.conv_offset_mask(torch.cat([features, degradation], dim=1))
        return deform_conv2d(features, told[:, :18], self.weight, padding=(1, 1), mask=told[:, 18:].sigmoid())


class _Scaled(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv_gamma, self.conv_beta = (
            nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.LeakyReLU(0.1), nn.Conv2d(width, width, 1, bias=False))
            for _ in range(2)
        )

    def forward(self, features: Tensor, degradation: Tensor) -> Tensor:
        return features * self.conv_gamma(degradation) + self.conv_beta(degradation)


def _conv(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 3, padding=1)


def _guided(body: nn.Sequential, features: Tensor, degradation: Tensor) -> Tensor:
    """Through a body, of which all but the last part listen to the degradation."""
    *guided, last = body
    for part in guided:
        features = part(features, degradation)
    return last(features)


def _leave_out_training(module: nn.Module, state: dict[str, Tensor], *_) -> None:
    """Takes from a published state the second encoder and the queue, so that the rest loads strictly."""
    for name in [name for name in state if name.startswith(("E.E.encoder_k.", "E.E.queue"))]:
        del state[name]
