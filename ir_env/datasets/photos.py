"""Collections of clean photographs."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ir_env.images import find_images, load_image
from tool_actors.cache import ByteLRU
from tool_actors.errors import IrEnvError, UnknownNameError

Split = Literal["train", "heldout", "all"]
SPLITS = ("train", "heldout", "all")
DECODED_BYTES = 512 << 20
"""Decoded photographs kept per collection."""


class Photos:
    """Clean photographs by name, decoded once and kept while they are in use."""

    def __init__(self, files: dict[str, Path]):
        self._files = files
        self._decoded = ByteLRU(DECODED_BYTES)

    @cached_property
    def names(self) -> list[str]:
        return list(self._files)

    def load(self, name: str) -> np.ndarray:
        """uint8 (H, W, 3), RGB, cut so that both sides are multiples of 4 (a quarter-size image then has a whole size)."""
        if name not in self._files:
            raise UnknownNameError("photograph", name, self._files)
        photo = self._decoded.get(name)
        if photo is None:
            pixels = load_image(self._files[name])
            height, width = (side - side % 4 for side in pixels.shape[:2])
            photo = np.ascontiguousarray(pixels[:height, :width])
            self._decoded.put(name, photo, photo.nbytes)
        return photo

    def listing(self) -> list[tuple[str, int, int]]:
        """(name, bytes, time of the last change in nanoseconds) of each file: another listing tells other photographs."""
        return [(name, (status := path.stat()).st_size, status.st_mtime_ns) for name, path in self._files.items()]

    def __len__(self) -> int:
        return len(self._files)


class BuiltinPhotos(Photos):
    """The natural colour photographs that the scikit-image and scikit-learn wheels carry, split by photograph.

    train: astronaut, china, coffee, motorcycle (both views); heldout: chelsea, flower, rocket.
    """

    PHOTOS = {
        "train": {
            "astronaut": "skimage/data/astronaut.png",
            "china": "sklearn/datasets/images/china.jpg",
            "coffee": "skimage/data/coffee.png",
            "motorcycle_left": "skimage/data/motorcycle_left.png",
            "motorcycle_right": "skimage/data/motorcycle_right.png",
        },
        "heldout": {
            "chelsea": "skimage/data/chelsea.png",
            "flower": "sklearn/datasets/images/flower.jpg",
            "rocket": "skimage/data/rocket.jpg",
        },
    }

    def __init__(self, split: Split = "train"):
        _check_split(split)
        chosen = [part for part in self.PHOTOS if split in (part, "all")]
        super().__init__({name: _packaged_file(path) for part in chosen for name, path in self.PHOTOS[part].items()})


class FolderPhotos(Photos):
    """The image files below a folder, named by their path in it; one in five is held out, chosen by a hash of its name."""

    def __init__(self, folder: str | Path, split: Split = "all"):
        _check_split(split)
        folder = Path(folder)
        files = {path.relative_to(folder).as_posix(): path for path in find_images(folder)}
        if split != "all":
            if len(files) < 2:
                raise IrEnvError(f"{folder}: holds one image; a split needs two at least. Add images or use split='all'")
            by_hash = sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest())
            heldout = set(by_hash[: max(1, round(len(by_hash) / 5))])
            files = {name: path for name, path in files.items() if (name in heldout) == (split == "heldout")}
        super().__init__(files)


def load_photos(spec: str | Path | Photos, split: Split = "all") -> Photos:
    """``"builtin"``, a folder, or a collection as it is."""
    if isinstance(spec, Photos):
        return spec
    return BuiltinPhotos(split) if spec == "builtin" else FolderPhotos(spec, split)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)


def _packaged_file(path: str) -> Path:
    """A data file inside an installed package, found without importing the package."""
    import importlib.util

    package, _, rest = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise IrEnvError(f"the built-in photographs come with the package {package!r}, which is not installed")
    return Path(spec.origin).parent / rest
