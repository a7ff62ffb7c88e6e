"""Image files in and out, with errors that say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tool_actors.errors import IrEnvError

MIN_SIDE = 16
"""The shortest side, in pixels, on which every tool and the degradations are defined."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


class ImageError(IrEnvError):
    """An image file that cannot be read, written or used."""


def load_image(path: str | Path) -> np.ndarray:
    """Read a photograph.

    Grey images become RGB, transparency is laid on white, 16 bits become 8, and the camera's orientation tag is applied.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ImageError: the file is missing, unreadable, truncated, or smaller than 16 pixels a side.
    """
    from PIL import Image, ImageOps

    path = Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ImageError(f"{path}: {what}. Give the path of an image file ({', '.join(sorted(SUFFIXES))}).")
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I") or image.mode == "F":
                array = np.asarray(image, np.float64)
                top = 65535.0 if array.max() > 255 else 255.0
                image = Image.fromarray(np.clip(array / top * 255.0, 0, 255).round().astype(np.uint8))
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            pixels = np.array(image.convert("RGB"))
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}. Cut or shrink the image first.") from error
    except Exception as error:
        raise ImageError(f"{path}: not a readable image ({error}). Is the file complete? Open and save it again.") from error
    return check_size(pixels, str(path))


def check_size(pixels: np.ndarray, name: str) -> np.ndarray:
    """The image itself, or :class:`ImageError` if a side is below :data:`MIN_SIDE`."""
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels is too small; both sides need at least {MIN_SIDE}. Use a larger image.")
    return pixels


def save_image(path: str | Path, pixels: np.ndarray) -> Path:
    """Write a uint8 (H, W, 3) RGB image; the format follows the suffix; the file appears whole or not at all."""
    from PIL import Image

    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        Image.fromarray(pixels).save(temporary)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        temporary.unlink(missing_ok=True)
        raise ImageError(f"{path}: cannot be written ({error}). Check the suffix, free space and permissions.") from error
    return path


def make_folder(folder: str | Path) -> Path:
    """Create a folder for output, or :class:`ImageError`."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".ir_env_probe"
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
