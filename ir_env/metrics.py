"""Image-quality metrics: one batched suite over pyiqa, with explicit variants.

>>> suite = MetricSuite(["psnry", "ssim"])
>>> suite.score([restored], [clean])       # float32 (1, 2)

The default suite needs no download. A metric whose weights are absent raises :class:`MetricWeightsMissing`; none is ever silently
dropped or replaced.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tool_actors.errors import IrEnvError, UnknownNameError

if TYPE_CHECKING:
    import torch

DEFAULT_METRICS = ("psnry", "ssim", "gmsd")
"""Full-reference metrics that need no weights; the published tables add lpips, maniqa, clipiqa and musiq, which do."""
NO_REFERENCE_METRICS = ("niqe", "piqe")
"""No-reference metrics that need no download, for photographs without ground truth."""


@dataclass(frozen=True)
class Metric:
    """What a metric is, without its weights."""

    name: str
    higher_is_better: bool
    needs_reference: bool
    description: str
    offline: bool = False
    """True if it needs no downloaded weights."""
    min_side: int = 16
    """The shortest side it is defined on."""


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("psnr", True, True, "peak signal-to-noise ratio over RGB, in dB, at most 80", offline=True),
        Metric("psnry", True, True, "peak signal-to-noise ratio over Y of YCbCr, in dB, at most 80", offline=True),
        Metric("ssim", True, True, "structural similarity on Y (Wang et al. 2004)", offline=True),
        Metric("ms_ssim", True, True, "multi-scale SSIM on Y", offline=True, min_side=176),
        Metric("fsim", True, True, "feature similarity (Zhang et al. 2011)", offline=True, min_side=32),
        Metric("vif", True, True, "visual information fidelity (Sheikh and Bovik 2006)", offline=True, min_side=48),
        Metric("gmsd", False, True, "gradient magnitude similarity deviation (Xue et al. 2014)", offline=True),
        Metric("nlpd", False, True, "normalised Laplacian pyramid distance (Laparra et al. 2016)", offline=True, min_side=64),
        Metric("vsi", True, True, "visual saliency-induced index (Zhang et al. 2014)", offline=True, min_side=32),
        Metric(
            "niqe", False, False, "natural image quality evaluator, BasicSR's parameters (Mittal et al. 2013)", offline=True, min_side=192
        ),
        Metric("piqe", False, False, "perception-based image quality evaluator (Venkatanath et al. 2015)", offline=True, min_side=32),
        Metric("lpips", False, True, "LPIPS, AlexNet v0.1 (Zhang et al. 2018)", min_side=32),
        Metric("dists", False, True, "DISTS (Ding et al. 2020)", min_side=32),
        Metric("maniqa", True, False, "MANIQA trained on KonIQ (Yang et al. 2022)", min_side=224),
        Metric("clipiqa", True, False, "CLIP-IQA, ResNet-50, zero-shot (Wang et al. 2023)", min_side=32),
        Metric("clipiqa+", True, False, "CLIP-IQA with learned prompts", min_side=32),
        Metric("musiq", True, False, "MUSIQ trained on KonIQ (Ke et al. 2021)", min_side=32),
    )
}


class MetricError(IrEnvError):
    """A metric that cannot score what it was given."""


class MetricWeightsMissing(IrEnvError):
    """A metric's weights are neither on disk nor to be downloaded; names the file, where it is looked for, and its address."""

    def __init__(self, metric: str, file: str, url: str, cause: str):
        super().__init__(
            f"metric {metric!r} needs weights that are not there: put {file} in place (from {url}), or choose metrics that need none: "
            f"{', '.join(name for name, known in METRICS.items() if known.offline)}. The download failed: {cause}"
        )


def find_metric(name: str) -> Metric:
    """The metric of that name; raises :class:`UnknownNameError`."""
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]


class MetricSuite:
    """Scores images with a fixed list of metrics.

    Args:
        names: names of :data:`METRICS`, in the order of the metric vector.
        device: where they run.

    Raises:
        UnknownNameError: no metric of that name.
        MetricWeightsMissing: at the first :meth:`score`, for a metric whose weights are absent.
    """

    def __init__(self, names: Sequence[str] = DEFAULT_METRICS, device: str = "cpu"):
        if not names or isinstance(names, str):
            raise MetricError(f"a suite needs a list of metric names, not {names!r}; the default is {list(DEFAULT_METRICS)}")
        self.metrics = tuple(find_metric(name) for name in names)
        if len(set(names)) != len(names):
            raise MetricError(f"a metric stands twice in {list(names)}")
        self.device = device
        self._scorers: dict[str, Callable] = {}

    def __reduce__(self):
        return MetricSuite, (list(self.names), self.device)

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
            references: the clean images; an image of a quarter of its reference's size is first enlarged x4 (bicubic), as in AgenticIR's
                and OPERA's evaluation.

        Returns:
            float32 (N, K), in the metrics' own units and orientation.

        Raises:
            MetricError: an image is too small, has no reference, or one of another size.
        """
        import torch

        groups: dict[tuple, list[int]] = defaultdict(list)
        for index, (image, reference) in enumerate(zip(images, references, strict=True)):
            self._check(image, reference)
            groups[(image.shape, image.dtype, None if reference is None else reference.shape)].append(index)
        scores = np.empty((len(images), len(self.metrics)), np.float32)
        for (shape, _, reference_shape), indices in groups.items():
            batch = _to_tensor([images[i] for i in indices], self.device)
            reference = None
            enlarged = batch
            if reference_shape is not None:
                reference = _to_tensor([references[i] for i in indices], self.device)
                if reference_shape != shape:
                    enlarged = _enlarge(batch, reference_shape)
            with torch.inference_mode():
                for column, metric in enumerate(self.metrics):
                    values = self._scorer(metric.name)(*((enlarged, reference) if metric.needs_reference else (batch,)))
                    scores[indices, column] = values.reshape(-1).float().cpu().numpy()
        return scores

    def _check(self, image: np.ndarray, reference: np.ndarray | None) -> None:
        for metric in self.metrics:
            measured = reference if metric.needs_reference and reference is not None else image
            if metric.needs_reference and reference is None:
                raise MetricError(
                    f"metric {metric.name!r} compares with a clean reference and there is none; give one, or use {NO_REFERENCE_METRICS}"
                )
            if min(measured.shape[:2]) < metric.min_side:
                raise MetricError(
                    f"metric {metric.name!r} needs sides of at least {metric.min_side} px; this image is "
                    f"{measured.shape[1]}x{measured.shape[0]}"
                )
        if reference is not None and image.shape != reference.shape and not _is_quarter(image, reference):
            raise MetricError(
                f"an image of {image.shape[1]}x{image.shape[0]} cannot be compared with a reference of "
                f"{reference.shape[1]}x{reference.shape[0]}: only equal sizes and a factor of 4 are"
            )

    def _scorer(self, name: str) -> Callable:
        if name not in self._scorers:
            self._scorers[name] = _niqe if name == "niqe" else _ssim if name == "ssim" else _create(name, self.device)
        return self._scorers[name]

    def describe(self) -> str:
        """A line for beneath a table: the metrics, their direction, and the version that computed them."""
        import pyiqa

        arrows = ", ".join(f"{m.name}{'↑' if m.higher_is_better else '↓'}" for m in self.metrics)
        return f"{arrows} (pyiqa {pyiqa.__version__}{', niqe: basicsr' if 'niqe' in self.names else ''})"


def _to_tensor(images: list[np.ndarray], device: str) -> torch.Tensor:
    """float32 (N, 3, H, W) in [0, 1]."""
    import torch

    stacked = np.stack(images)
    tensor = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float()
    return tensor / 255.0 if stacked.dtype == np.uint8 else tensor


def _is_quarter(image: np.ndarray, reference: np.ndarray) -> bool:
    return all(abs(4 * small - large) <= 3 for small, large in zip(image.shape[:2], reference.shape[:2], strict=True))


def _enlarge(batch: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """MATLAB-style bicubic (a = -0.5) to the reference's size."""
    import torch.nn.functional as F

    return F.interpolate(batch, shape[:2], mode="bicubic", antialias=True).clamp(0, 1)


def _ssim(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """pyiqa's SSIM on Y, in float32: its metric object computes in float64, which takes many times longer and differs below 1e-5."""
    from pyiqa.archs.func_util import preprocess_rgb
    from pyiqa.archs.ssim_arch import ssim

    return ssim(*(preprocess_rgb(batch, True, 255, "yiq") for batch in (images, references)), data_range=255)


def _niqe(images: torch.Tensor) -> torch.Tensor:
    """BasicSR's NIQE on Y with the parameters that its wheel carries (pyiqa's own are a download)."""
    import torch

    from ir_env.compat import import_basicsr

    import_basicsr()
    from basicsr.metrics.niqe import calculate_niqe

    arrays = (images * 255.0).round().permute(0, 2, 3, 1).cpu().numpy()[..., ::-1]
    return torch.tensor([float(np.squeeze(calculate_niqe(array, crop_border=0))) for array in arrays])


def _create(name: str, device: str) -> Callable:
    """A pyiqa metric; a failed download of its weights becomes :class:`MetricWeightsMissing`."""
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
        return pyiqa.create_metric(name, device=torch.device(device))
    except Exception as error:
        if METRICS[name].offline or isinstance(error, ImportError):
            raise
        file, url = wanted[-1] if wanted else _hub_file(error)
        raise MetricWeightsMissing(name, file, url, f"{type(error).__name__}: {error}") from error
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
