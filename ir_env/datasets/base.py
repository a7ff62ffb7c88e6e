"""The contract of a dataset, and what it hands out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ir_env.degradations.combos import Combo, parse_combo
from tool_actors.errors import IrEnvError


@dataclass(frozen=True)
class Sample:
    """A degraded photograph, as a recipe: the same pixels wherever it is made."""

    photo: str
    """Name of the clean photograph in its collection."""
    combo: Combo
    """Degradations in order of application."""
    box: tuple[int, int, int, int] | None = None
    """Top, left, height, width of the crop in the clean photograph; None for all of it."""
    seed: int = 0
    """Distinguishes several degradations of one (photo, box, combination)."""

    @property
    def id(self) -> str:
        """The sample as a line of text, e.g. ``chelsea[8,96,64,64]|rain+haze|0``; :meth:`parse` reads it back."""
        crop = "" if self.box is None else "[" + ",".join(map(str, self.box)) + "]"
        return f"{self.photo}{crop}|{'+'.join(self.combo)}|{self.seed}"

    @classmethod
    def parse(cls, text: str) -> Sample:
        match = re.fullmatch(r"(?P<photo>.+?)(\[(?P<box>\d+,\d+,\d+,\d+)\])?\|(?P<combo>[^|]+)\|(?P<seed>\d+)", text)
        if match is None:
            raise IrEnvError(f"sample {text!r}: write photo[top,left,height,width]|combination|seed, as in info['sample']")
        box = None
        if match["box"]:
            top, left, height, width = map(int, match["box"].split(","))
            box = top, left, height, width
        return cls(match["photo"], parse_combo(match["combo"]), box, int(match["seed"]))


@dataclass(frozen=True)
class Pair:
    """The pixels of a sample."""

    degraded: np.ndarray
    """uint8 (h, w, 3); h, w a quarter of the reference's after ``low_resolution``."""
    reference: np.ndarray | None
    """uint8 (H, W, 3), the clean photograph; None if there is none."""


class Dataset(Protocol):
    """Draws samples and makes their pixels."""

    crop_size: int | None
    """Side of the clean crops, or None for whole photographs."""

    def draw(self, rng: np.random.Generator) -> Sample:
        """A random sample."""
        ...

    def load(self, sample: Sample) -> Pair:
        """The pixels of a sample."""
        ...


def fixed_samples(dataset: Dataset, count: int, seed: int) -> list[Sample]:
    """``count`` samples that depend on the seed alone, spread evenly over the combinations and photographs where they can be."""
    rng = np.random.default_rng(seed)
    spread = getattr(dataset, "draw_evenly", None)
    return spread(rng, count) if spread else [dataset.draw(rng) for _ in range(count)]
