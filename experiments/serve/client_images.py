"""The images that a client names: those it sends, those that tools made for it, and files below one folder.

What a client says is not trusted. It is measured before it is decoded, only formats that Pillow decodes by itself are opened (none that
starts a program, as PostScript does), and no path leaves the folder.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.serve.formats import FORMATS
from ir_env.image_files import Photograph, as_array, on_white, open_heif, read_photograph, write_photograph
from ir_env.images import ImageError
from tool_actors.cache import ByteLRU

__all__ = ["ClientImages", "Kept", "Limits", "as_uint8", "encoded", "preview"]

PREVIEW = 1024
"""Longest side, in pixels, of the pictures that are shown: what vision-language models look at, and small enough for a message."""


@dataclass(frozen=True)
class Limits:
    """How much a client may ask for."""

    bytes: int = 32 << 20
    """Of an image file, as it is sent or lies in the folder."""
    pixels: int = 25_000_000
    """Of an image, before and after a tool."""
    kept: int = 1 << 30
    """Bytes of the images that are remembered; the oldest are forgotten."""

    def check_pixels(self, width: int, height: int, what: str) -> None:
        """Raise :class:`ImageError` if an image is too large."""
        if width * height > self.pixels:
            raise ImageError(f"{what} has {width}x{height} pixels, and at most {self.pixels:,} are taken. Shrink it first.")


@dataclass(frozen=True, eq=False)
class Kept:
    """An image, and the tools that made it of one that a client gave."""

    photograph: Photograph
    plan: tuple[str, ...] = ()


class ClientImages:
    """Finds what a client means by an image.

    Args:
        root: the folder whose files may be named; None: no path is opened.
        limits: of sizes.
    """

    def __init__(self, root: str | Path | None = None, limits: Limits = Limits()):
        if root is not None and not Path(root).is_dir():
            raise ImageError(f"{root}: no such folder. Give one whose images may be opened.")
        self.root = None if root is None else Path(root).resolve()
        self.limits = limits
        self._kept = ByteLRU(limits.kept)

    def keep(self, photograph: Photograph, plan: tuple[str, ...] = ()) -> str:
        """Remember an image; returns its id, which nobody guesses."""
        name = f"image-{secrets.token_urlsafe(9)}"
        alpha = 0 if photograph.alpha is None else photograph.alpha.nbytes
        self._kept.put(name, Kept(photograph, plan), photograph.pixels.nbytes + alpha)
        return name

    def find(self, image: str) -> Kept:
        """The image that a client names: by id, as a data URL or base64, or by its path in the folder.

        Raises:
            ImageError: it is none of these, too large, or unreadable.
        """
        kept = self._kept.get(image)
        if kept is not None:
            return kept
        if image.startswith("image-") and "." not in image:
            raise ImageError(f"{image[:40]}: no such image, or it is forgotten by now. Send it again.")
        head, comma, content = image.partition(",")
        if comma and head.startswith("data:") and head.endswith(";base64"):
            return Kept(self._decoded(content))
        if self.root is not None and len(image) <= 4096:
            return Kept(self._opened(image))
        if len(image) > 256:
            return Kept(self._decoded(image))
        raise ImageError(f"{image!r} is no image: send its data in base64, or the id of an image{self._folder_told()}.")

    def place(self, path: str) -> Path:
        """The place that a client's path means; raises :class:`ImageError` if that is not below the folder."""
        if self.root is None:
            raise ImageError("no file is opened here: the server was started without --root")
        from mcp.shared.path_security import PathEscapeError, safe_join

        try:
            return safe_join(self.root, path)
        except (PathEscapeError, OSError, ValueError, RuntimeError):  # links in a circle, names that no system takes
            raise ImageError(f"{path!r} is not below the folder that the server was started with: give a path relative to it") from None

    def _opened(self, path: str) -> Photograph:
        place = self.place(path)
        try:
            there = place.is_file()
            size = place.stat().st_size if there else 0
        except (OSError, ValueError):
            there = False
        if not there:
            raise ImageError(f"{path!r}: no such file in the folder that the server was started with")
        if size > self.limits.bytes:
            raise ImageError(f"{path!r} has {size:,} bytes, and at most {self.limits.bytes:,} are taken")
        return self._read(place.read_bytes(), repr(path))

    def _decoded(self, content: str) -> Photograph:
        if len(content) > self.limits.bytes * 4 // 3 + 4:
            raise ImageError(f"the image has about {len(content) * 3 // 4:,} bytes, and at most {self.limits.bytes:,} are taken")
        try:
            return self._read(base64.b64decode(content, validate=True), "the image")
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"the image is not base64 ({error})") from None

    def _read(self, data: bytes, name: str) -> Photograph:
        suffix = self._measured(data, name)
        # as a file, since what reads at full depth reads files
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"image{suffix}")
            path.write_bytes(data)
            try:
                return read_photograph(path)
            except ImageError as error:
                raise ImageError(str(error).replace(str(path), name)) from None

    def _measured(self, data: bytes, name: str) -> str:
        """The suffix of the format, of data that are an image of allowed size, by its header alone."""
        from PIL import Image

        with contextlib.suppress(ImageError):  # of an extra that is not installed
            open_heif(Path("image.heic"))
        Image.init()
        try:
            with Image.open(io.BytesIO(data), formats=[kind for kind in FORMATS if kind in Image.OPEN]) as file:
                size, kind = file.size, file.format
        except Image.DecompressionBombError as error:
            raise ImageError(f"{name}: {error}") from None
        except Exception:
            raise ImageError(f"{name} is no readable image of the formats {', '.join(FORMATS)}") from None
        self.limits.check_pixels(*size, name)
        return FORMATS[kind or "PNG"]

    def _folder_told(self) -> str:
        return "" if self.root is None else ", or a path in the folder that the server was started with"


def as_uint8(photograph: Photograph) -> np.ndarray:
    """uint8 (H, W, 3), with transparency laid on white."""
    array = as_array(photograph.pixels, photograph, depth=8, keep_grey=False)
    return array if photograph.alpha is None else on_white(array)


def preview(photograph: Photograph, longest: int = PREVIEW) -> np.ndarray:
    """A picture of at most so many pixels a side, uint8 (h, w, 3)."""
    import cv2

    pixels = as_uint8(photograph)
    shrink = longest / max(pixels.shape[:2])
    return pixels if shrink >= 1 else cv2.resize(pixels, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)


def encoded(photograph: Photograph, software: str, history: str) -> tuple[bytes, str]:
    """The image as a file, with its metadata, and the type of the file: PNG, or JPEG if the original was of a kind that loses something."""
    suffix = "png" if photograph.lossless or photograph.alpha is not None else "jpg"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"image.{suffix}")
        write_photograph(path, photograph.pixels, photograph, software=software, history=history)
        return path.read_bytes(), "jpeg" if suffix == "jpg" else suffix
