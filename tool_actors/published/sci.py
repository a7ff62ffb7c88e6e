"""SCI (Ma, Ma, Liu, Fan and Luo, CVPR 2022): brightening with a self-calibrated illumination, 258 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred

VARIANTS = ("easy", "medium", "difficult")
"""How dark the photographs were that each was trained on, without references."""


def tools() -> list[Deferred]:
    return [published(f"sci.{name}", "brighten", SCI, f"published/sci_{name}.safetensors") for name in VARIANTS]


class SCI(nn.Module):
    """Divides the image by an estimate of its illumination: (B, 3, H, W) in [0, 1] to the same.

    Training repeats the estimate in stages that a second network, `calibrate`, draws together; one stage is enough afterwards, so
    `calibrate` is left out here.
    """

    def __init__(self):
        super().__init__()
        self.enhance = _Illumination()
        self.register_load_state_dict_pre_hook(_leave_out_training)

    def forward(self, images: Tensor) -> Tensor:
        return (images / self.enhance(images)).clamp(0, 1)


class _Illumination(nn.Module):
    """Three convolutions of width 3 that estimate how much brighter than the image the light is; in [0.0001, 1], so never 0."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.in_conv = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.out_conv = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1), nn.Sigmoid())

    def forward(self, images: Tensor) -> Tensor:
        features = self.in_conv(images)
        features = features + self.conv(features)
        return (images + self.out_conv(features)).clamp(1e-4, 1)


def _leave_out_training(module: nn.Module, state: dict[str, Tensor], *_) -> None:
    """Takes from a published state what a :class:`SCI` has no use for, so that the rest loads strictly.

    `enhance.blocks.0` is `enhance.conv` under a second name.
    """
    for name in [name for name in state if name.startswith(("calibrate.", "enhance.blocks."))]:
        del state[name]
