"""What tools learn from: crops of images with a plan, and crops for one tool alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from experiments.opera.plans import Planned
from experiments.train_tools import RECIPES, Recipe, make_batch
from ir_env.datasets import Dataset, Pair, Photos
from tool_actors.cotraining import Part
from tool_actors.errors import IrEnvError
from tool_actors.tasks import TASK_OF
from tool_actors.toolbox import Tool, Toolbox

ALIGNED = 8
"""Crops begin at multiples of this, in pixels of the degraded image: JPEG's blocks stay whole."""
WHOLE = ("dehaze", "brighten")
"""Tasks whose tools judge an image as a whole, its airlight or exposure: on a small part they do something else than on a photograph."""


class PlannedCrops:
    """Crops of degraded images, each with the plan of the whole image.

    Args:
        dataset: makes the images.
        planned: the images and their plans; images without a plan are left out, since nothing is learned from them.
        toolbox: the tools of the plans.
        crop: side of the crops in the clean image, a multiple of 32; images whose plans have a tool of :data:`WHOLE` are not cut. None
            cuts none.
    """

    def __init__(self, dataset: Dataset, planned: Sequence[Planned], toolbox: Toolbox, crop: int | None):
        self.crop = crop
        self._uncut = {tool.spec.name for tool in toolbox if tool.spec.task in WHOLE}
        self.planned = [each for each in planned if each.tools]
        self._pairs = [dataset.load(each.sample) for each in self.planned]
        self.keys = [
            (each.tools, _ratio(pair), pair.degraded.shape[:2] if self._side(each.tools) is None else None)
            for each, pair in zip(self.planned, self._pairs, strict=True)
        ]
        """Of each image, what those that go through the tools together must share."""

    def part(self, places: Sequence[int], rng: np.random.Generator | None) -> Part:
        """The images at these places, which share a key, as random crops flipped at random; without a generator the crops at the middle."""
        plan = self.planned[places[0]].tools
        degraded, clean = zip(*(_cut(self._pairs[place], self._side(plan), rng) for place in places), strict=True)
        return Part(plan, to_tensor(degraded), to_tensor(clean))

    def _side(self, plan: Sequence[str]) -> int | None:
        """Of the crops of images with this plan; None if they are not cut."""
        return self.crop if self._uncut.isdisjoint(plan) else None


def _cut(pair: Pair, crop: int | None, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """The same crop of both images, flipped from left to right every other time; at the middle, as it is, without a generator."""
    small, large = pair.degraded, _reference(pair)
    if crop is not None:
        ratio = _ratio(pair)
        side = min(crop, *large.shape[:2]) // ratio
        rooms = [(length - side) // ALIGNED for length in small.shape[:2]]
        top, left = (ALIGNED * (room // 2 if rng is None else int(rng.integers(room + 1))) for room in rooms)
        small = small[top : top + side, left : left + side]
        large = large[ratio * top : ratio * (top + side), ratio * left : ratio * (left + side)]
    return (small[:, ::-1], large[:, ::-1]) if rng is not None and rng.random() < 0.5 else (small, large)


def single_part(tool: Tool, photos: Photos, count: int, untouched: int, crop: int, rng: np.random.Generator) -> Part:
    """A tool alone: on crops with its own degradation, the last ``untouched`` of them without any, which it should leave as they are.

    A tool that enlarges has no clean image to leave as it is: it gets degraded crops alone.
    """
    degraded, clean = make_batch(recipe_of(tool), photos, rng, count, crop, "cpu")
    if tool.spec.scale == 1:
        degraded[count - untouched :] = clean[count - untouched :]
    return Part((tool.spec.name,), degraded, clean)


def recipe_of(tool: Tool) -> Recipe:
    """What a tool undoes: its own recipe, or the degradation of its task with all its strengths."""
    if tool.spec.name in RECIPES:
        return RECIPES[tool.spec.name]
    degradation = next(name for name, task in TASK_OF.items() if task == tool.spec.task)
    return Recipe(tool.spec.name, tool.spec.task, degradation)


def to_tensor(images: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 (H, W, 3) each -> float32 (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255.0


def _ratio(pair: Pair) -> int:
    return _reference(pair).shape[0] // pair.degraded.shape[0]


def _reference(pair: Pair) -> np.ndarray:
    if pair.reference is None:
        raise IrEnvError("tools learn from pairs: the dataset has an image without a clean one")
    return pair.reference
