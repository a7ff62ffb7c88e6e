"""Image files in and out, with errors that say what is wrong and what to do."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tool_actors.errors import IrEnvError

__all__ = ["MIN_SIDE", "SUFFIXES", "ImageError", "check_size", "find_images", "load_image", "make_folder", "save_image", "written_whole"]

MIN_SIDE = 16
"""The shortest side, in pixels, on which every tool and the degradations are defined."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k", ".gif"})
"""Of the files that are looked for in folders; HEIC besides, in restoration."""


class ImageError(IrEnvError):
    """An image file that cannot be read, written or used."""


def load_image(path: str | Path) -> np.ndarray:
    """Read a photograph.

    Grey images become RGB, transparency is laid on white, 16 bits and floats become 8 bits, and the camera's orientation tag and the colour
    profile are applied. :func:`ir_env.image_files.read_photograph` keeps what is lost here.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ImageError: the file is missing, unreadable, truncated, smaller than 16 pixels a side, or larger than memory.
    """
    from ir_env.image_files import as_array, on_white, read_photograph

    photograph = read_photograph(path)
    if photograph.alpha is None:
        return as_array(photograph.pixels, photograph, 8, keep_grey=False)
    return on_white(as_array(photograph.pixels, photograph, 8, keep_grey=False))


def check_size(pixels: np.ndarray, name: str) -> np.ndarray:
    """The image itself, or :class:`ImageError` if a side is below :data:`MIN_SIDE`."""
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels is too small; both sides need at least {MIN_SIDE}. Use a larger image.")
    return pixels


def save_image(path: str | Path, pixels: np.ndarray, software: str = "") -> Path:
    """Write a uint8 (H, W, 3) RGB image; the format follows the suffix; the file appears whole or not at all.

    ``software`` is what wrote it, for formats that tell.
    """
    from PIL import Image

    path = Path(path)
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise ImageError(f"{path}: cannot be written (no format has this suffix). Choose one of {', '.join(sorted(SUFFIXES))}.")
    settings = {}
    if software:
        settings["exif"] = exif = Image.Exif()
        exif[0x0131] = software
    with written_whole(path) as file:
        Image.fromarray(pixels).save(file, kind, **settings)
    return path


@contextmanager
def written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write to, which appears under its name when the block has ended without an error, and otherwise not at all.

    Its folder is made. A file that was there before stays until it is replaced.

    Raises:
        ImageError: it cannot be written, or what writes to it raised an ``OSError`` or a ``ValueError``, as Pillow does.
    """
    path = Path(path)
    # of fixed length, since beside a name of the greatest length there is no room for a suffix; no image's suffix, so that what a
    # killed process leaves is never taken for an image
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "x+b") as file:
            yield file
        temporary.replace(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be written ({error}). Check the name, free space and permissions.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(folder: str | Path) -> Path:
    """Create a folder for output, or :class:`ImageError`."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{uuid.uuid4().hex}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ImageError(f"{folder}: this folder cannot be written ({error.strerror}). Choose another with --out.") from error
    return folder


def find_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """The image files below a folder, sorted; raises :class:`ImageError` if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder.")
    walk: Iterable[Path] = folder.rglob("*") if recursive else folder.iterdir()
    found = sorted(path for path in walk if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ImageError(f"{folder}: holds no image files ({', '.join(sorted(SUFFIXES))}).")
    return found
