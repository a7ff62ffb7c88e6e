"""Image encoders: a small CNN that has learned to recognise degradations, or a frozen CLIP vision tower."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.errors import IrEnvError, UnknownNameError


class SmallCNN(nn.Module):
    """Ten convolutions on the sub-images of cells of 4 x 4 pixels, pooled by mean, spread and maximum, so that it does not matter where in
    the picture a degradation shows.

    Its weights tell degradations, and what the tools of the default toolbox would gain: ``python -m experiments.pretrain_encoder`` made
    them from photographs outside the built-in collection (the card beside them says which, and how well it does).

    Args:
        width: filters of a layer.
        pretrained: start from the shipped weights (of width 48).
    """

    WEIGHTS = Path(__file__).parent / "weights" / "cnn.safetensors"
    HEAD = 128
    """Width of the layer that the targets were learned on; the policy sees it and what it reads."""

    def __init__(self, width: int = 48, pretrained: bool = True):
        super().__init__()
        self.near = nn.Sequential(nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1), nn.ReLU(), _Residual(width), _Residual(width))
        self.far = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, stride=2), nn.ReLU(), _Residual(width), _Residual(width))
        pooled = 5 * width + 9
        self.head = nn.Sequential(nn.Linear(pooled, self.HEAD), nn.ReLU())
        self.features = pooled + self.HEAD
        if pretrained:
            from safetensors.torch import load_file

            self.load_state_dict({name: value.float() for name, value in load_file(self.WEIGHTS).items()})
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [0, 1] -> (B, features)."""
        near = self.near(images - 0.5)
        far = self.far(near).float().flatten(2)
        near, light = near.float().flatten(2), images.flatten(2)
        pooled = [near.mean(2), near.std(2), far.mean(2), far.std(2), far.amax(2), light.mean(2), light.std(2), light.amax(2)]
        pooled = torch.cat(pooled, dim=1)
        return torch.cat([pooled, self.head(pooled)], dim=1)


class _Residual(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

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
