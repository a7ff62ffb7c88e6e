"""Defocus deblurring: deconvolution with a disk."""

from __future__ import annotations

import cv2
import numpy as np

from tool_actors.classical.base import ClassicalTool, richardson_lucy, wiener


def tools() -> list[ClassicalTool]:
    return [
        ClassicalTool("wiener.disk3", "defocus_deblur", wiener_disk, radius=3.0, noise_to_signal=0.03),
        ClassicalTool("wiener.disk6", "defocus_deblur", wiener_disk, radius=6.0, noise_to_signal=0.1),
        ClassicalTool("rl.disk3", "defocus_deblur", richardson_lucy_disk, radius=3.0, iterations=20),
    ]


def wiener_disk(image: np.ndarray, radius: float, noise_to_signal: float) -> np.ndarray:
    """Wiener deconvolution (Wiener 1949) with a disk of `radius` pixels and a Laplacian regulariser. About 1 ms."""
    return wiener(image, disk_kernel(radius), noise_to_signal)


def richardson_lucy_disk(image: np.ndarray, radius: float, iterations: int) -> np.ndarray:
    """Richardson-Lucy deconvolution (1972, 1974) with a disk of `radius` pixels. About 2 ms."""
    return richardson_lucy(image, disk_kernel(radius), iterations)


def disk_kernel(radius: float) -> np.ndarray:
    """A disk with a slightly soft rim, float32 (k, k), sums to 1."""
    half = int(np.ceil(radius)) + 1
    y, x = np.mgrid[-half : half + 1, -half : half + 1]
    disk = (x * x + y * y <= radius * radius).astype(np.float32)
    disk = cv2.GaussianBlur(disk, (3, 3), 0.5, borderType=cv2.BORDER_CONSTANT)
    return disk / disk.sum()
