"""Ready pairs of a degraded and a clean image, in RL-Restore's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ir_env.datasets.base import Pair, Sample
from ir_env.images import find_images, load_image
from tool_actors.errors import IrEnvError, UnknownNameError

DEGRADED, CLEAN = "_in", "_gt"
"""How the names of the two folders end."""


class PairsDataset:
    """Pairs from ``<folder>/<set>_in/<name>.png`` and ``<folder>/<set>_gt/<name>.png``; what degraded them is not told.

    Args:
        folder: holds the folders.
        name: of the set; by default all that are there, and the photographs are then named ``<set>/<name>``.
    """

    crop_size = None

    def __init__(self, folder: str | Path, name: str | None = None):
        folder = Path(folder)
        self._files: dict[str, tuple[Path, Path]] = {}
        for each in [name] if name else set_names(folder):
            clean = {path.stem: path for path in find_images(folder / f"{each}{CLEAN}", recursive=False)}
            for path in find_images(folder / f"{each}{DEGRADED}", recursive=False):
                if path.stem in clean:
                    self._files[path.stem if name else f"{each}/{path.stem}"] = (path, clean[path.stem])
        if not self._files:
            raise IrEnvError(f"{folder}: no image of {name or '*'}{DEGRADED} has the name of one in {name or '*'}{CLEAN}")
        self.samples = [Sample(photo, ()) for photo in self._files]

    def draw(self, rng: np.random.Generator) -> Sample:
        return self.samples[int(rng.integers(len(self.samples)))]

    def load(self, sample: Sample) -> Pair:
        if sample.photo not in self._files:
            raise UnknownNameError("image", sample.photo, self._files)
        degraded, clean = self._files[sample.photo]
        return Pair(load_image(degraded), load_image(clean))

    def __len__(self) -> int:
        return len(self.samples)


def set_names(folder: str | Path) -> list[str]:
    """The sets that a folder holds, in alphabetical order; raises :class:`IrEnvError` where there is none."""
    folder = Path(folder)
    found = sorted(path.name.removesuffix(DEGRADED) for path in folder.glob(f"*{DEGRADED}") if path.is_dir())
    if not found:
        raise IrEnvError(
            f"{folder}: holds no pairs; put degraded images into NAME{DEGRADED} and the clean ones, of the same names, into NAME{CLEAN}"
        )
    return found
