"""Image encoders: a small CNN that has learned to recognise degradations, or a frozen CLIP vision tower."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import DEGRADATIONS
from tool_actors.weight_files import load_into


class SmallCNN(nn.Module):
    """Residual convolutions at three resolutions, the power spectrum, and quantiles of the brightest and darkest channel.

    The maps of the convolutions are pooled, so that it does not matter where in the picture a degradation shows. The spectrum shows what
    convolutions learn slowly: the zeros of a blur, the floor of noise, the grid of JPEG blocks, the cut of a reduced image.

    It gives what it has learned to tell: which degradations are there, and what each tool would gain. ``python -m
    experiments.pretrain_encoder`` made its weights from photographs outside the built-in collection (the card beside them says which, and
    how well it does). A policy on the pooled maps themselves learned the few photographs that it was trained on by heart.

    Args:
        weights: safetensors file with its card beside it; None for an untrained one.
        tools: names of the tools whose gains it tells; by default those of the card.
        width: filters of the first layers.
    """

    WEIGHTS = Path(__file__).parent / "weights" / "cnn.safetensors"
    HEAD, DROPOUT = 128, 0.2
    BLOCKS = (1, 2, 3)
    """Residual blocks at each of the three resolutions."""
    SIDE, BIN, QUANTILES = 64, 2, 13
    """Of the square that the spectrum is taken of, of the cells that it is averaged over; quantiles per channel."""

    def __init__(self, weights: str | Path | None = WEIGHTS, tools: Sequence[str] | None = None, width: int = 32):
        super().__init__()
        if tools is None:
            tools = json.loads(Path(weights).with_suffix(".json").read_text())["tools"] if weights else ()
        self.tools = tuple(tools)
        widths = (width, 2 * width, 3 * width)
        inputs = (12, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(source, filters, 1 if source == 12 else 2), *[_Residual(filters) for _ in range(blocks)])
            for source, filters, blocks in zip(inputs, widths, self.BLOCKS, strict=True)
        )
        cells = self.SIDE * self.SIDE // 2 // self.BIN**2
        self.spectrum = nn.Sequential(
            nn.BatchNorm1d(cells + 2 * self.QUANTILES), nn.Linear(cells + 2 * self.QUANTILES, 128), nn.BatchNorm1d(128), nn.ReLU()
        )
        pooled = 2 * sum(widths) + widths[-1] + 6 + 128
        self.head = nn.Sequential(
            nn.BatchNorm1d(pooled), nn.Dropout(self.DROPOUT), nn.Linear(pooled, self.HEAD), nn.ReLU(), nn.Dropout(self.DROPOUT)
        )
        self.present, self.gains = nn.Linear(self.HEAD, len(DEGRADATIONS)), nn.Linear(self.HEAD, len(self.tools))
        self.features = len(DEGRADATIONS) + len(self.tools)
        self.register_buffer("window", torch.outer(*[torch.hann_window(self.SIDE, periodic=False)] * 2), persistent=False)
        if weights:
            load_into(self, Path(weights))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [0, 1] -> (B, 8 + tools): logits of the degradations, then gains of the tools in units of the reward."""
        centred = images - 0.5
        maps = F.pixel_unshuffle(centred, 2)
        pooled = [*_moments(centred), self.spectrum(self.statistics(images))]
        for stage in self.stages:
            maps = stage(maps)
            pooled += _moments(maps)
        pooled = torch.cat([*pooled, maps.amax((2, 3)).float()], dim=1)
        head = self.head(pooled)
        return torch.cat([self.present(head), self.gains(head)], dim=1).float()

    def statistics(self, images: Tensor) -> Tensor:
        """The log power spectrum of the grey picture in cells of :attr:`BIN`, and the quantiles: (B, cells + 2 * quantiles)."""
        with torch.autocast(images.device.type, enabled=False):
            grey = images.float().mean(1, keepdim=True)
            if (side := grey.shape[2]) < self.SIDE:
                grey, side = F.interpolate(grey, (self.SIDE, self.SIDE), mode="nearest"), self.SIDE
            windows = -(-side // self.SIDE)
            step = (side - self.SIDE) // max(windows - 1, 1) or 1
            # Welch's estimate: the power is averaged over windows that overlap
            parts = grey[:, 0].unfold(1, self.SIDE, step).unfold(2, self.SIDE, step).flatten(1, 2)
            parts = (parts - parts.mean((2, 3), keepdim=True)) * self.window
            power = torch.fft.rfft2(parts).abs().square().mean(1).sqrt()[:, :, : self.SIDE // 2]
            cells = F.avg_pool2d(torch.fft.fftshift(torch.log(power + 1e-2), dim=1)[:, None], self.BIN).flatten(1)
            values = torch.stack([images.amax(1), images.amin(1)], dim=1).flatten(2)
            return torch.cat([cells, _quantiles(values, self.QUANTILES).flatten(1)], dim=1)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, filters: int):
        super().__init__()
        self.inner = _convolution(filters, filters)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.inner(maps)


def _moments(maps: Tensor) -> list[Tensor]:
    """Mean and standard deviation over the picture, float32 (B, C) each; several times faster than ``Tensor.std``."""
    maps = maps.float()
    mean = maps.mean((2, 3))
    return [mean, (maps.square().mean((2, 3)) - mean.square()).clamp(min=1e-8).sqrt()]


def _quantiles(values: Tensor, count: int) -> Tensor:
    """Of 8-bit values in [0, 1], float32 (B, C, N) -> (B, C, count), from the least to the largest; counting is faster than sorting."""
    counts = torch.zeros(*values.shape[:2], 256, device=values.device)
    levels = (values.float() * 255.0).round().long()
    reached = counts.scatter_add_(2, levels, torch.ones((), device=values.device).expand(values.shape)).cumsum(2)
    ranks = torch.linspace(0, values.shape[2] - 1, count, device=values.device).floor() + 1
    return torch.searchsorted(reached, ranks.expand(*values.shape[:2], count).contiguous()).float() / 255.0


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
