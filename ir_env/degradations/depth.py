"""Depth maps for haze: from a folder, or synthetic."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from tool_actors.errors import IrEnvError

Box = tuple[int, int, int, int]
"""Top, left, height, width."""


class DepthSource(Protocol):
    """Gives the depth of a photograph."""

    def depth(self, photo: str, shape: tuple[int, int], box: Box, rng: np.random.Generator) -> np.ndarray:
        """Depth of the part ``box`` of a photograph of ``shape`` (H, W): float32 (h, w), 0 near to 1 = the farthest of the photo."""
        ...


class SyntheticDepth:
    """A smooth random depth: farther towards the top, with broad hills. The default; needs no data.

    The published benchmark took depth from an estimator, so its haze differs from this one in where it lies, not in its strength.
    """

    def depth(self, photo: str, shape: tuple[int, int], box: Box, rng: np.random.Generator) -> np.ndarray:
        coarse = rng.uniform(0.0, 0.5, (5, 5)) + np.linspace(0.6, 0.1, 5)[:, None]
        full = cv2.resize(coarse.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        full = np.clip(full / full.max(), 0.02, 1.0)
        top, left, height, width = box
        return full[top : top + height, left : left + width]


class DepthFolder:
    """Depth maps from files named after the photograph.

    ``<folder>/<stem>.npy`` or ``.png``, or the MiO100 layout ``<folder>/<stem>/predict_depth.mat`` (variable ``data_obj``); a smaller map
    is enlarged with cubic interpolation, and each is divided by its maximum.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise IrEnvError(f"{self.folder}: no such folder of depth maps")

    def depth(self, photo: str, shape: tuple[int, int], box: Box, rng: np.random.Generator) -> np.ndarray:
        depth = self._read(Path(photo).stem)
        depth = cv2.resize(depth, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        top, left, height, width = box
        return np.clip(depth / max(float(depth.max()), 1e-6), 0.0, 1.0)[top : top + height, left : left + width]

    def _read(self, stem: str) -> np.ndarray:
        candidates = [self.folder / f"{stem}.npy", self.folder / f"{stem}.png", self.folder / stem / "predict_depth.mat"]
        for path in candidates:
            if not path.is_file():
                continue
            if path.suffix == ".npy":
                depth = np.load(path, allow_pickle=False)
            elif path.suffix == ".png":
                depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            else:
                from scipy.io import loadmat

                depth = loadmat(path)["data_obj"]
            if depth is None or depth.ndim != 2:
                raise IrEnvError(f"{path}: not a depth map; it must hold one two-dimensional array")
            return depth.astype(np.float32)
        raise IrEnvError(f"no depth map for photograph {stem!r}: looked for {', '.join(map(str, candidates))}")


def load_depth_source(spec: str | Path | DepthSource | None) -> DepthSource:
    """``None`` or ``"synthetic"``, a folder, or a depth source as it is."""
    if spec is None or spec == "synthetic":
        return SyntheticDepth()
    return DepthFolder(spec) if isinstance(spec, str | Path) else spec
