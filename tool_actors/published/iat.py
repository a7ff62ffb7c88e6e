"""The Illumination Adaptive Transformer (Cui, Li, Gu, Su, Gao, Jiang, Qiao and Harada, BMVC 2022): low light and wrong exposure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tool_actors.learned import published
from tool_actors.toolbox import Deferred


def tools() -> list[Deferred]:
    # gamma and colours are of the whole image, so no tiles
    return [published(f"iat.{name}", "brighten", IAT, f"published/iat_{name}.safetensors", tile=None) for name in ("lol_v1", "exposure")]


class IAT(nn.Module):
    """A pixel-wise gain and offset, then one colour matrix and one gamma for the image; 91,000 parameters.

    (B, 3, H, W) in [0, 1] to the same. Dropout of whole paths belongs to training and is left out.
    """

    def __init__(self):
        super().__init__()
        self.local_net = _Local()
        self.global_net = _Global()

    def forward(self, images: Tensor) -> Tensor:
        gain, offset = self.local_net(images)
        gamma, colour = self.global_net(images)
        mixed = torch.einsum("bij,bjhw->bihw", colour, images * gain + offset)
        # above 0, where the gradient of a power is finite
        return mixed.clamp(1e-8, 1) ** gamma[:, None, None, None]


class _Local(nn.Module):
    """Images (B, 3, H, W) to a gain of at least 0 and an offset in (-1, 1), both of the images' shape."""

    def __init__(self, width: int = 16, blocks: int = 3):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.mul_blocks = nn.Sequential(*[_Block(width) for _ in range(blocks)])
        self.add_blocks = nn.Sequential(*[_Block(width) for _ in range(blocks)])
        self.mul_end = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1), nn.ReLU())
        self.add_end = nn.Sequential(nn.Conv2d(width, 3, 3, padding=1), nn.Tanh())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first = F.leaky_relu(self.conv1(images), 0.2)
        return self.mul_end(self.mul_blocks(first) + first), self.add_end(self.add_blocks(first) + first)


class _Block(nn.Module):
    """A transformer's block with convolutions for attention and a colour matrix for the norm."""

    def __init__(self, width: int):
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = _ColourNorm(width), _ColourNorm(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = _mlp(width, partial(nn.Conv2d, kernel_size=1))
        self.gamma_1 = nn.Parameter(torch.full((1, width, 1, 1), 1e-4))
        self.gamma_2 = nn.Parameter(torch.full((1, width, 1, 1), 1e-4))

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.pos_embed(features)
        features = features + self.gamma_1 * self.conv2(self.attn(self.conv1(self.norm1(features))))
        return features + self.gamma_2 * self.mlp(self.norm2(features))


class _ColourNorm(nn.Module):
    """alpha * (color @ x) + beta at every pixel, which is a 1 x 1 convolution; takes no statistics."""

    def __init__(self, width: int):
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, width)), nn.Parameter(torch.zeros(1, 1, width))
        self.color = nn.Parameter(torch.eye(width))

    def forward(self, features: Tensor) -> Tensor:
        weight = self.alpha.reshape(-1, 1) * self.color
        return F.conv2d(features, weight[:, :, None, None], self.beta.flatten())


class _Global(nn.Module):
    """Images (B, 3, H, W) to gamma (B,) and colour matrices (B, 3, 3): one number from each of ten learned queries."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.gamma_base, self.color_base = nn.Parameter(torch.ones(1)), nn.Parameter(torch.eye(3))
        self.conv_large = _Embedding(width)
        self.generator = _Queries(width)
        self.gamma_linear, self.color_linear = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.generator(self.conv_large(images))
        gamma = self.gamma_linear(answers[:, 0]) + self.gamma_base
        colour = self.color_linear(answers[:, 1:]).reshape(-1, 3, 3) + self.color_base
        return gamma[:, 0], colour


class _Embedding(nn.Module):
    """Images to features of a quarter of the side."""

    def __init__(self, width: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(3, width // 2, 3, stride=2, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images)


class _Queries(nn.Module):
    """Features (B, C, h, w) to the queries' answers (B, 10, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.pos_embed = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _QueryAttention(width)
        self.mlp = _mlp(width, nn.Linear)

    def forward(self, features: Tensor) -> Tensor:
        tokens = (features + self.pos_embed(features)).flatten(2).transpose(1, 2)
        answers = self.attn(self.norm1(tokens))
        return answers + self.mlp(self.norm2(answers))


class _QueryAttention(nn.Module):
    """Learned queries that look at tokens (B, N, C) with four heads; (B, 10, C)."""

    def __init__(self, width: int, heads: int = 4, queries: int = 10):
        super().__init__()
        self.heads = heads
        self.q = nn.Parameter(torch.ones(1, queries, width))
        self.k, self.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k(tokens), self.v(tokens)))
        seen = F.scaled_dot_product_attention(q.expand(len(tokens), -1, -1, -1), k, v)
        return self.proj(seen.transpose(1, 2).flatten(2))


def _mlp(width: int, layer: Callable[[int, int], nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(fc1=layer(width, 4 * width), act=nn.GELU(), fc2=layer(4 * width, width)))
