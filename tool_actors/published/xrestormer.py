"""X-Restormer (Chen, Li, Pu, Liu, Zhou, Qiao and Dong, ECCV 2024): attention over channels and over overlapping windows in turn.

"A Comparative Study of Image Restoration Networks for General Backbone Network Design". One network of 26 million parameters,
released with weights for super-resolution (x4), denoising, deblurring, deraining and dehazing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.weight_files import UnsupportedCheckpointError

WINDOW = 8
"""Window side of the released networks; :func:`from_state` assumes it, because no shape shows it."""

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


def is_xrestormer(state: dict[str, Tensor]) -> bool:
    """Whether the names are an X-Restormer's: at each level a block with both kinds of attention."""
    marks = ("channel_attn.temperature", "spatial_attn.rel_pos_emb.rel_height", "channel_ffn.dwconv.weight", "spatial_ffn.dwconv.weight")
    needed = {f"{level}.0.{mark}" for level in LEVELS for mark in marks}
    return state.keys() >= needed | {"patch_embed.proj.weight", "reduce_chan_level3.weight", "output.weight"}


def from_state(state: dict[str, Tensor], scale: int = 1) -> XRestormer:
    """The network that a state dict belongs to, with its weights, in evaluation mode.

    Two arguments leave no trace in names and shapes. The window's side is taken to be 8, as in all released networks. The scale
    must be given: the released x4 network has the very names and shapes of the other four, which have scale 1.

    Args:
        state: names and tensors as published, without a prefix; it is copied.
        scale: output side over input side; 4 for the released super-resolution weights.

    Raises:
        UnsupportedCheckpointError: names or shapes are not those of any X-Restormer.
    """
    if not is_xrestormer(state):
        raise UnsupportedCheckpointError("the state dict is not an X-Restormer's: names are missing")
    try:
        network = XRestormer(**_arguments(state), scale=scale)
        network.load_state_dict(state)
    except (KeyError, IndexError, ValueError, ZeroDivisionError, RuntimeError) as error:
        details = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"the state dict is not an X-Restormer's: {details}") from error
    return network.eval()


def _arguments(state: dict[str, Tensor]) -> dict:
    """All arguments but the scale, from names and shapes."""

    def shapes(name: str) -> list[torch.Size]:
        return [state[f"{level}.0.{name}"].shape for level in LEVELS]

    def blocks(level: str) -> int:
        return len({name.split(".")[1] for name in state if name.startswith(f"{level}.")})

    dim, inputs = state["patch_embed.proj.weight"].shape[:2]
    positions = shapes("spatial_attn.rel_pos_emb.rel_height")
    dim_head = positions[0][1]
    # The hidden width is the rounded-down product with the factor. Any factor that gives the widest level's gives the others' too,
    # since their widths are its width divided by 2, 4 and 8; half a channel keeps away from rounding errors.
    width, hidden = shapes("channel_ffn.project_out.weight")[-1][:2]
    return {
        "inp_channels": inputs,
        "out_channels": len(state["output.weight"]),
        "dim": dim,
        "num_blocks": [blocks(level) for level in LEVELS],
        "num_refinement_blocks": blocks("refinement"),
        "channel_heads": [shape[0] for shape in shapes("channel_attn.temperature")],
        "spatial_heads": [shape[1] // dim_head for shape in shapes("spatial_attn.project_out.weight")],
        "overlap_ratio": [((size + 1) / 2 - WINDOW) / WINDOW for size, _ in positions],
        "window_size": WINDOW,
        "spatial_dim_head": dim_head,
        "ffn_expansion_factor": (hidden + 0.5) / width,
        "bias": "output.bias" in state,
        "LayerNorm_type": "WithBias" if "latent.0.norm1.body.bias" in state else "BiasFree",
    }


class XRestormer(nn.Module):
    """A U-Net of transformer blocks on four levels; with the released arguments, which are the defaults, 26 million parameters.

    Takes (B, inp_channels, H, W), nominally in [0, 1], of any height and width; gives (B, out_channels, scale * H, scale * W),
    not clamped. For a scale above 1 the image is enlarged bilinearly first, and the network works at the larger size.

    Args:
        inp_channels, out_channels: must be equal or broadcast, for the input is added to the output.
        dim: channels of the first level; each level below has twice as many, and the last decoder too.
        num_blocks: blocks on each of the four levels; those above the lowest have them on the way down and on the way up.
        num_refinement_blocks: further blocks at full size, after the decoder.
        channel_heads, spatial_heads: attention heads on each level.
        overlap_ratio: by what part of its side a window is enlarged, on each level, to give keys and values; an even number of pixels.
        window_size: side of the windows that queries come from.
        spatial_dim_head: channels per head of the spatial attention.
        bias: whether convolutions (but the first and those that change the size) have biases.
        ffn_expansion_factor: hidden channels of the feed forward over its channels.
        LayerNorm_type: `WithBias` or `BiasFree`.
        scale: output side over input side, 1 or 4 in the released networks; it has no weights.

    Attributes:
        scale: as given.
        multiple: height and width are extended by reflection to multiples of this, and the output is cut again.
    """

    def __init__(
        self,
        inp_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: Sequence[int] = (2, 4, 4, 4),
        num_refinement_blocks: int = 4,
        channel_heads: Sequence[int] = (1, 2, 4, 8),
        spatial_heads: Sequence[int] = (1, 2, 4, 8),
        overlap_ratio: Sequence[float] = (0.5, 0.5, 0.5, 0.5),
        window_size: int = WINDOW,
        spatial_dim_head: int = 16,
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        LayerNorm_type: str = "WithBias",
        scale: int = 1,
    ):
        super().__init__()
        lowest = 8 * window_size
        self.scale, self.multiple = scale, lowest // gcd(lowest, scale)

        def blocks(level: int, width: int, count: int) -> nn.Sequential:
            span = window_size + int(window_size * overlap_ratio[level])
            return nn.Sequential(
                *(
                    _Block(
                        width,
                        channel=_ChannelAttention(width, channel_heads[level], bias),
                        spatial=_WindowAttention(width, spatial_heads[level], spatial_dim_head, window_size, span, bias),
                        hidden=int(width * ffn_expansion_factor),
                        bias=bias,
                        centred=LayerNorm_type != "BiasFree",
                    )
                    for _ in range(count)
                )
            )

        self.patch_embed = _named(proj=nn.Conv2d(inp_channels, dim, 3, padding=1, bias=False))
        self.encoder_level1 = blocks(0, dim, num_blocks[0])
        self.down1_2 = _down(dim)
        self.encoder_level2 = blocks(1, 2 * dim, num_blocks[1])
        self.down2_3 = _down(2 * dim)
        self.encoder_level3 = blocks(2, 4 * dim, num_blocks[2])
        self.down3_4 = _down(4 * dim)
        self.latent = blocks(3, 8 * dim, num_blocks[3])
        self.up4_3 = _up(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = blocks(2, 4 * dim, num_blocks[2])
        self.up3_2 = _up(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = blocks(1, 2 * dim, num_blocks[1])
        self.up2_1 = _up(2 * dim)
        self.decoder_level1 = blocks(0, 2 * dim, num_blocks[0])
        self.refinement = blocks(0, 2 * dim, num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        height, width = (self.scale * size for size in images.shape[-2:])
        images = _extend(images, self.multiple)
        if self.scale > 1:
            images = F.interpolate(images, scale_factor=self.scale, mode="bilinear", align_corners=False)
        first = self.encoder_level1(self.patch_embed(images))
        second = self.encoder_level2(self.down1_2(first))
        third = self.encoder_level3(self.down2_3(second))
        features = self.up4_3(self.latent(self.down3_4(third)))
        features = self.decoder_level3(self.reduce_chan_level3(torch.cat([features, third], dim=1)))
        features = self.decoder_level2(self.reduce_chan_level2(torch.cat([self.up3_2(features), second], dim=1)))
        features = self.decoder_level1(torch.cat([self.up2_1(features), first], dim=1))
        return (self.output(self.refinement(features)) + images)[..., :height, :width]


def _extend(images: Tensor, multiple: int) -> Tensor:
    """Reflects at the lower and right border until the sides are multiples, more than once where an image is too small for that."""
    for axis in (-2, -1):
        size = images.shape[axis]
        if size % multiple:
            period = 2 * size - 2
            steps = torch.arange(size + -size % multiple, device=images.device) % max(period, 1)
            images = images.index_select(axis, torch.minimum(steps, period - steps))
    return images


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _down(width: int) -> nn.Sequential:
    return _named(body=nn.Sequential(nn.Conv2d(width, width // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)))


def _up(width: int) -> nn.Sequential:
    return _named(body=nn.Sequential(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.PixelShuffle(2)))


class _Block(nn.Module):
    """Channel attention, feed forward, window attention, feed forward; each after a layer norm and added to what it came from."""

    def __init__(self, width: int, channel: nn.Module, spatial: nn.Module, hidden: int, bias: bool, centred: bool):
        super().__init__()
        self.spatial_attn, self.channel_attn = spatial, channel
        for number in (1, 2, 3, 4):
            self.add_module(f"norm{number}", _LayerNorm(width, centred))
        self.channel_ffn, self.spatial_ffn = _FeedForward(width, hidden, bias), _FeedForward(width, hidden, bias)

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.channel_attn(self.norm1(features))
        features = features + self.channel_ffn(self.norm2(features))
        features = features + self.spatial_attn(self.norm3(features))
        return features + self.spatial_ffn(self.norm4(features))


class _LayerNorm(nn.Module):
    """Normalizes each pixel's channels; (B, C, H, W) in and out."""

    def __init__(self, width: int, centred: bool):
        super().__init__()
        self.centred, self.body = centred, nn.LayerNorm(width, bias=centred)

    def forward(self, features: Tensor) -> Tensor:
        if self.centred:
            return self.body(features.movedim(1, -1)).movedim(-1, 1)
        # Without a bias Restormer does not subtract the mean either; nn.LayerNorm always does.
        variance = features.var(1, keepdim=True, correction=0)
        return features * torch.rsqrt(variance + self.body.eps) * self.body.weight[:, None, None]


class _FeedForward(nn.Module):
    """Restormer's gated feed forward: one half of the hidden channels, through a GELU, weighs the other."""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.project_in = nn.Conv2d(width, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, width, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        gate, content = self.dwconv(self.project_in(features)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * content)


class _ChannelAttention(nn.Module):
    """Restormer's transposed attention: channels attend to channels by their cosine over the whole image."""

    def __init__(self, width: int, heads: int, bias: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share {width} channels evenly")
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width, bias=bias)
        self.project_out = nn.Conv2d(width, width, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        by_head = self.qkv_dwconv(self.qkv(features)).flatten(2).unflatten(1, (3, len(self.temperature), -1))
        queries, keys, values = by_head.unbind(1)  # each (B, heads, channels, pixels)
        cosines = F.normalize(queries, dim=-1) @ F.normalize(keys, dim=-1).mT
        attended = (cosines * self.temperature).softmax(dim=-1) @ values
        return self.project_out(attended.reshape(features.shape))


class _WindowAttention(nn.Module):
    """HAT's overlapping cross-attention: a window's pixels attend to those of a larger window around it.

    Beyond the image's border keys and values are zero, and yet take part.

    Args:
        side: of the windows, in pixels.
        span: side of the larger windows.
    """

    def __init__(self, width: int, heads: int, channels: int, side: int, span: int, bias: bool):
        super().__init__()
        if span < side or (span - side) % 2:
            raise ValueError(f"a window of side {span} does not lie evenly around one of side {side}")
        self.heads, self.channels, self.side, self.span = heads, channels, side, span
        self.qkv = nn.Conv2d(width, 3 * heads * channels, 1, bias=bias)
        self.project_out = nn.Conv2d(heads * channels, width, 1, bias=bias)
        self.rel_pos_emb = _RelativePosition(side, span, channels)

    def forward(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        rows, columns, side = height // self.side, width // self.side, self.side
        queries, keys, values = self.qkv(features).chunk(3, dim=1)
        queries = queries.reshape(batch, self.heads, self.channels, rows, side, columns, side)
        queries = queries.permute(0, 3, 5, 1, 4, 6, 2).flatten(0, 2) * self.channels**-0.5  # (windows, heads, side, side, channels)
        attended = F.scaled_dot_product_attention(
            queries.flatten(2, 3), self._larger(keys), self._larger(values), attn_mask=self.rel_pos_emb(queries), scale=1.0
        )
        attended = attended.reshape(batch, rows, columns, self.heads, side, side, self.channels)
        return self.project_out(attended.permute(0, 3, 6, 1, 4, 2, 5).reshape(batch, -1, height, width))

    def _larger(self, features: Tensor) -> Tensor:
        """The pixels of the larger windows, (windows, heads, span * span, channels)."""
        pixels = F.unfold(features, self.span, stride=self.side, padding=(self.span - self.side) // 2)
        return pixels.unflatten(1, (self.heads, self.channels, -1)).permute(0, 4, 1, 3, 2).flatten(0, 1)


class _RelativePosition(nn.Module):
    """How well a query fits a distance in rows and one in columns; the sum of both is added to the attention's logits."""

    def __init__(self, side: int, span: int, channels: int):
        super().__init__()
        self.rel_height = nn.Parameter(torch.randn(2 * span - 1, channels) * channels**-0.5)
        self.rel_width = nn.Parameter(torch.randn(2 * span - 1, channels) * channels**-0.5)
        distances = torch.arange(span) - torch.arange(side)[:, None] + span - 1
        self.register_buffer("distances", distances, persistent=False)

    def forward(self, queries: Tensor) -> Tensor:
        """From (windows, heads, side, side, channels) to (windows, heads, side * side, span * span)."""
        down = torch.einsum("nhyxc,ykc->nhyxk", queries, self.rel_height[self.distances])
        across = torch.einsum("nhyxc,xkc->nhyxk", queries, self.rel_width[self.distances])
        return (down[..., :, None] + across[..., None, :]).flatten(4).flatten(2, 3)
