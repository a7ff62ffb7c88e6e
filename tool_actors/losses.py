"""The loss with which tools learn together: equations 2 to 11 of OPERA (arXiv 2605.22104).

Two of its five terms compare with the clean image through a network (VGG19, LPIPS), two judge the result alone (MUSIQ, CLIP-IQA). Their
weights are downloads. A term whose weights are absent is left out, and :attr:`RestorationLoss.absent` says why; if asked for, a
differentiable term that needs none takes its place: differences of neighbours that of VGG, SSIM that of LPIPS, PIQE
(:mod:`tool_actors.piqe_loss`) that of MUSIQ. CLIP-IQA has no such substitute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.extras import need
from tool_actors.piqe_loss import piqe_loss

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "MORE",
    "TARGETS",
    "RestorationLoss",
    "VGGLoss",
    "gamma",
    "gradient_loss",
    "l1_loss",
    "load_loss",
    "mse_loss",
    "schedule",
    "ssim_loss",
]

TARGETS = {"l1": 0.4, "vgg": 0.1, "lpips": 0.15, "musiq": 0.1, "clipiqa": 0.1}
"""Target weights of the terms (appendix D.2)."""
MORE = {"mse": 1.0}
"""Terms that are not the paper's, with a weight, for whoever asks for them: of the mean squared error PSNR is the logarithm."""
STAND_INS = {"vgg": "gradient", "lpips": "ssim", "musiq": "piqe"}
"""What takes the place, and the weight, of a term whose weights are absent."""
TRANSITION = 0.3
"""Share of the epochs over which the weights move from L1 alone to their targets."""

Term = Callable[["Tensor", "Tensor"], "Tensor"]
"""(restored, clean), float (B, 3, H, W) in [0, 1] -> a scalar, lower is better."""


# -- the schedule --------------------------------------------------------------------------------------------------------------------


def gamma(epoch: int, epochs: int) -> float:
    """The annealing factor (equation 3): rises from near 0 to 1 over the first T = floor(.3 E) epochs; 1 ever after, or if T is 0.

    Args:
        epoch: e, counted from 1.
        epochs: E.
    """
    transition = math.floor(TRANSITION * epochs)
    return 1.0 if epoch >= transition else 0.5 * (1 - math.cos(math.pi * epoch / transition))


def schedule(targets: Mapping[str, float], epoch: int, epochs: int) -> dict[str, float]:
    """The weight of each term in an epoch (equations 4 and 5): that of ``l1`` falls from 1, all others rise from 0."""
    factor = gamma(epoch, epochs)
    return {name: 1 - (1 - target) * factor if name == "l1" else target * factor for name, target in targets.items()}


class RestorationLoss:
    """A weighted sum of terms (equations 2 and 6), whose weights follow the schedule.

    Args:
        terms: by name.
        targets: weight of each term at the end of the transition; without some terms, the others keep theirs.
        absent: terms that belong here but have no weights on this machine: what was wrong.
    """

    def __init__(self, terms: Mapping[str, Term], targets: Mapping[str, float], absent: Mapping[str, str] | None = None):
        if set(terms) != set(targets):
            raise IrEnvError(f"a loss needs one weight per term: terms {sorted(terms)}, weights {sorted(targets)}")
        self.terms, self.targets, self.absent = dict(terms), dict(targets), dict(absent or {})

    def __call__(self, restored: Tensor, clean: Tensor, weights: Mapping[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        """The loss, and the value of each term before it is weighted.

        Args:
            restored, clean: float (B, 3, H, W) in [0, 1].
            weights: those of an epoch, see :func:`schedule`; the targets by default. Terms of weight 0 are not computed.
        """
        weights = self.targets if weights is None else weights
        values = {name: self.terms[name](restored, clean) for name, weight in weights.items() if weight}
        total = sum((weights[name] * value for name, value in values.items()), torch.zeros((), device=restored.device))
        return total, {name: value.item() for name, value in values.items()}

    def describe(self) -> str:
        """A line for beneath a table: the terms with their weights, and those left out."""
        told = " + ".join(f"{weight:g} {name}" for name, weight in self.targets.items())
        return told + (f"; left out, without their weights: {', '.join(self.absent)}" if self.absent else "")


def load_loss(device: str = "cpu", stand_ins: bool = True, wanted: Mapping[str, float] = TARGETS) -> RestorationLoss:
    """The loss of the paper with the terms whose weights are on this machine or can be downloaded.

    Args:
        device: of the networks.
        stand_ins: put a term that needs no weights in the place of one that is absent, see :data:`STAND_INS`.
        wanted: terms of :data:`TARGETS` and :data:`MORE` to use, with their target weights.
    """
    for name, target in wanted.items():
        if name not in _LOADERS:
            raise UnknownNameError("term of the loss", name, _LOADERS)
        if not 0 <= target < math.inf:
            raise IrEnvError(f"term {name} of the loss: its weight is a number from 0 on, not {target}")
    if not any(wanted.values()):
        raise IrEnvError("a loss without any weight teaches nothing: give one of its terms more than 0")
    terms, targets, absent = {}, {}, {}
    for name, target in wanted.items():
        used = name
        try:
            term = _LOADERS[name](device)
        except (OSError, RuntimeError, ImportError) as error:  # URLError is an OSError
            absent[name] = (
                f"the weights of {name} are not there and cannot be downloaded ({type(error).__name__}: {error}); "
                f"let this machine reach the network once, or put them where torchvision and pyiqa look for them: {torch.hub.get_dir()}"
            )
            if not stand_ins or name not in STAND_INS:
                continue
            used = STAND_INS[name]
            term = _WITHOUT_WEIGHTS[used]
        terms[used], targets[used] = term, target
    return RestorationLoss(terms, targets, absent)


# -- terms without weights -----------------------------------------------------------------------------------------------------------


def l1_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference (equation 7)."""
    return F.l1_loss(restored, clean)


def mse_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean squared difference."""
    return F.mse_loss(restored, clean)


def gradient_loss(restored: Tensor, clean: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute difference of the differences between neighbours along both sides, summed over scales halved by averaging: like the
    features of VGG's first layers it weighs edges and is blind to a shift in brightness."""
    total = restored.new_zeros(())
    for scale in range(scales):
        if scale:
            restored, clean = F.avg_pool2d(restored, 2), F.avg_pool2d(clean, 2)
        if min(restored.shape[-2:]) < 2:
            break
        for dim in (2, 3):
            total = total + l1_loss(restored.diff(dim=dim), clean.diff(dim=dim))
    return total


SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def ssim_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """1 - SSIM (Wang et al. 2004) on Y of YCbCr (BT.601, 16 to 235), over the places where the whole window lies in the image."""
    places = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-places.square() / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).to(restored)
    x, y = _luma(restored), _luma(clean)
    # variances are small differences of large numbers, so images are centred first: SSIM's window means are shifted back below
    shift = y.mean((2, 3), keepdim=True).detach()
    x, y = x - shift, y - shift
    maps = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    kernel = window.expand(maps.shape[1], 1, -1)
    maps = F.conv2d(F.conv2d(maps, kernel[:, :, None], groups=maps.shape[1]), kernel[..., None], groups=maps.shape[1])
    mean_x, mean_y, square_x, square_y, product = maps.chunk(5, dim=1)
    variances = square_x - mean_x**2 + square_y - mean_y**2
    covariance = product - mean_x * mean_y
    mean_x, mean_y = mean_x + shift, mean_y + shift
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return 1 - (luminance * (2 * covariance + c2) / (variances + c2)).mean()


def _luma(images: Tensor) -> Tensor:
    """Y of YCbCr, BT.601: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [16/255, 235/255]."""
    weights = torch.tensor([65.481, 128.553, 24.966]).to(images).view(1, 3, 1, 1) / 255
    return (images * weights).sum(1, keepdim=True) + 16 / 255


_WITHOUT_WEIGHTS: dict[str, Term] = {"gradient": gradient_loss, "ssim": ssim_loss, "piqe": piqe_loss}


# -- terms with weights --------------------------------------------------------------------------------------------------------------


class VGGLoss:
    """Mean absolute difference of features, summed over layers (equation 8).

    Args:
        features: VGG19's convolutional part, or its beginning: torchvision's ``vgg19().features``.
        layers: places of relu2_2, relu3_4 and relu4_4 in it.
    """

    LAYERS = (8, 17, 26)
    MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, features: nn.Sequential, layers: tuple[int, ...] = LAYERS):
        self.layers = layers
        self.features = features[: max(layers) + 1].eval().requires_grad_(False)
        for each in self.features:
            if hasattr(each, "inplace"):
                # a later layer would overwrite the features that are compared
                each.inplace = False

    def __call__(self, restored: Tensor, clean: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(value).to(restored).view(1, 3, 1, 1) for value in (self.MEAN, self.DEVIATION))
        x, y = (restored - mean) / deviation, (clean - mean) / deviation
        total = restored.new_zeros(())
        for place, layer in enumerate(self.features):
            x, y = layer(x), layer(y)
            if place in self.layers:
                total = total + l1_loss(x, y)
        return total


def _vgg(device: str) -> Term:
    from torchvision.models import VGG19_Weights, vgg19

    return VGGLoss(vgg19(weights=VGG19_Weights.IMAGENET1K_V1).features.to(device))


def _lpips(device: str) -> Term:
    """Equation 9; AlexNet v0.1, as in the tables."""
    metric = _metric("lpips", device)
    return lambda restored, clean: metric(restored, clean).mean()


def _musiq(device: str) -> Term:
    """1 - MUSIQ / 100 (equation 10)."""
    metric = _metric("musiq", device)
    return lambda restored, clean: 1 - metric(restored).mean() / 100


def _clipiqa(device: str) -> Term:
    """1 - CLIP-IQA (equation 11)."""
    metric = _metric("clipiqa", device)
    return lambda restored, clean: 1 - metric(restored).mean()


def _metric(name: str, device: str) -> nn.Module:
    need("pyiqa")
    import pyiqa

    return pyiqa.create_metric(name, as_loss=True, device=torch.device(device))


_LOADERS: dict[str, Callable[[str], Term]] = {
    "l1": lambda device: l1_loss,
    "vgg": _vgg,
    "lpips": _lpips,
    "musiq": _musiq,
    "clipiqa": _clipiqa,
    "mse": lambda device: mse_loss,
}
