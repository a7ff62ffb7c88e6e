"""Clean photographs, degraded on the fly."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np

from ir_env.datasets.base import Pair, Sample
from ir_env.datasets.photos import Photos, Split, load_photos
from ir_env.degradations.combos import Combos, parse_combos
from ir_env.degradations.depth import DepthSource, load_depth_source
from ir_env.degradations.recipe import Scene, check_severity, degrade, seed_for
from tool_actors.cache import ByteLRU
from tool_actors.errors import IrEnvError

MADE_BYTES = 512 << 20
"""Images that are drawn again are kept up to this size."""


class SynthesisedDataset:
    """Random crops of clean photographs under random combinations of degradations.

    Args:
        photos: ``"builtin"``, a folder, or a collection.
        split: ``"train"``, ``"heldout"`` or ``"all"`` (by photograph).
        crop_size: side of the square crops, a multiple of 4; None takes whole photographs.
        combos: see :func:`ir_env.degradations.parse_combos`.
        seed: base of the seeds of (image, combination).
        draws: how many different degradations of one (image, combination) may be drawn.
        severity: see :func:`ir_env.degradations.degrade`.
        depth: ``None`` for synthetic depth, or a folder of depth maps.
        images: draw from so many samples, which ``seed`` names and which go round photographs and combinations; None draws ever new ones.
            A training then meets the same images again, and what tools and metrics made of them is in the executor's cache.
    """

    def __init__(
        self,
        photos: str | Path | Photos = "builtin",
        split: Split = "all",
        crop_size: int | None = 64,
        combos: str | Iterable[str] | Combos = "A,B,C",
        seed: int = 0,
        draws: int = 1_000_000,
        severity: float | None = None,
        depth: str | Path | DepthSource | None = None,
        images: int | None = None,
    ):
        self.photos = load_photos(photos, split)
        self.combos = parse_combos(combos)
        check_severity(severity)
        if crop_size is not None and (crop_size < 32 or crop_size % 4):
            raise IrEnvError(f"crop_size must be a multiple of 4 and at least 32, or None for whole photographs; not {crop_size}")
        self.crop_size, self.seed, self.draws, self.severity = crop_size, seed, draws, severity
        self.depth = load_depth_source(depth)
        if images is not None and images < 1:
            raise IrEnvError(f"images must be at least 1, or None for ever new ones; not {images}")
        self.images = images
        self._made = ByteLRU(MADE_BYTES if images else 0)

    @cached_property
    def _samples(self) -> list[Sample]:
        return self.draw_evenly(np.random.default_rng(self.seed), self.images or 0)

    def draw(self, rng: np.random.Generator) -> Sample:
        if self.images:
            return self._samples[int(rng.integers(self.images))]
        names = self.photos.names
        return self._draw(rng, names[int(rng.integers(len(names)))], self.combos.draw(rng))

    def draw_evenly(self, rng: np.random.Generator, count: int) -> list[Sample]:
        """Samples that go round the photographs and, where all are equally likely, the combinations."""
        names, entries = self.photos.names, self.combos.entries
        even = len(set(self.combos.weights)) == 1
        # how far the photographs move on after each round of combinations: without a common divisor, so that every pair of the two comes up
        step = next(step for step in itertools.count(len(entries) + 1) if math.gcd(step, len(names)) == 1)
        samples = []
        for index in range(count):
            turn, place = divmod(index, len(entries))
            combo = entries[place] if even else self.combos.draw(rng)
            samples.append(self._draw(rng, names[(step * turn + place) % len(names)], combo))
        return samples

    def _draw(self, rng: np.random.Generator, name: str, combo: tuple[str, ...]) -> Sample:
        box = None
        if self.crop_size is not None:
            height, width = self.photos.load(name).shape[:2]
            if min(height, width) < self.crop_size:
                raise IrEnvError(
                    f"photograph {name!r} is {width}x{height}, smaller than crop_size {self.crop_size}; lower it or remove the file"
                )
            top, left = int(rng.integers(height - self.crop_size + 1)), int(rng.integers(width - self.crop_size + 1))
            box = (top, left, self.crop_size, self.crop_size)
        return Sample(name, combo, box, int(rng.integers(self.draws)))

    def load(self, sample: Sample) -> Pair:
        pair = self._made.get(sample)
        if pair is None:
            pair = self._make(sample)
            self._made.put(sample, pair, pair.degraded.nbytes + (0 if pair.reference is None else pair.reference.nbytes))
        return pair

    def _make(self, sample: Sample) -> Pair:
        photo = self.photos.load(sample.photo)
        box = sample.box or (0, 0, *photo.shape[:2])
        top, left, height, width = box
        clean = np.ascontiguousarray(photo[top : top + height, left : left + width])
        if clean.shape[:2] != (height, width):
            raise IrEnvError(f"sample {sample.id!r}: its crop lies outside the photograph, which is {photo.shape[1]}x{photo.shape[0]}")
        scene = Scene(sample.photo, photo.shape[:2], box, self.depth)
        place = f"{sample.photo}[{','.join(map(str, box))}]"
        seed = seed_for(f"{place}#{sample.seed}", sample.combo, self.seed)
        return Pair(degrade(clean, sample.combo, seed, severity=self.severity, scene=scene).image, clean)
