"""Image encoders: a small CNN that has learned to recognise degradations, or a frozen CLIP vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from tool_actors.errors import IrEnvError, UnknownNameError


class SmallCNN(nn.Module):
    """Ten convolutions on the sub-images of cells of 4 x 4 pixels, pooled by mean, spread and maximum, so that it does not matter where in
    the picture a degradation shows.

    Its weights tell degradations, and what the tools of the default toolbox would gain: ``python -m experiments.pretrain_encoder`` made
    them from photographs outside the built-in collection (the card beside them says which, and how well it does).

    Args:
        width: filters of a layer.
        pretrained: start from the shipped weights (of width 48).
        norm: batch normalisation after each layer, to be trained with and then folded away by :meth:`folded`.
    """

    WEIGHTS = Path(__file__).parent / "weights" / "cnn.safetensors"
    HEAD = 128
    """Width of the layer that the targets were learned on; the policy sees it and what it reads."""

    def __init__(self, width: int = 48, pretrained: bool = True, norm: bool = False):
        super().__init__()
        self.width = width
        self.near = nn.Sequential(_convolution(48, width, norm), _Residual(width, norm), _Residual(width, norm))
        self.far = nn.Sequential(_convolution(width, width, norm, stride=2), _Residual(width, norm), _Residual(width, norm))
        pooled = 5 * width + 9
        self.head = nn.Linear(pooled, self.HEAD)
        self.head_norm = nn.BatchNorm1d(self.HEAD) if norm else nn.Identity()
        self.features = pooled + self.HEAD
        if pretrained:
            from safetensors.torch import load_file

            self.load_state_dict({name: value.float() for name, value in load_file(self.WEIGHTS).items()})
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [0, 1] -> (B, features)."""
        near = F.relu(self.near[0](F.pixel_unshuffle(images - 0.5, 4)))
        near = self.near[1:](near)
        far = self.far[1:](F.relu(self.far[0](near))).float().flatten(2)
        near, light = near.float().flatten(2), images.flatten(2)
        pooled = [near.mean(2), near.std(2), far.mean(2), far.std(2), far.amax(2), light.mean(2), light.std(2), light.amax(2)]
        pooled = torch.cat(pooled, dim=1)
        return torch.cat([pooled, F.relu(self.head_norm(self.head(pooled)))], dim=1)

    def folded(self) -> SmallCNN:
        """The same function without normalisation layers."""
        plain = SmallCNN(self.width, pretrained=False)
        own = dict(self.eval().named_modules())
        for name, module in plain.named_modules():
            if isinstance(module, nn.Conv2d):
                # a convolution and its normalisation stand in one Sequential
                pair = own[name.rpartition(".")[0]]
                module.load_state_dict((fuse_conv_bn_eval(*pair) if len(pair) == 2 else pair[0]).state_dict())
        head = self.head if isinstance(self.head_norm, nn.Identity) else fuse_linear_bn_eval(self.head, self.head_norm)
        plain.head.load_state_dict(head.state_dict())
        return plain.eval()


def _convolution(inputs: int, outputs: int, norm: bool, stride: int = 1) -> nn.Sequential:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)]
    return nn.Sequential(*layers, *([nn.BatchNorm2d(outputs)] if norm else []))


class _Residual(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int, norm: bool):
        super().__init__()
        self.first, self.second = (_convolution(width, width, norm) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        return F.relu(maps + self.second(F.relu(self.first(maps))))


class FrozenCLIP(nn.Module):
    """The vision tower of a CLIP model of transformers, frozen; its pooled output.

    Args:
        model: a folder with the weights, or a name on the hub (which needs a connection, or the weights in the local cache).
    """

    MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model: str = "openai/clip-vit-base-patch32"):
        super().__init__()
        from transformers import CLIPVisionModel

        try:
            tower = CLIPVisionModel.from_pretrained(model)
        except Exception as error:
            raise IrEnvError(
                f"the CLIP vision tower {model!r} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). "
                "Give the folder of a downloaded model as encoder_options={'model': folder}, or use encoder='cnn'."
            ) from error
        # held outside the module's registry: neither trained, nor copied into every checkpoint
        self._tower = [tower.eval().requires_grad_(False)]
        self.side = tower.config.image_size
        self.features = tower.config.hidden_size
        self.register_buffer("mean", torch.tensor(self.MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [0, 1] -> (B, features)."""
        tower = self._tower[0].to(images.device)
        resized = F.interpolate(images, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            return tower(pixel_values=(resized - self.mean) / self.std).pooler_output


ENCODERS: dict[str, Callable[..., nn.Module]] = {"cnn": SmallCNN, "clip": FrozenCLIP}
"""Add an encoder of your own here: a module from float32 (B, 3, S, S) in [0, 1] to (B, features), with an int ``features``."""


def make_encoder(name: str, options: Mapping | None = None) -> nn.Module:
    """An encoder by name; raises :class:`UnknownNameError`."""
    if name not in ENCODERS:
        raise UnknownNameError("encoder", name, ENCODERS)
    return ENCODERS[name](**(options or {}))
