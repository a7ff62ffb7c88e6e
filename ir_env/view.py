"""What a policy is shown of a photograph of any size: an overview of all of it, and glimpses of its native pixels.

Haze, low light and the scene itself show in the overview; noise, blur and compression show in native pixels alone. The same view serves
training, evaluation and ``ir-env restore``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import cv2
import gymnasium
import numpy as np

from tool_actors.errors import IrEnvError

__all__ = ["View"]

IMAGES = ("current", "all")
LONGEST = 1e6
"""Pixels of a side, which no image exceeds."""


@dataclass(frozen=True)
class View:
    """Which pictures of the image a policy sees; each gives keys of the observation.

    >>> sorted(View(glimpses=2).look([np.zeros((321, 481, 3), np.uint8)]))
    ['glimpses', 'overview', 'size']

    Raises:
        IrEnvError: nothing would be seen, or a side is too small.
    """

    overview: int = 64
    """Side of the square that holds all of the image, area-reduced, its aspect kept; 0 leaves it out."""
    glimpses: int = 4
    """Number of squares of native pixels, from the flattest to the most textured; 0 leaves them out."""
    side: int = 64
    """Of a glimpse, in pixels."""
    whole: int = 0
    """Longest side of the image itself, for models with a processor of their own, which is reduced to it if it is longer; 0 leaves it
    out."""
    images: str = "current"
    """With ``whole``: ``current``, or ``all`` images from the degraded one to the current one, as in TIR-Agent."""

    def __post_init__(self):
        counts = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "images"}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise IrEnvError(f"view: {name} must be a whole number of at least 0, not {value!r}")
        if not (self.overview or self.glimpses or self.whole):
            raise IrEnvError("view: with overview, glimpses and whole at 0 a policy sees nothing; give one of them")
        if self.glimpses and not self.side:
            raise IrEnvError("view: side must be at least 1 where there are glimpses")
        if self.images not in IMAGES:
            raise IrEnvError(f"view: images must be one of {', '.join(IMAGES)}, not {self.images!r}")
        if self.images == "all" and not self.whole:
            raise IrEnvError("view: images='all' shows whole images; give their longest side as whole, e.g. 512")

    @classmethod
    def of(cls, settings: View | Mapping[str, Any] | None) -> View:
        """A view as it is, from its settings, or (None) the usual one."""
        if isinstance(settings, View):
            return settings
        known = [field.name for field in fields(cls)]
        for name in settings or {}:
            if name not in known:
                raise IrEnvError(f"view: there is no setting {name!r}; there are {', '.join(known)}")
        return cls(**(settings or {}))

    @classmethod
    def of_space(cls, space: gymnasium.spaces.Space) -> View:
        """That behind an observation space of :meth:`spaces`.

        Raises:
            IrEnvError: the space is of no view.
        """
        parts = space.items() if isinstance(space, gymnasium.spaces.Dict) else ()
        shapes = {name: tuple(each.shape or ()) for name, each in parts}
        if "size" not in shapes or not shapes.keys() & {"overview", "glimpses", "image"}:
            raise IrEnvError(f"observations of {space} hold no view; those of ir_env/Restoration-v0 do")
        glimpses, image = shapes.get("glimpses", (0, cls.side)), shapes.get("image", (1, 0))
        return cls(
            overview=shapes.get("overview", (0,))[0],
            glimpses=glimpses[0],
            side=glimpses[1],
            whole=image[1],
            images="all" if image[0] > 1 else "current",
        )

    def spaces(self, max_steps: int) -> dict[str, gymnasium.spaces.Space]:
        """Of the keys of :meth:`look`."""

        def picture(*shape: int) -> gymnasium.spaces.Box:
            return gymnasium.spaces.Box(0, 255, (*shape, 3), np.uint8)

        found: dict[str, gymnasium.spaces.Space] = {"size": gymnasium.spaces.Box(1.0, LONGEST, (2,), np.float32)}
        if self.overview:
            found["overview"] = picture(self.overview, self.overview)
        if self.glimpses:
            found["glimpses"] = picture(self.glimpses, self.side, self.side)
        if self.whole:
            count = max_steps + 1 if self.images == "all" else 1
            found["image"] = picture(count, self.whole, self.whole)
            found["image_size"] = gymnasium.spaces.Box(0, self.whole, (count, 2), np.int32)
        return found

    def look(self, images: Sequence[np.ndarray], max_steps: int | None = None) -> dict[str, np.ndarray]:
        """What is seen of an image.

        Args:
            images: uint8 (H, W, 3) each, from the degraded one to the current one.
            max_steps: of the episode; by default there is room for these images alone.

        Returns:
            ``size``, float32 (2,), height and width of the current image in pixels; and where the view has them ``overview``, uint8
            (V, V, 3); ``glimpses``, uint8 (K, S, S, 3); ``image``, uint8 (N, M, M, 3), whole images each at the top left of black, and
            ``image_size``, int32 (N, 2), their heights and widths there, 0 where there is none.
        """
        current = images[-1]
        seen: dict[str, np.ndarray] = {"size": np.array(current.shape[:2], np.float32)}
        if self.overview:
            seen["overview"] = filled(reduced(current, self.overview), self.overview)
        if self.glimpses:
            seen["glimpses"] = glimpses(current, self.glimpses, self.side)
        if self.whole:
            shown = [reduced(image, self.whole) for image in (images if self.images == "all" else images[-1:])]
            count = len(shown) if max_steps is None or self.images == "current" else max_steps + 1
            seen["image"] = np.zeros((count, self.whole, self.whole, 3), np.uint8)
            seen["image_size"] = np.zeros((count, 2), np.int32)
            for place, size, image in zip(seen["image"], seen["image_size"], shown, strict=False):
                place[: image.shape[0], : image.shape[1]] = image
                size[:] = image.shape[:2]
        return seen


def whole_images(observation: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The images of an observation with ``image`` and ``image_size``, uint8 (h, w, 3) each."""
    told = zip(observation["image"], observation["image_size"], strict=True)
    return [image[:height, :width] for image, (height, width) in told if height]


def reduced(pixels: np.ndarray, longest: int) -> np.ndarray:
    """The image with its longer side at most ``longest`` pixels, by area; smaller ones stay as they are."""
    height, width = pixels.shape[:2]
    factor = longest / max(height, width)
    if factor >= 1:
        return pixels
    return cv2.resize(pixels, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA)


def filled(pixels: np.ndarray, side: int) -> np.ndarray:
    """At least a square of ``side``, by mirroring: no edge of black that a policy would have to learn to overlook."""
    missing = [max(0, side - extent) for extent in pixels.shape[:2]]
    return np.pad(pixels, [(0, missing[0]), (0, missing[1]), (0, 0)], mode="symmetric") if any(missing) else pixels


def glimpses(pixels: np.ndarray, count: int, side: int) -> np.ndarray:
    """Squares of native pixels, uint8 (count, side, side, 3), evenly spaced in rank from the flattest of the image to the most textured:
    noise shows in the first, blur in the last."""
    pixels = filled(pixels, side)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    rows, columns = (np.linspace(0, extent - side, -(-extent // side)).round().astype(int) for extent in grey.shape)
    places = [(row, column) for row in rows for column in columns]
    contrasts = [cv2.meanStdDev(grey[row : row + side, column : column + side])[1][0, 0] for row, column in places]
    order = np.argsort(contrasts, kind="stable")
    ranks = np.linspace(0, len(order) - 1, count + 2)[1:-1] if count == 1 else np.linspace(0, len(order) - 1, count)
    chosen = [places[order[int(rank)]] for rank in ranks.round()]
    return np.stack([pixels[row : row + side, column : column + side] for row, column in chosen])
