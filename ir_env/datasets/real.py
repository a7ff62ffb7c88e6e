"""Photographs as cameras took them, degraded and without a clean one: any folder, so RTTS and LHP too."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ir_env.datasets.base import Pair, Sample
from ir_env.images import find_images, load_image
from tool_actors.errors import UnknownNameError

IMAGES = "JPEGImages"
"""RTTS comes in PASCAL VOC's layout, in which other folders may hold pictures that are no photographs."""


class RealPhotos:
    """The images below a folder, or below its ``JPEGImages`` if it has one (RTTS); each is its own photograph.

    Args:
        folder: searched whole.
    """

    crop_size = None

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        self.folder = folder / IMAGES if (folder / IMAGES).is_dir() else folder
        paths = find_images(self.folder)
        twice = {stem for stem, count in Counter(path.with_suffix("") for path in paths).items() if count > 1}
        names = [path if path.with_suffix("") in twice else path.with_suffix("") for path in paths]
        self._files = {name.relative_to(self.folder).as_posix(): path for name, path in zip(names, paths, strict=True)}
        self.samples = [Sample(name, ()) for name in self._files]

    def draw(self, rng: np.random.Generator) -> Sample:
        return self.samples[int(rng.integers(len(self.samples)))]

    def load(self, sample: Sample) -> Pair:
        if sample.photo not in self._files:
            raise UnknownNameError("photograph", sample.photo, self._files)
        return Pair(load_image(self._files[sample.photo]), None)

    def __len__(self) -> int:
        return len(self.samples)
