"""The MiO100 / AgenticIR folder: ready pairs, and the 640 + 400 + 400 test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ir_env.datasets.base import Pair, Sample
from ir_env.degradations.combos import GROUPS, Combo, parse_combo
from ir_env.images import find_images, load_image
from tool_actors.errors import IrEnvError, UnknownNameError


class MiO100Dataset:
    """Pairs from ``<folder>/HQ/<stem>.png`` and ``<folder>/LQ/d2/rain+haze/<stem>.png``.

    Args:
        folder: the folder that holds HQ and LQ.
        groups: which of the groups ``"A"``, ``"B"``, ``"C"``, comma-separated. As in AgenticIR, group A leaves out the 20 images whose
            number ends in 1 or 2, on which its authors explored orders: 640 + 400 + 400 pairs for 100 images.
        crop_size: side of random crops of the clean image (the degraded one is cut at the same place), or None.
    """

    def __init__(self, folder: str | Path, groups: str = "A,B,C", crop_size: int | None = None):
        self.folder, self.crop_size = Path(folder), crop_size
        if crop_size is not None and crop_size % 4:
            raise IrEnvError(f"crop_size must be a multiple of 4, not {crop_size}")
        self._clean = {path.stem: path for path in find_images(self.folder / "HQ", recursive=False)}
        self._folders: dict[Combo, Path] = {}
        for level in sorted((self.folder / "LQ").glob("d*")):
            for path in sorted(level.iterdir()):
                if path.is_dir():
                    self._folders[parse_combo(path.name)] = path
        self._degraded: dict[Combo, dict[str, Path]] = {}
        self.samples: list[Sample] = []
        for group in groups.split(","):
            if group not in ("A", "B", "C"):
                raise UnknownNameError("group", group, ("A", "B", "C"))
            for combo in GROUPS[group]:
                self.samples += [Sample(stem, combo) for stem in self._stems(group) if stem in self._files(combo)]
        if not self.samples:
            raise IrEnvError(f"{self.folder}: no degraded image under LQ/ matches an image of HQ/ in the groups {groups}")

    def _stems(self, group: str) -> list[str]:
        return [stem for stem in self._clean if group != "A" or not _explored(stem)]

    def _files(self, combo: Combo) -> dict[str, Path]:
        if combo not in self._folders:
            raise IrEnvError(f"{self.folder}/LQ: no folder for the combination {'+'.join(combo)}; found {len(self._folders)} others")
        if combo not in self._degraded:
            self._degraded[combo] = {path.stem: path for path in find_images(self._folders[combo], recursive=False)}
        return self._degraded[combo]

    def draw(self, rng: np.random.Generator) -> Sample:
        sample = self.samples[int(rng.integers(len(self.samples)))]
        if self.crop_size is None:
            return sample
        height, width = load_image(self._clean[sample.photo]).shape[:2]
        if min(height, width) < self.crop_size:
            raise IrEnvError(f"{self._clean[sample.photo]} is {width}x{height}, smaller than crop_size {self.crop_size}")
        top, left = (4 * int(rng.integers((side - self.crop_size) // 4 + 1)) for side in (height, width))
        return Sample(sample.photo, sample.combo, (top, left, self.crop_size, self.crop_size))

    def load(self, sample: Sample) -> Pair:
        if sample.photo not in self._clean:
            raise UnknownNameError("image", sample.photo, self._clean)
        clean, degraded = load_image(self._clean[sample.photo]), load_image(self._files(sample.combo)[sample.photo])
        if sample.box is None:
            return Pair(degraded, clean)
        ratio = clean.shape[0] // degraded.shape[0]
        top, left, height, width = sample.box
        cut = tuple(slice(start // ratio, (start + size) // ratio) for start, size in ((top, height), (left, width)))
        return Pair(
            np.ascontiguousarray(degraded[cut]),
            np.ascontiguousarray(clean[top : top + height, left : left + width]),
        )

    def __len__(self) -> int:
        return len(self.samples)


def _explored(stem: str) -> bool:
    digits = "".join(filter(str.isdigit, stem))
    return bool(digits) and 1 <= int(digits) % 10 <= 2
