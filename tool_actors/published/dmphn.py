"""DMPHN(1-2-4) (Zhang, Dai, Li and Koniusz, CVPR 2019): motion deblurring from patches to the whole image."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from tool_actors.learned import LearnedTool
from tool_actors.toolbox import Deferred
from tool_actors.weight_files import find_weights, load_into


def tools() -> list[Deferred]:
    return [Deferred("dmphn.gopro", "motion_deblur", _gopro, "published/dmphn_{encoder,decoder}_lv{1,2,3}.safetensors")]


def _gopro() -> LearnedTool:
    network = DMPHN()
    for name, part in network.named_children():
        load_into(part, find_weights(f"published/dmphn_{name}.safetensors"))
    return LearnedTool("dmphn.gopro", "motion_deblur", network, multiple=8)


class DMPHN(nn.Module):
    """Three encoder-decoders, of the image's quarters, of its halves and of the whole, each passing its correction and features on.

    Trained on GoPro; 5.4 million parameters. (B, 3, H, W) in [0, 1] to about the same range; H and W are multiples of 8, as the
    features have a quarter of the side and those of two patches are put together again.
    """

    def __init__(self):
        super().__init__()
        for level in (1, 2, 3):
            self.add_module(f"encoder_lv{level}", Encoder())
            self.add_module(f"decoder_lv{level}", Decoder())

    def forward(self, images: Tensor) -> Tensor:
        whole = images - 0.5
        halves = _cut(whole, dim=2)
        quarters = self.encoder_lv3(_cut(halves, dim=3))
        features = _join(quarters, dim=3)
        correction = self.decoder_lv3(features)
        features = _join(self.encoder_lv2(halves + correction) + features, dim=2)
        correction = self.decoder_lv2(features)
        return self.decoder_lv1(self.encoder_lv1(whole + correction) + features) + 0.5


def _cut(images: Tensor, dim: int) -> Tensor:
    """Both halves along a side, one behind the other in the batch."""
    return torch.cat(images.chunk(2, dim), dim=0)


def _join(halves: Tensor, dim: int) -> Tensor:
    """Undoes :func:`_cut`."""
    return torch.cat(halves.chunk(2, dim=0), dim)


class _Residual(nn.Sequential):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int):
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features)


class Encoder(nn.Sequential):
    """(B, 3, H, W) to features (B, 128, H / 4, W / 4); no layer has the published names in between."""

    def __init__(self):
        super().__init__(
            OrderedDict(
                layer1=nn.Conv2d(3, 32, 3, padding=1),
                layer2=_Residual(32),
                layer3=_Residual(32),
                layer5=nn.Conv2d(32, 64, 3, stride=2, padding=1),
                layer6=_Residual(64),
                layer7=_Residual(64),
                layer9=nn.Conv2d(64, 128, 3, stride=2, padding=1),
                layer10=_Residual(128),
                layer11=_Residual(128),
            )
        )


class Decoder(nn.Sequential):
    """Features (B, 128, H / 4, W / 4) to (B, 3, H, W)."""

    def __init__(self):
        super().__init__(
            OrderedDict(
                layer13=_Residual(128),
                layer14=_Residual(128),
                layer16=nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1),
                layer17=_Residual(64),
                layer18=_Residual(64),
                layer20=nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
                layer21=_Residual(32),
                layer22=_Residual(32),
                layer24=nn.Conv2d(32, 3, 3, padding=1),
            )
        )
