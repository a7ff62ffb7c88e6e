"""What the classical tools share: the adapter from an image function to a tool, and a few image operations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable

import cv2
import numpy as np

from tool_actors.toolbox import Tool, ToolSpec, fingerprint


class ClassicalTool(Tool):
    """A tool made of a function on one float32 image (H, W, 3) in [0, 1].

    Args:
        name: `family.variant`.
        task: what it undoes.
        function: called as ``function(image, **parameters)`` for every image of a batch.
        scale: output side over input side.
        parameters: fixed keyword arguments of the function.
    """

    def __init__(self, name: str, task: str, function: Callable[..., np.ndarray], scale: int = 1, **parameters):
        self.function, self.parameters = function, parameters
        code = inspect.getsource(sys.modules[function.__module__])
        described = inspect.cleandoc(function.__doc__ or "")
        if parameters:
            described += "\n\nHere: " + ", ".join(f"{key} = {value}" for key, value in parameters.items()) + "."
        self.spec = ToolSpec(
            name=name,
            task=task,
            scale=scale,
            fingerprint=fingerprint(code, _SHARED_CODE, sorted(parameters.items()), cv2.__version__),
            description=described,
            summary=f"{function.__name__.replace('_', ' ')}, {', '.join(f'{key} {value}' for key, value in parameters.items())}".rstrip(
                ", "
            ),
        )

    def __call__(self, images):
        import torch

        arrays = images.permute(0, 2, 3, 1).cpu().numpy()
        outputs = np.stack([self.function(np.ascontiguousarray(image), **self.parameters) for image in arrays])
        return torch.from_numpy(outputs.astype(np.float32, copy=False)).permute(0, 3, 1, 2).to(images.device)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Float [0, 1] to uint8, for OpenCV's 8-bit filters."""
    return np.clip(np.rint(image * 255.0), 0, 255).astype(np.uint8)


def to_float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255.0


def box_mean(image: np.ndarray, radius: int) -> np.ndarray:
    side = 2 * radius + 1
    return cv2.blur(image, (side, side), borderType=cv2.BORDER_REFLECT_101 if min(image.shape[:2]) > radius else cv2.BORDER_REPLICATE)


def guided_filter(guide: np.ndarray, source: np.ndarray, radius: int, epsilon: float) -> np.ndarray:
    """The guided filter of He, Sun and Tang (ECCV 2010) with a grey guide: both float32 (H, W)."""
    mean_guide, mean_source = box_mean(guide, radius), box_mean(source, radius)
    covariance = box_mean(guide * source, radius) - mean_guide * mean_source
    variance = box_mean(guide * guide, radius) - mean_guide * mean_guide
    slope = covariance / (variance + epsilon)
    offset = mean_source - slope * mean_guide
    return box_mean(slope, radius) * guide + box_mean(offset, radius)


def wiener(image: np.ndarray, kernel: np.ndarray, noise_to_signal: float) -> np.ndarray:
    """Wiener deconvolution with a Laplacian regulariser, in the Fourier domain, on a reflected border.

    Args:
        image: float32 (H, W, 3).
        kernel: the blur, float32 (k, k), k odd, sums to 1, applied as a correlation about its centre.
        noise_to_signal: weight of the Laplacian's energy; larger is smoother.
    """
    pad = kernel.shape[0]
    height, width = image.shape[:2]
    padded = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REFLECT_101 if min(height, width) > pad else cv2.BORDER_REPLICATE)
    shape = tuple(cv2.getOptimalDFTSize(side) for side in padded.shape[:2])
    padded = cv2.copyMakeBorder(padded, 0, shape[0] - padded.shape[0], 0, shape[1] - padded.shape[1], cv2.BORDER_REPLICATE)
    transfer = _transfer(kernel[::-1, ::-1], shape)
    laplacian = _transfer(np.array([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], np.float32), shape)
    restore = np.conj(transfer) / (np.abs(transfer) ** 2 + noise_to_signal * np.abs(laplacian) ** 2 + 1e-8)
    spectrum = np.fft.rfft2(padded, axes=(0, 1)) * restore[..., None]
    restored = np.fft.irfft2(spectrum, s=shape, axes=(0, 1))
    return np.clip(restored[pad : pad + height, pad : pad + width], 0, 1).astype(np.float32)


def richardson_lucy(image: np.ndarray, kernel: np.ndarray, iterations: int) -> np.ndarray:
    """Richardson-Lucy deconvolution (1972, 1974): multiplicative updates, on a replicated border; arguments as in :func:`wiener`."""
    observed = np.maximum(image, 1e-3)
    estimate = observed.copy()
    mirrored = np.ascontiguousarray(kernel[::-1, ::-1])
    for _ in range(iterations):
        blurred = cv2.filter2D(estimate, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        estimate = estimate * cv2.filter2D(observed / np.maximum(blurred, 1e-3), -1, mirrored, borderType=cv2.BORDER_REPLICATE)
    return np.clip(estimate, 0, 1)


def _transfer(kernel: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Fourier transform of a convolution kernel centred at the origin of an array of ``shape``."""
    placed = np.zeros(shape, np.float32)
    side = kernel.shape[0]
    placed[:side, :side] = kernel
    return np.fft.rfft2(np.roll(placed, (-(side // 2), -(side // 2)), axis=(0, 1)))


_SHARED_CODE = inspect.getsource(sys.modules[__name__])
