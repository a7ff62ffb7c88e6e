"""Image-quality metrics: one batched suite with explicit variants, pyiqa's among them (``ir-env[metrics]``), and a user's own.

>>> suite = MetricSuite(["psnry", "ssim_ycbcr"])
>>> suite.score([restored], [clean])       # float32 (1, 2)

The default suite needs no download. A metric whose weights are absent raises :class:`MetricWeightsMissing`; none is ever silently
dropped or replaced. A metric that has no value on an image (NIQE's covariance of a flat image cannot be inverted, PIQE divides by the
brightest pixel) is NaN in :meth:`MetricSuite.score`; where a number must be had, in rewards and in tables, :meth:`MetricSuite.defined` puts
the worst value of the metric's scale in its place and counts it, so that no policy gains by making such an image.

docs/add_a_metric.md adds one of your own.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from ir_env.luma import luma
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.extras import need

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_METRICS",
    "METRICS",
    "NO_REFERENCE_METRICS",
    "Metric",
    "MetricError",
    "MetricSuite",
    "MetricWeightsMissing",
    "find_metric",
]

DEFAULT_METRICS = ("psnr", "psnry", "ssim_ycbcr", "piqe")
"""Of both kinds, none of which needs weights; the published tables add lpips, maniqa, clipiqa and musiq, which do."""
NO_REFERENCE_METRICS = ("niqe", "piqe")
"""No-reference metrics that need no download, for photographs without ground truth."""


@dataclass(frozen=True)
class Metric:
    """What a metric is, without its weights; with a ``function``, one of a user's own."""

    name: str
    higher_is_better: bool
    needs_reference: bool
    description: str
    offline: bool = False
    """True if it needs no downloaded weights."""
    min_side: int = 16
    """The shortest side, in pixels, that it is defined on. No-reference metrics get a smaller image mirrored at its edges until it fits."""
    worst: float = 0.0
    """What an image counts for on which it has no value: the bad end of its scale."""
    convention: str = ""
    """Which of several customary variants it is, for the lines beneath tables."""
    function: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None
    """(images, references) -> scores: float32 (N, 3, H, W) in [0, 1], RGB, twice (no references: None) -> (N,). Importable by name, so that
    other processes can use it. None: pyiqa's metric of that name, or one of this module."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", True, True, "peak signal-to-noise ratio over RGB, in dB, at most 80", offline=True, convention="RGB"),
        Metric(
            "psnry",
            True,
            True,
            "peak signal-to-noise ratio over Y of YCbCr (BT.601, 16 to 235), in dB, at most 80, as BasicSR, OPERA and 4KAgent give it",
            offline=True,
            convention="Y of YCbCr, BT.601",
        ),
        Metric(
            "ssim_ycbcr",
            True,
            True,
            "structural similarity (Wang et al. 2004) on Y of YCbCr (BT.601, 16 to 235), as in OPERA's tables",
            offline=True,
            convention="Y of YCbCr, BT.601",
        ),
        Metric(
            "ssim_yiq",
            True,
            True,
            "structural similarity (Wang et al. 2004) on full-range Y of YIQ, as in AgenticIR's tables (pyiqa's `ssim`)",
            offline=True,
            convention="full-range Y of YIQ",
        ),
        Metric("ms_ssim", True, True, "multi-scale SSIM on Y of YIQ", offline=True, min_side=176),
        Metric("fsim", True, True, "feature similarity (Zhang et al. 2011)", offline=True, min_side=32),
        Metric("vif", True, True, "visual information fidelity (Sheikh and Bovik 2006)", offline=True, min_side=48),
        Metric("gmsd", False, True, "gradient magnitude similarity deviation (Xue et al. 2014)", offline=True, worst=0.5),
        Metric("nlpd", False, True, "normalised Laplacian pyramid distance (Laparra et al. 2016)", offline=True, min_side=64, worst=1.0),
        Metric("vsi", True, True, "visual saliency-induced index (Zhang et al. 2014)", offline=True, min_side=32),
        Metric(
            "niqe",
            False,
            False,
            "natural image quality evaluator, BasicSR's parameters (Mittal et al. 2013)",
            offline=True,
            min_side=192,
            worst=25.0,
            convention="basicsr's parameters",
        ),
        Metric(
            "piqe",
            False,
            False,
            "perception-based image quality evaluator, 0 to 100 (Venkatanath et al. 2015)",
            offline=True,
            min_side=32,
            worst=100.0,
        ),
        Metric("lpips", False, True, "LPIPS, AlexNet v0.1 (Zhang et al. 2018)", min_side=32, worst=1.0),
        Metric("dists", False, True, "DISTS (Ding et al. 2020)", min_side=32, worst=1.0),
        Metric("maniqa", True, False, "MANIQA trained on KonIQ (Yang et al. 2022)", min_side=224),
        Metric("clipiqa", True, False, "CLIP-IQA, ResNet-50, zero-shot (Wang et al. 2023)", min_side=32),
        Metric("clipiqa+", True, False, "CLIP-IQA with learned prompts", min_side=32),
        Metric("musiq", True, False, "MUSIQ trained on KonIQ (Ke et al. 2021)", min_side=32),
    )
}
"""The one place where a metric is added: a line here, with pyiqa's name, or with a function of your own."""


class MetricError(IrEnvError):
    """A metric that cannot score what it was given."""


class MetricWeightsMissing(IrEnvError):
    """A metric's weights are neither on disk nor to be downloaded; names the file, where it is looked for, and its address."""

    def __init__(self, metric: str, file: str, url: str, cause: str):
        super().__init__(
            f"metric {metric!r} needs weights that are not there: put {file} in place (from {url}), or choose metrics that need none: "
            f"{', '.join(name for name, known in METRICS.items() if known.offline)}. The download failed: {cause}"
        )


def find_metric(metric: str | Metric) -> Metric:
    """A metric by its name, or by its place (``package.module:METRIC``), or as it is.

    Raises:
        UnknownNameError: no metric of that name.
        MetricError: nothing at that place.
    """
    if isinstance(metric, Metric):
        return metric
    if metric in METRICS:
        return METRICS[metric]
    if metric == "ssim":
        raise MetricError("there are two customs of SSIM, which differ by up to .05: write ssim_ycbcr (OPERA's) or ssim_yiq (AgenticIR's)")
    module, colon, attribute = str(metric).partition(":")
    if not colon:
        raise UnknownNameError("metric", metric, METRICS, "One of your own is package.module:METRIC, a Metric with a function.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise MetricError(f"metric {metric!r}: {error}") from error
    if not isinstance(found, Metric):
        raise MetricError(f"metric {metric!r}: is a {type(found).__name__}; it must be an ir_env.metrics.Metric with a function")
    return found


class MetricSuite:
    """Scores images with a fixed list of metrics.

    Args:
        names: names of :data:`METRICS` and metrics of one's own (:func:`find_metric`), in the order of the metric vector.
        device: where they run.

    Raises:
        UnknownNameError: no metric of that name.
        MetricWeightsMissing: at the first :meth:`score`, for a metric whose weights are absent.
    """

    def __init__(self, names: Sequence[str | Metric] = DEFAULT_METRICS, device: str = "cpu"):
        if not names or isinstance(names, str):
            raise MetricError(f"a suite needs a list of metric names, not {names!r}; the default is {list(DEFAULT_METRICS)}")
        self.metrics = tuple(find_metric(name) for name in names)
        if len(set(self.names)) != len(self.names):
            raise MetricError(f"a metric stands twice in {list(self.names)}")
        self.device = device
        self.undefined: Counter[str] = Counter()
        """Metric -> images on which it had no value and counted as its worst, in :meth:`defined`."""
        self._scorers: dict[str, Callable] = {}

    def __reduce__(self):
        return MetricSuite, ([metric.name if METRICS.get(metric.name) is metric else metric for metric in self.metrics], self.device)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(metric.name for metric in self.metrics)

    @property
    def signs(self) -> np.ndarray:
        """float32 (K,): +1 where higher is better, -1 where lower is."""
        return np.array([1.0 if metric.higher_is_better else -1.0 for metric in self.metrics], np.float32)

    @property
    def needs_reference(self) -> bool:
        return any(metric.needs_reference for metric in self.metrics)

    def score(self, images: Sequence[np.ndarray], references: Sequence[np.ndarray | None]) -> np.ndarray:
        """Metric vectors of images, one batch per shape.

        Args:
            images: uint8 or float32-in-[0, 1] (H, W, 3), RGB.
            references: the clean images. An image of another size than its reference's but the same proportions is brought to that size
                (bicubic, antialiased) before every metric, those without reference too, as in AgenticIR's and OPERA's evaluation: what a
                low-resolution image lacks is missing in every score, whatever the scale of the tools.

        Returns:
            float32 (N, K), in the metrics' own units and orientation; NaN where a metric has no value on an image.

        Raises:
            MetricError: an image is too small, has no reference, or one of other proportions.
        """
        import torch

        groups: dict[tuple, list[int]] = defaultdict(list)
        for index, (image, reference) in enumerate(zip(images, references, strict=True)):
            self._check(image, reference)
            of_reference = (None, None) if reference is None else (reference.shape, reference.dtype)
            groups[(image.shape, image.dtype, *of_reference)].append(index)
        scores = np.empty((len(images), len(self.metrics)), np.float32)
        for (shape, _, reference_shape, _), indices in groups.items():
            batch = _to_tensor([images[i] for i in indices], self.device)
            # a group's images all have a reference, or none has
            clean = [each for i in indices if (each := references[i]) is not None]
            reference = _to_references(clean, self.device) if clean else None
            if reference_shape is not None and reference_shape != shape:
                batch = _resize(batch, reference_shape)
            with torch.inference_mode():
                for column, metric in enumerate(self.metrics):
                    given = (batch, reference) if metric.needs_reference else (_mirrored(batch, metric.min_side), None)
                    values = torch.as_tensor(self._scorer(metric)(*given))
                    scores[indices, column] = values.reshape(-1).float().cpu().numpy()
        scores[~np.isfinite(scores)] = np.nan
        return scores

    def defined(self, scores: np.ndarray) -> np.ndarray:
        """Metric vectors (..., K) with :attr:`Metric.worst` in place of NaN; what was replaced is counted in :attr:`undefined`."""
        missing = np.isnan(scores)
        if not missing.any():
            return scores
        for metric, count in zip(self.metrics, missing.reshape(-1, len(self.metrics)).sum(0), strict=True):
            if count:
                self.undefined[metric.name] += int(count)
        return np.where(missing, np.array([metric.worst for metric in self.metrics], np.float32), scores)

    def _check(self, image: np.ndarray, reference: np.ndarray | None) -> None:
        for metric in self.metrics:
            if not metric.needs_reference:
                continue
            if reference is None:
                raise MetricError(
                    f"metric {metric.name!r} compares with a clean reference and there is none; give one, or use {NO_REFERENCE_METRICS}"
                )
            if min(reference.shape[:2]) < metric.min_side:
                raise MetricError(
                    f"metric {metric.name!r} needs sides of at least {metric.min_side} px; this image is "
                    f"{reference.shape[1]}x{reference.shape[0]}"
                )
        if reference is not None and not _same_proportions(image, reference):
            raise MetricError(
                f"an image of {image.shape[1]}x{image.shape[0]} cannot be compared with a reference of "
                f"{reference.shape[1]}x{reference.shape[0]}: the proportions differ"
            )

    def _scorer(self, metric: Metric) -> Callable:
        if metric.name not in self._scorers:
            self._scorers[metric.name] = metric.function or _OWN.get(metric.name) or _create(metric.name, self.device)
        return self._scorers[metric.name]

    def describe(self) -> str:
        """A line for beneath a table: the metrics, their direction and custom, the version that computed them, and what had no value."""
        told = ", ".join(
            f"{m.name}{'↑' if m.higher_is_better else '↓'}{f' ({m.convention})' if m.convention else ''}" for m in self.metrics
        )
        had_none = "".join(f"; {name} had no value on {count} images, which count as its worst" for name, count in self.undefined.items())
        return f"{told} ({self._versions()}){had_none}"

    def _versions(self) -> str:
        """Of what computes them."""
        from ir_env import __version__

        named = f"ir_env {__version__}"
        theirs = any(metric.function is None and metric.name not in _OWN for metric in self.metrics)
        return f"{named}, pyiqa {version('pyiqa')}" if theirs else named


def _to_tensor(images: list[np.ndarray], device: str) -> torch.Tensor:
    """float32 (N, 3, H, W) in [0, 1]."""
    import torch

    stacked = np.stack(images)
    tensor = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float()
    return tensor / 255.0 if stacked.dtype == np.uint8 else tensor


def _to_references(images: list[np.ndarray], device: str) -> torch.Tensor:
    """The same of references; one that all images share, as those of a group do, is there once and shown to each."""
    shared = all(image is images[0] for image in images)
    return _to_tensor(images[:1], device).expand(len(images), -1, -1, -1) if shared else _to_tensor(images, device)


def _same_proportions(image: np.ndarray, reference: np.ndarray) -> bool:
    """Whether one is the other at another scale. The shorter side may be a pixel off what the longer one says, as rounding leaves it; of an
    enlarged image four, which are one of the low-resolution image that it comes from."""
    smaller, larger = sorted((image.shape[:2], reference.shape[:2]))
    long = int(np.argmax(larger))
    due = larger[1 - long] * smaller[long] / larger[long]
    return abs(smaller[1 - long] - due) < (1 if image.shape[:2] == smaller else 4)


def _resize(batch: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """MATLAB-style bicubic (a = -0.5, antialiased) to a reference's size."""
    import torch.nn.functional as F

    return F.interpolate(batch, shape[:2], mode="bicubic", antialias=True).clamp(0, 1)


def _mirrored(batch: torch.Tensor, side: int) -> torch.Tensor:
    """Continued below and to the right by mirrored copies until both sides reach ``side``."""
    import torch

    for dim in (2, 3):
        length = batch.shape[dim]
        if length < side:
            there_and_back = torch.cat([torch.arange(length), torch.arange(length - 1, -1, -1)]).to(batch.device)
            batch = batch.index_select(dim, there_and_back.repeat(-(-side // (2 * length)))[:side])
    return batch


SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


def _ssim(custom: str, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Mean SSIM over the places where the whole window lies in the image, on Y rounded to 8 bits (K1 = .01, K2 = .03, L = 255); as in
    pyiqa, which the published tables were made with, places of opposite structure count 0 and not less.

    In double precision, since variances are differences of large numbers: in float32 flat images exceed 1 and scanned text is 5e-4 off.
    The window is applied as shifted sums along either side, which a CPU does ten times as fast as pyiqa's convolutions, to 1e-9. What is
    of the reference alone is computed once where all images share it.
    """
    import torch

    if references.stride(0) == 0:
        references = references[:1]
    x, y = ((luma(batch.double(), custom) * 255).round() for batch in (images, references))
    places = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    window = torch.exp(-places.square() / (2 * SSIM_SIGMA**2))
    window = (window / window.sum()).tolist()

    def blur(maps: torch.Tensor) -> torch.Tensor:
        for dim in (2, 3):
            length = maps.shape[dim] - SSIM_WINDOW + 1
            blurred = maps.narrow(dim, 0, length) * window[0]
            for shift, weight in enumerate(window[1:], start=1):
                blurred.add_(maps.narrow(dim, shift, length), alpha=weight)
            maps = blurred
        return maps

    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = ((2 * covariance + c2) / (variances + c2)).clamp(min=0)
    return (luminance * structure).mean((1, 2, 3)).clamp(max=1.0)


def _psnr(custom: str | None, images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Over RGB, or over a luma (not rounded), in dB; an error of nothing is one of 1e-8."""
    if custom:
        images, references = luma(images, custom), luma(references, custom)
    return -10 * ((images - references).square().mean((1, 2, 3)) + 1e-8).log10()


def _niqe(images: torch.Tensor, references: None = None) -> torch.Tensor:
    """BasicSR's NIQE on Y with its parameters (pyiqa's own are a download); NaN where it cannot be computed."""
    import torch

    from ir_env.niqe import niqe

    return torch.tensor([niqe(image) for image in (images * 255.0).round().permute(0, 2, 3, 1).cpu().numpy()])


def _piqe(images: torch.Tensor, references: None = None) -> torch.Tensor:
    """Image by image, so that no batch changes the last digits of one."""
    import torch

    from ir_env.piqe import piqe

    return torch.stack([piqe(image) for image in images])


def _each(metric: Callable) -> Callable:
    """A metric image by image: pyiqa's VIF lets one image of a batch spoil the others."""
    import torch

    def one_by_one(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        return torch.cat([metric(image[None], reference[None]).reshape(1) for image, reference in zip(images, references, strict=True)])

    return one_by_one


_OWN: dict[str, Callable] = {
    "psnr": partial(_psnr, None),
    "psnry": partial(_psnr, "ycbcr"),
    "ssim_ycbcr": partial(_ssim, "ycbcr"),
    "ssim_yiq": partial(_ssim, "yiq"),
    "niqe": _niqe,
    "piqe": _piqe,
}
"""Those that are computed here."""


def _create(name: str, device: str) -> Callable:
    """A pyiqa metric; a failed download of its weights becomes :class:`MetricWeightsMissing`."""
    need("pyiqa")
    import pyiqa
    import torch
    from pyiqa.utils import download_util

    wanted: list[tuple[str, str]] = []

    def remember(download):
        def wrapped(url, dst, *args, **kwargs):
            wanted.append((str(dst), str(url)))
            return download(url, dst, *args, **kwargs)

        return wrapped

    plain_hub, plain_pyiqa = torch.hub.download_url_to_file, download_util.download_url_to_file
    torch.hub.download_url_to_file, download_util.download_url_to_file = remember(plain_hub), remember(plain_pyiqa)
    try:
        metric = pyiqa.create_metric(name, device=torch.device(device))
    except Exception as error:
        if METRICS[name].offline or isinstance(error, ImportError):
            raise
        file, url = wanted[-1] if wanted else _hub_file(error)
        raise MetricWeightsMissing(name, file, url, f"{type(error).__name__}: {error}") from error
    else:
        if name == "vif":
            return _each(metric)
        return metric if METRICS[name].needs_reference else lambda images, references: metric(images)
    finally:
        torch.hub.download_url_to_file, download_util.download_url_to_file = plain_hub, plain_pyiqa


def _hub_file(error: BaseException) -> tuple[str, str]:
    """The file that a failed Hugging Face download was after: (where it is looked for, its address), read off the error's chain."""
    from huggingface_hub.constants import HF_HUB_CACHE

    chain: BaseException | None = error
    while chain is not None:
        for text in (str(chain), str(getattr(getattr(chain, "request", None), "url", ""))):
            found = re.search(r"https://\S+/resolve/[^/\s]+/[^\s'\")]+", text)
            if found:
                return f"{found[0].rsplit('/', 1)[1]} (in the Hugging Face cache {HF_HUB_CACHE})", found[0]
        chain = chain.__cause__ or chain.__context__
    return f"its weights in the Hugging Face cache {HF_HUB_CACHE}", "its hub repository"
