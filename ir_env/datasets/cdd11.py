"""CDD-11 (OneRestore, Guo et al. 2024): clear photographs under low light, haze, rain and snow, and seven mixtures of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ir_env.datasets.base import Pair, Sample
from ir_env.images import find_images, load_image
from tool_actors.errors import IrEnvError, UnknownNameError

CLEAR = "clear"
NAMES = {"low": "low_light", "haze": "haze", "rain": "rain", "snow": "snow"}
"""In the names of its folders -> of degradations. No task undoes snow."""


class CDD11Dataset:
    """Pairs from ``<folder>/clear/<name>.png`` and ``<folder>/low_haze_rain/<name>.png``.

    Args:
        folder: holds ``clear`` and the folders of combinations; of the published archive its ``test``.
        combos: comma-separated names of those folders; by default all that are there.
    """

    crop_size = None

    def __init__(self, folder: str | Path, combos: str | None = None):
        self.folder = Path(folder)
        self._clear = {path.stem: path for path in find_images(self.folder / CLEAR, recursive=False)}
        found = {path.name: _combo(path) for path in sorted(self.folder.iterdir()) if path.is_dir() and path.name != CLEAR}
        chosen = list(found) if combos is None else [name.strip() for name in combos.split(",")]
        self._files: dict[Sample, Path] = {}
        for name in chosen:
            if name not in found:
                raise UnknownNameError("combination", name, found)
            paths = {path.stem: path for path in find_images(self.folder / name, recursive=False)}
            self._files |= {Sample(stem, found[name]): path for stem, path in paths.items() if stem in self._clear}
        self.samples = list(self._files)
        if not self.samples:
            raise IrEnvError(f"{self.folder}: no degraded image has the name of one in {CLEAR}/")

    def draw(self, rng: np.random.Generator) -> Sample:
        return self.samples[int(rng.integers(len(self.samples)))]

    def load(self, sample: Sample) -> Pair:
        if sample not in self._files:
            raise UnknownNameError("image", sample.id, [each.id for each in self.samples])
        return Pair(load_image(self._files[sample]), load_image(self._clear[sample.photo]))

    def __len__(self) -> int:
        return len(self.samples)


def _combo(path: Path) -> tuple[str, ...]:
    parts = path.name.split("_")
    unknown = [part for part in parts if part not in NAMES]
    if unknown:
        raise IrEnvError(f"{path}: {unknown[0]!r} is no degradation of CDD-11; its folders are named of {', '.join(NAMES)}, and {CLEAR}")
    return tuple(NAMES[part] for part in parts)
