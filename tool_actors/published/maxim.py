"""MAXIM (Tu, Talebi, Zhang, Yang, Milanfar, Bovik and Li, CVPR 2022): gated MLPs over blocks and over a grid, in a U-Net of stages.

Names of parameters are those of the authors' JAX code (https://github.com/google-research/maxim, Apache-2.0), by stage. Where the weights
come from: :mod:`tool_actors.published.maxim_weights`.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.weight_files import UnsupportedCheckpointError

__all__ = ["DEPTH", "MAXIM", "MULTIPLE", "from_state", "is_maxim"]

DEPTH = 3
"""Levels of the U-Net, each of half the side and twice the channels of the one before."""
SIDES = (16, 16, 8, 8)
"""Side of a block in pixels, and of the grid in cells, at the levels and in the bottleneck."""
MULTIPLE = 64
"""Of which height and width must be multiples: a block's side at the bottleneck, an eighth of the image's."""


def is_maxim(state: dict[str, Tensor]) -> bool:
    """Whether the names are those of :class:`MAXIM`."""
    gate = "SplitHeadMultiAxisGmlpLayer_0.GridGmlpLayer.GridGatingUnit.Dense_0.weight"
    blocks = ("encoder_block_0", "decoder_block_0.UNetEncoderBlock_0")
    return state.keys() >= {"stages.0.input_conv_0.weight", *(f"stages.0.{block}.{gate}" for block in blocks)}


def from_state(state: dict[str, Tensor]) -> MAXIM:
    """The network that a state dict belongs to, with its weights, in evaluation mode.

    Raises:
        UnsupportedCheckpointError: names or shapes are not those of any MAXIM.
    """

    def count(pattern: str) -> int:
        return len({match[1] for name in state if (match := re.match(pattern, name))})

    if not is_maxim(state):
        raise UnsupportedCheckpointError("the state dict is not a MAXIM's: names are missing")
    network = MAXIM(
        width=len(state["stages.0.input_conv_0.weight"]),
        stages=count(r"stages\.(\d+)\."),
        groups=count(r"stages\.0\.encoder_block_0\.SplitHeadMultiAxisGmlpLayer_(\d+)"),
        bottlenecks=count(r"stages\.0\.global_block_(\d+)"),
    )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise UnsupportedCheckpointError(f"the state dict is not a MAXIM's: {' '.join(str(error).split())[:300]}") from error
    return network.eval()


class MAXIM(nn.Module):
    """A U-Net per stage, whose skips are gated across; each stage but the last hands features on to the next.

    (B, 3, H, W) in [0, 1] to about the same range; H and W are multiples of 64. Only what the last stage's full-size output needs is built.

    Args:
        width: channels of the first level.
        stages: U-Nets one behind the other: 3 in the releases for denoising and deblurring, 2 in the others.
        groups: blocks of a level.
        bottlenecks: blocks below the last level.
    """

    def __init__(self, width: int = 32, stages: int = 2, groups: int = 2, bottlenecks: int = 2):
        super().__init__()
        self.stages = nn.ModuleList(
            _Stage(width, groups, bottlenecks, first=index == 0, last=index == stages - 1) for index in range(stages)
        )

    def forward(self, images: Tensor) -> Tensor:
        output = images
        # nearest as JAX has it: of each 2x2 or 4x4 pixels the one right below the middle
        scales = [images, images[..., 1::2, 1::2], images[..., 2::4, 2::4]]
        handed: _Handed | None = None
        for stage in self.stages:
            output, handed = stage(scales, handed)
        return output


_Handed = tuple[list[Tensor], list[Tensor], list[Tensor]]
"""By level: features of a stage's encoder, of its decoder, and of its supervised attention."""


class _Stage(nn.Module):
    def __init__(self, width: int, groups: int, bottlenecks: int, first: bool, last: bool):
        super().__init__()
        widths = [width << level for level in range(DEPTH)]
        self.bottlenecks, self.last = bottlenecks, last
        for level, channels in enumerate(widths):
            side = SIDES[level]
            self.add_module(f"input_conv_{level}", nn.Conv2d(3, channels, 3, padding=1))
            if not first:
                self.add_module(f"input_fuse_sam_{level}", _CrossGating(channels, channels, channels, side))
            coming = channels + (widths[level - 1] if level else channels)
            self.add_module(f"encoder_block_{level}", _Encoder(coming, channels, side, groups, gated=not first, down=True))
            below = widths[min(level + 1, DEPTH - 1)]
            self.add_module(f"cross_gating_block_{level}", _CrossGating(DEPTH * channels, below, channels, side, enlarge=True))
            self.add_module(f"decoder_block_{level}", _Decoder(below, channels, side, groups))
            if not last:
                self.add_module(f"supervised_attention_module_{level}", _SupervisedAttention(channels))
        for index in range(bottlenecks):
            self.add_module(f"global_block_{index}", _Bottleneck(widths[-1], SIDES[-1], groups))
        if last:
            self.output_conv_0 = nn.Conv2d(width, 3, 3, padding=1)
        # in the order of their use: to the cross gating of each level, lowest first, from every level, then to the decoders
        downwards = list(range(DEPTH))
        for index, (level, source) in enumerate(_resizes(downwards) + _resizes(downwards[::-1])):
            self.add_module(f"UpSampleRatio_{index}", _Resize(widths[source], widths[level], 2.0 ** (source - level)))

    def forward(self, images: list[Tensor], handed: _Handed | None) -> tuple[Tensor, _Handed]:
        part = self.get_submodule
        scales = [part(f"input_conv_{level}")(image) for level, image in enumerate(images)]
        if handed is not None:
            scales = [part(f"input_fuse_sam_{level}")(scale, handed[2][level])[0] for level, scale in enumerate(scales)]
        resized = (part(f"UpSampleRatio_{index}") for index in range(2 * DEPTH**2))
        features, encoded = scales[0], []
        for level, scale in enumerate(scales):
            gate = None if handed is None else handed[0][level] + handed[1][level]
            features, skip = part(f"encoder_block_{level}")(torch.cat([features, scale], dim=1), gate)
            encoded.append(skip)
        for index in range(self.bottlenecks):
            features = part(f"global_block_{index}")(features)
        below, skips = features, []
        for level in reversed(range(DEPTH)):
            signal = torch.cat([next(resized)(skip) for skip in encoded], dim=1)
            skip, below = part(f"cross_gating_block_{level}")(signal, below)
            skips.append(skip)
        decoded, attended = [], []
        for level in reversed(range(DEPTH)):
            signal = torch.cat([next(resized)(skip) for skip in skips], dim=1)
            features = part(f"decoder_block_{level}")(features, signal)
            decoded.insert(0, features)
            if not self.last:
                attended.insert(0, part(f"supervised_attention_module_{level}")(features, images[level]))
        return self.output_conv_0(features) + images[0] if self.last else features, (encoded, decoded, attended)


def _resizes(sources: list[int]) -> list[tuple[int, int]]:
    return [(level, source) for level in reversed(range(DEPTH)) for source in sources]


class _Resize(nn.Module):
    """To the side of another level, with its channels."""

    def __init__(self, channels: int, out: int, ratio: float):
        super().__init__()
        self.ratio, self.Conv_0 = ratio, nn.Conv2d(channels, out, 1)

    def forward(self, features: Tensor) -> Tensor:
        if self.ratio != 1:
            features = F.interpolate(features, scale_factor=self.ratio, mode="bilinear", antialias=self.ratio < 1)
        return self.Conv_0(features)


class _Encoder(nn.Module):
    """A level: multi-axis gated MLPs and channel attention in turn; cross gating with an earlier stage; half the side."""

    def __init__(self, channels: int, out: int, side: int, groups: int, gated: bool = False, down: bool = False):
        super().__init__()
        self.groups = groups
        self.Conv_0 = nn.Conv2d(channels, out, 1)
        for index in range(groups):
            self.add_module(f"SplitHeadMultiAxisGmlpLayer_{index}", _MultiAxis(out, side))
            self.add_module(f"channel_attention_block_1{index}", _ConvAttention(out))
        if gated:
            self.cross_gating_block = _CrossGating(out, out, out, side)
        if down:
            self.Conv_1 = nn.Conv2d(out, out, 4, stride=2, padding=1)

    def forward(self, features: Tensor, gate: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = shortcut = self.Conv_0(features)
        for index in range(self.groups):
            features = self.get_submodule(f"SplitHeadMultiAxisGmlpLayer_{index}")(features)
            features = self.get_submodule(f"channel_attention_block_1{index}")(features)
        features = features + shortcut
        if gate is not None:
            features, _ = self.cross_gating_block(features, gate)
        return self.Conv_1(features) if hasattr(self, "Conv_1") else features, features


class _Decoder(nn.Module):
    def __init__(self, channels: int, out: int, side: int, groups: int):
        super().__init__()
        self.ConvTranspose_0 = nn.ConvTranspose2d(channels, out, 2, stride=2)
        self.UNetEncoderBlock_0 = _Encoder((1 + DEPTH) * out, out, side, groups)

    def forward(self, features: Tensor, signal: Tensor) -> Tensor:
        return self.UNetEncoderBlock_0(torch.cat([self.ConvTranspose_0(features), signal], dim=1))[0]


class _Bottleneck(nn.Module):
    def __init__(self, channels: int, side: int, groups: int):
        super().__init__()
        self.groups = groups
        self.input_proj = nn.Conv2d(channels, channels, 1)
        for index in range(groups):
            self.add_module(f"SplitHeadMultiAxisGmlpLayer_{index}", _MultiAxis(channels, side))
            self.add_module(f"channel_attention_block_1_{index}", _MlpAttention(channels))

    def forward(self, features: Tensor) -> Tensor:
        features = shortcut = self.input_proj(features)
        for index in range(self.groups):
            features = self.get_submodule(f"SplitHeadMultiAxisGmlpLayer_{index}")(features)
            features = self.get_submodule(f"channel_attention_block_1_{index}")(features)
        return features + shortcut


class _MultiAxis(nn.Module):
    """Half the channels mixed over a grid, half within blocks."""

    def __init__(self, channels: int, side: int):
        super().__init__()
        self.LayerNorm_in, self.in_project = _norm(channels), nn.Linear(channels, 2 * channels)
        self.GridGmlpLayer = _Gmlp(channels, side, "GridGatingUnit")
        self.BlockGmlpLayer = _Gmlp(channels, side, "BlockGatingUnit")
        self.out_project = nn.Linear(2 * channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        rows = features.permute(0, 2, 3, 1)
        grid, blocks = _gelu(self.in_project(self.LayerNorm_in(rows))).chunk(2, dim=-1)
        mixed = torch.cat([self.GridGmlpLayer(grid), self.BlockGmlpLayer(blocks)], dim=-1)
        return features + self.out_project(mixed).permute(0, 3, 1, 2)


class _Gmlp(nn.Module):
    """A gated MLP whose gates mix positions: the cells of a grid laid over the image, or the pixels of a block."""

    def __init__(self, channels: int, side: int, unit: str):
        super().__init__()
        self.unit = unit
        self.LayerNorm, self.in_project = _norm(channels), nn.Linear(channels, 2 * channels)
        self.add_module(unit, _Gate(channels, side, over_grid=unit == "GridGatingUnit"))
        self.out_project = nn.Linear(channels, channels)

    def forward(self, rows: Tensor) -> Tensor:
        values, gates = _gelu(self.in_project(self.LayerNorm(rows))).chunk(2, dim=-1)
        return rows + self.out_project(values * (self.get_submodule(self.unit)(gates) + 1))


class _Gate(nn.Module):
    def __init__(self, channels: int, side: int, over_grid: bool):
        super().__init__()
        self.side, self.over_grid = side, over_grid
        self.intermediate_layernorm, self.Dense_0 = _norm(channels), nn.Linear(side**2, side**2)

    def forward(self, rows: Tensor) -> Tensor:
        return _mix(self.Dense_0, self.intermediate_layernorm(rows), self.side, self.over_grid)


def _mix(dense: nn.Linear, rows: Tensor, side: int, over_grid: bool) -> Tensor:
    """A linear map over positions of (B, H, W, C): over the cells of a grid of ``side`` by ``side``, or within blocks of that side."""
    batch, height, width, channels = rows.shape
    if over_grid:
        parts = rows.reshape(batch, side, height // side, side, width // side, channels)
        mixed = dense(parts.permute(0, 2, 4, 5, 1, 3).flatten(4)).unflatten(-1, (side, side))
        return mixed.permute(0, 4, 1, 5, 2, 3).reshape(rows.shape)
    parts = rows.reshape(batch, height // side, side, width // side, side, channels)
    mixed = dense(parts.permute(0, 1, 3, 5, 2, 4).flatten(4)).unflatten(-1, (side, side))
    return mixed.permute(0, 1, 4, 2, 5, 3).reshape(rows.shape)


class _CrossGating(nn.Module):
    """Two signals, each gated by what the other says of positions; the first comes out with both in it, the second with itself."""

    def __init__(self, channels: int, gating: int, out: int, side: int, enlarge: bool = False):
        super().__init__()
        if enlarge:
            self.ConvTranspose_0 = nn.ConvTranspose2d(gating, out, 2, stride=2)
        self.Conv_0, self.Conv_1 = nn.Conv2d(channels, out, 1), nn.Conv2d(out if enlarge else gating, out, 1)
        self.LayerNorm_x, self.in_project_x, self.out_project_x = _norm(out), nn.Linear(out, out), nn.Linear(out, out)
        self.LayerNorm_y, self.in_project_y, self.out_project_y = _norm(out), nn.Linear(out, out), nn.Linear(out, out)
        self.SplitHeadMultiAxisGating_x, self.SplitHeadMultiAxisGating_y = _Gating(out, side), _Gating(out, side)

    def forward(self, features: Tensor, gating: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(self, "ConvTranspose_0"):
            gating = self.ConvTranspose_0(gating)
        first, second = (signal.permute(0, 2, 3, 1) for signal in (self.Conv_0(features), self.Conv_1(gating)))
        x = _gelu(self.in_project_x(self.LayerNorm_x(first)))
        y = _gelu(self.in_project_y(self.LayerNorm_y(second)))
        gate_x, gate_y = self.SplitHeadMultiAxisGating_x(x), self.SplitHeadMultiAxisGating_y(y)
        second = second + self.out_project_y(y * gate_x)
        first = first + self.out_project_x(x * gate_y) + second
        return first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2)


class _Gating(nn.Module):
    def __init__(self, channels: int, side: int):
        super().__init__()
        self.side = side
        self.LayerNorm_in, self.in_project = _norm(channels), nn.Linear(channels, 2 * channels)
        self.Dense_0, self.Dense_1 = nn.Linear(side**2, side**2), nn.Linear(side**2, side**2)
        self.out_project = nn.Linear(2 * channels, channels)

    def forward(self, rows: Tensor) -> Tensor:
        grid, blocks = _gelu(self.in_project(self.LayerNorm_in(rows))).chunk(2, dim=-1)
        mixed = [_mix(self.Dense_0, grid, self.side, over_grid=True), _mix(self.Dense_1, blocks, self.side, over_grid=False)]
        return self.out_project(torch.cat(mixed, dim=-1))


class _ConvAttention(nn.Module):
    """Residual channel attention behind two convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.LayerNorm = _norm(channels)
        self.conv1, self.conv2 = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.channel_attention = _ChannelAttention(channels)

    def forward(self, features: Tensor) -> Tensor:
        normal = self.LayerNorm(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return features + self.channel_attention(self.conv2(F.leaky_relu(self.conv1(normal), 0.2)))


class _MlpAttention(nn.Module):
    """Residual channel attention behind an MLP over channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.LayerNorm = _norm(channels)
        self.channel_mixing = nn.ModuleDict({f"Dense_{index}": nn.Linear(channels, channels) for index in range(2)})
        self.channel_attention = _ChannelAttention(channels)

    def forward(self, features: Tensor) -> Tensor:
        normal = self.LayerNorm(features.permute(0, 2, 3, 1))
        mixed = self.channel_mixing["Dense_1"](_gelu(self.channel_mixing["Dense_0"](normal)))
        return features + self.channel_attention(mixed.permute(0, 3, 1, 2))


class _ChannelAttention(nn.Module):
    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.Conv_0, self.Conv_1 = nn.Conv2d(channels, channels // reduction, 1), nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        return features * torch.sigmoid(self.Conv_1(F.relu(self.Conv_0(features.mean((2, 3), keepdim=True)))))


class _SupervisedAttention(nn.Module):
    """Features, weighted by what a first restored image says of them."""

    def __init__(self, channels: int):
        super().__init__()
        self.Conv_0, self.Conv_1 = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, 3, 3, padding=1)
        self.Conv_2 = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, features: Tensor, images: Tensor) -> Tensor:
        restored = self.Conv_1(features) + images
        return features + self.Conv_0(features) * torch.sigmoid(self.Conv_2(restored))


def _norm(channels: int) -> nn.LayerNorm:
    return nn.LayerNorm(channels, eps=1e-6)


def _gelu(values: Tensor) -> Tensor:
    return F.gelu(values, approximate="tanh")
