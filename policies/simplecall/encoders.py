"""Image encoders: a small CNN that has learned to recognise degradations, or a frozen CLIP vision tower."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ir_env.view import View
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.extras import need
from tool_actors.tasks import DEGRADATIONS
from tool_actors.weight_files import load_into


class SmallCNN(nn.Module):
    """Residual convolutions over the overview and over every glimpse, power spectra, levels, and quantiles of the brightest and darkest
    channel.

    The maps of the convolutions are pooled, over the places of a picture and over the glimpses, so that it does not matter where a
    degradation shows. The spectrum shows what convolutions learn slowly: the zeros of a blur, the floor of noise, the grid of JPEG blocks,
    the cut of a reduced image. How often each level occurs shows what was darkened: shadows cut off, levels that a curve leaves out.

    It gives its last hidden layer, and what that has learned to tell: which degradations are there, and what each tool would gain.
    ``python -m experiments.pretrain_encoder`` made its weights from photographs outside the built-in collection (the card beside them says
    which, and how well it does).

    Args:
        weights: safetensors file with its card beside it; None for an untrained one.
        tools: names of the tools whose gains it tells; by default those of the card.
        view: what it is shown, see :class:`ir_env.view.View`; by default that of the card, without weights the usual one. It works with
            any number of glimpses, if it learned on some.
        width: filters of the first layers; the overview, which is coarse, has three quarters of them.
    """

    WEIGHTS = Path(__file__).parent / "weights" / "cnn.safetensors"
    HEAD, DROPOUT, GLIMPSE = 128, 0.2, 128
    """Width of the head, its dropout, features of a glimpse."""

    def __init__(
        self,
        weights: str | Path | None = WEIGHTS,
        tools: Sequence[str] | None = None,
        view: View | Mapping | None = None,
        width: int = 32,
    ):
        super().__init__()
        card = json.loads(Path(weights).with_suffix(".json").read_text()) if weights else {}
        self.combos = (*card.get("combinations", ()), *(card.get("started_from") or {}).get("combinations", ()))
        self.tools = tuple(card.get("tools", ()) if tools is None else tools)
        self.view = View.of(card.get("view") if view is None else view)
        pooled = 2
        if self.view.overview:
            self.overview = _Picture(width * 3 // 4)
            pooled += self.overview.features
        if self.view.glimpses:
            self.glimpse = _Picture(width)
            self.of_glimpse = nn.Sequential(
                nn.BatchNorm1d(self.glimpse.features),
                nn.Linear(self.glimpse.features, self.GLIMPSE),
                nn.BatchNorm1d(self.GLIMPSE),
                nn.ReLU(),
            )
            self.spectrum, self.levels = _Spectrum(), _Levels()
            pooled += 2 * self.GLIMPSE + self.spectrum.features + self.levels.features
        self.head = nn.Sequential(
            nn.BatchNorm1d(pooled), nn.Dropout(self.DROPOUT), nn.Linear(pooled, self.HEAD), nn.ReLU(), nn.Dropout(self.DROPOUT)
        )
        self.present, self.gains = nn.Linear(self.HEAD, len(DEGRADATIONS)), nn.Linear(self.HEAD, len(self.tools))
        self.features = self.HEAD + len(DEGRADATIONS) + len(self.tools)
        if weights:
            load_into(self, Path(weights))
        self.to(memory_format=torch.channels_last)

    def told(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Of what :meth:`forward` gives: logits of the degradations (B, 8), gains of the tools (B, tools)."""
        _, present, gains = encoded.split([self.HEAD, len(DEGRADATIONS), len(self.tools)], dim=1)
        return present, gains

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """What :meth:`ir_env.view.View.look` gives, batched: uint8 ``overview`` (B, V, V, 3), uint8 ``glimpses`` (B, K, S, S, 3), float32
        ``size`` (B, 2) -> (B, features): the head, logits of the degradations, then gains of the tools in units of the reward."""
        pooled = [seen["size"].float().clamp(min=1.0).log() / 10.0]
        if self.view.overview:
            pooled.append(self.overview(_planes(seen["overview"])))
        if self.view.glimpses:
            count = seen["glimpses"].shape[1]
            squares = _planes(seen["glimpses"].flatten(0, 1))
            each = self.of_glimpse(self.glimpse(squares)).float().unflatten(0, (-1, count))
            pooled += [each.mean(1), each.amax(1), self.spectrum(squares, count), self.levels(seen["glimpses"])]
        head = self.head(torch.cat([part.float() for part in pooled], dim=1))
        return torch.cat([head, self.present(head), self.gains(head)], dim=1).float()


class _Picture(nn.Module):
    """Residual convolutions at three resolutions, pooled; and quantiles: float32 (B, 3, S, S) -> (B, features)."""

    BLOCKS, QUANTILES = (1, 2, 3), 13
    """Residual blocks at each of the three resolutions; quantiles per channel."""

    def __init__(self, width: int):
        super().__init__()
        widths = (width, 2 * width, 3 * width)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(source, filters, 1 if source == 12 else 2), *[_Residual(filters) for _ in range(blocks)])
            for source, filters, blocks in zip((12, *widths[:-1]), widths, self.BLOCKS, strict=True)
        )
        self.features = 6 + 2 * sum(widths) + widths[-1] + 2 * self.QUANTILES

    def forward(self, images: Tensor) -> Tensor:
        centred = images - 0.5
        maps = F.pixel_unshuffle(centred, 2)
        pooled = _moments(centred)
        for stage in self.stages:
            maps = stage(maps)
            pooled += _moments(maps)
        values = torch.stack([images.amax(1), images.amin(1)], dim=1).flatten(2)
        return torch.cat([*pooled, maps.amax((2, 3)).float(), _quantiles(values, self.QUANTILES).flatten(1)], dim=1)


class _Spectrum(nn.Module):
    """The log power spectrum of grey glimpses, averaged over them (Welch's estimate) and over cells: (B * K, 3, S, S) -> (B, features)."""

    SIDE, BIN = 64, 2
    """Of the square that the spectrum is taken of, of the cells that it is averaged over."""

    def __init__(self, features: int = 128):
        super().__init__()
        cells, self.features = self.SIDE * self.SIDE // 2 // self.BIN**2, features
        self.layers = _dense(cells, features)
        self.register_buffer("window", torch.outer(*[torch.hann_window(self.SIDE, periodic=False)] * 2), persistent=False)

    def forward(self, images: Tensor, count: int) -> Tensor:
        return self.layers(self.cells(images, count))

    def cells(self, images: Tensor, count: int) -> Tensor:
        """float32 (B, cells)."""
        with torch.autocast(images.device.type, enabled=False):
            grey = images.float().mean(1)
            if grey.shape[1] != self.SIDE:
                grey = F.interpolate(grey[:, None], (self.SIDE, self.SIDE), mode="nearest")[:, 0]
            parts = (grey - grey.mean((1, 2), keepdim=True)) * self.window
            power = torch.fft.rfft2(parts).abs().square().unflatten(0, (-1, count)).mean(1).sqrt()[:, :, : self.SIDE // 2]
            return F.avg_pool2d(torch.fft.fftshift(torch.log(power + 1e-2), dim=1)[:, None], self.BIN).flatten(1)


class _Levels(nn.Module):
    """How often each of the 256 levels occurs in the brightest and in the darkest channel, over all glimpses, and how colourful pixels of
    each brightness are: uint8 (B, K, S, S, 3) -> (B, features)."""

    SHADES = 16
    """Of brightness, for the colourfulness."""

    def __init__(self, features: int = 64):
        super().__init__()
        self.features = features
        self.layers = _dense(2 * 256 + self.SHADES, features)

    def forward(self, glimpses: Tensor) -> Tensor:
        with torch.autocast(glimpses.device.type, enabled=False):
            return self.layers(self.counts(glimpses))

    def counts(self, glimpses: Tensor) -> Tensor:
        """float32 (B, 2 * 256 + shades)."""
        pixels = glimpses.flatten(1, 3).long()
        bright, dark = pixels.amax(2), pixels.amin(2)
        shades, saturation = bright * self.SHADES // 256, (bright - dark).float() / bright.clamp(min=1)
        occurring = [torch.log1p(256.0 * _sums(each, torch.ones_like(saturation), 256) / each.shape[1]) for each in (bright, dark)]
        there = _sums(shades, torch.ones_like(saturation), self.SHADES).clamp(min=1.0)
        return torch.cat([*occurring, _sums(shades, saturation, self.SHADES) / there], dim=1)


def _sums(places: Tensor, values: Tensor, count: int) -> Tensor:
    """Of the values at each place: int64 and float32 (B, N) -> float32 (B, count)."""
    return torch.zeros(len(places), count, device=values.device).scatter_add_(1, places, values)


def _planes(pictures: Tensor) -> Tensor:
    """uint8 (B, S, S, 3) -> float32 (B, 3, S, S) in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255.0


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride), nn.BatchNorm2d(outputs), nn.ReLU())


def _dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(inputs), nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


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
        need("transformers")
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
        self.tower_size = tower.config.hidden_size
        self.features = 2 * self.tower_size
        self.register_buffer("mean", torch.tensor(self.MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, seen: Mapping[str, Tensor]) -> Tensor:
        """What :meth:`ir_env.view.View.look` gives, batched -> (B, 2 * hidden): the overview's, and the mean of the glimpses'."""
        tower, size = self._tower[0].to(self.mean.device), self.tower_size
        parts = []
        for name in ("overview", "glimpses"):
            if name not in seen:
                parts.append(torch.zeros(len(seen["size"]), size, device=self.mean.device))
                continue
            pictures = seen[name] if name == "glimpses" else seen[name][:, None]
            resized = F.interpolate(_planes(pictures.flatten(0, 1)), (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
            with torch.no_grad():
                told = tower(pixel_values=(resized - self.mean) / self.std).pooler_output
            parts.append(told.unflatten(0, (-1, pictures.shape[1])).mean(1))
        return torch.cat(parts, dim=1)


ENCODERS: dict[str, Callable[..., nn.Module]] = {"cnn": SmallCNN, "clip": FrozenCLIP}
"""Add an encoder of your own here: a module from what :meth:`ir_env.view.View.look` gives, batched, to (B, features), with an int
``features``."""


def make_encoder(name: str, options: Mapping | None = None) -> nn.Module:
    """An encoder by name; raises :class:`UnknownNameError`."""
    if name not in ENCODERS:
        raise UnknownNameError("encoder", name, ENCODERS)
    return ENCODERS[name](**(options or {}))
