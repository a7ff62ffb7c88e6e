"""PromptIR (Potlapalli, Zamir, Khan and Khan, NeurIPS 2023): one transformer for several degradations, told apart by learned prompts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.tasks import ALL_IN_ONE
from tool_actors.toolbox import Deferred

EXPANSION = 2.66
"""Of the feed-forward parts, from channels in to channels gated."""


def tools() -> list[Deferred]:
    return [published("promptir.three", ALL_IN_ONE, PromptIR, "published/promptir.safetensors", multiple=8)]


class PromptIR(nn.Module):
    """Restormer's encoder and decoder, with prompts that the features choose mixed in before each level of the decoder.

    (B, 3, H, W) in [0, 1] to about the same range; H and W are multiples of 8. The release, of 48 channels and 35.6 million parameters, was
    trained on noise, rain and haze, one at a time. Its state is that of a Lightning module, every name behind ``net.``, and holds nine
    convolutions that nothing uses.

    Args:
        width: channels of the first level; a multiple of the attention's heads.
        blocks: of the four levels.
        refinement: blocks after the decoder.
        heads: of the attention, by level.
        prompts: channels of the three prompts, from the first level on.
        sizes: side in pixels at which each prompt is kept.
    """

    def __init__(
        self,
        width: int = 48,
        blocks: Sequence[int] = (4, 6, 6, 8),
        refinement: int = 4,
        heads: Sequence[int] = (1, 2, 4, 8),
        prompts: Sequence[int] = (64, 128, 320),
        sizes: Sequence[int] = (64, 32, 16),
    ):
        super().__init__()
        one, two, four, eight = (width * side for side in (1, 2, 4, 8))
        first, second, third = prompts
        self.patch_embed = _Embedding(one)
        self.prompt1 = _Prompt(first, sizes[0], two)
        self.prompt2 = _Prompt(second, sizes[1], four)
        self.prompt3 = _Prompt(third, sizes[2], eight)
        self.encoder_level1 = _blocks(one, heads[0], blocks[0])
        self.down1_2 = _Down(one)
        self.encoder_level2 = _blocks(two, heads[1], blocks[1])
        self.down2_3 = _Down(two)
        self.encoder_level3 = _blocks(four, heads[2], blocks[2])
        self.down3_4 = _Down(four)
        self.latent = _blocks(eight, heads[3], blocks[3])
        self.noise_level3 = _Block(eight + third, heads[2])
        self.reduce_noise_level3 = _one_by_one(eight + third, four)
        self.up4_3 = _Up(four)
        self.reduce_chan_level3 = _one_by_one(two + four, four)
        self.decoder_level3 = _blocks(four, heads[2], blocks[2])
        self.noise_level2 = _Block(four + second, heads[2])
        self.reduce_noise_level2 = _one_by_one(four + second, four)
        self.up3_2 = _Up(four)
        self.reduce_chan_level2 = _one_by_one(two + two, two)
        self.decoder_level2 = _blocks(two, heads[1], blocks[1])
        self.noise_level1 = _Block(two + first, heads[2])
        self.reduce_noise_level1 = _one_by_one(two + first, two)
        self.up2_1 = _Up(two)
        self.decoder_level1 = _blocks(two, heads[0], blocks[0])
        self.refinement = _blocks(two, heads[0], refinement)
        self.output = nn.Conv2d(two, 3, 3, padding=1, bias=False)
        self.register_load_state_dict_pre_hook(_own_names)

    def forward(self, images: Tensor) -> Tensor:
        first = self.encoder_level1(self.patch_embed(images))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        features = self.latent(self.down3_4(third))
        features = self.reduce_noise_level3(self.noise_level3(self.prompt3(features)))
        features = self.reduce_chan_level3(torch.cat([self.up4_3(features), third], dim=1))
        features = self.decoder_level3(features)
        features = self.reduce_noise_level2(self.noise_level2(self.prompt2(features)))
        features = self.reduce_chan_level2(torch.cat([self.up3_2(features), second], dim=1))
        features = self.decoder_level2(features)
        features = self.reduce_noise_level1(self.noise_level1(self.prompt1(features)))
        features = torch.cat([self.up2_1(features), first], dim=1)
        return self.output(self.refinement(self.decoder_level1(features))) + images


class _Prompt(nn.Module):
    """Features, and behind them a mixture of five learned prompts, at their size, that their mean decides."""

    def __init__(self, channels: int, side: int, features: int, count: int = 5):
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, count, channels, side, side))
        self.linear_layer = nn.Linear(features, count)
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        shares = self.linear_layer(features.mean((2, 3))).softmax(1)
        prompt = (shares[:, :, None, None, None] * self.prompt_param).sum(1)
        prompt = F.interpolate(prompt, features.shape[2:], mode="bilinear")
        return torch.cat([features, self.conv3x3(prompt)], dim=1)


class _Block(nn.Module):
    """Restormer's block: attention between channels, and a gated feed-forward part."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.norm1, self.attn = _Norm(channels), _Attention(channels, heads)
        self.norm2, self.ffn = _Norm(channels), _FeedForward(channels)

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.attn(self.norm1(features))
        return features + self.ffn(self.norm2(features))


class _Norm(nn.Module):
    """Layer normalisation over the channels of each pixel."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.LayerNorm(channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = _one_by_one(channels, 3 * channels)
        self.qkv_dwconv = _per_channel(3 * channels)
        self.project_out = _one_by_one(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        asked, keys, values = (
            part.unflatten(1, (len(self.temperature), -1)).flatten(3) for part in self.qkv_dwconv(self.qkv(features)).chunk(3, dim=1)
        )
        shares = F.normalize(asked, dim=-1) @ F.normalize(keys, dim=-1).transpose(2, 3) * self.temperature
        return self.project_out((shares.softmax(-1) @ values).reshape(features.shape))


class _FeedForward(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        hidden = int(channels * EXPANSION)
        self.project_in = _one_by_one(channels, 2 * hidden)
        self.dwconv = _per_channel(2 * hidden)
        self.project_out = _one_by_one(hidden, channels)

    def forward(self, features: Tensor) -> Tensor:
        gate, values = self.dwconv(self.project_in(features)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * values)


class _Embedding(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class _Down(nn.Module):
    """Half the side, twice the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features)


class _Up(nn.Module):
    """Twice the side, half the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))

    def forward(self, features: Tensor) -> Tensor:
        return self.body(features)


def _blocks(channels: int, heads: int, count: int) -> nn.Sequential:
    return nn.Sequential(*(_Block(channels, heads) for _ in range(count)))


def _one_by_one(channels: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, 1, bias=False)


def _per_channel(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def _own_names(module: nn.Module, state: dict[str, Tensor], *_) -> None:
    """Makes of a published state one that loads strictly: without ``net.``, and without the convolutions that nothing uses."""
    for name in list(state):
        value = state.pop(name)
        own = name.removeprefix("net.")
        if not own.startswith(("chnl_reduce", "reduce_noise_channel_")):
            state[own] = value
