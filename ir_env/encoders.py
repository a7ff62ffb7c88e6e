"""What Pillow does not write: images of 16 bits or floats, and TIFF with its EXIF in full."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["encode", "tiff"]


def encode(array: np.ndarray, kind: str, settings: Mapping[str, Any]) -> bytes:
    """A file.

    Args:
        array: uint16, or for TIFF uint8 or float32 too; (H, W) grey, or (H, W, C): grey or RGB, with alpha if C is 2 or 4.
        kind: ``PNG``, ``TIFF`` or ``JPEG2000``.
        settings: of the metadata, as Pillow's ``save`` takes them.
    """
    if kind == "TIFF":
        return tiff([(array, settings)])
    if kind == "JPEG2000":
        array = _without_grey_alpha(array)
    array = np.ascontiguousarray(array)
    return {"PNG": _png, "JPEG2000": _jpeg2000}[kind](array, settings)


def _without_grey_alpha(array: np.ndarray) -> np.ndarray:
    """RGB with alpha in place of grey with alpha, which few programs read in TIFF and JPEG 2000."""
    return array[..., [0, 0, 0, 1]] if array.ndim == 3 and array.shape[2] == 2 else array


def _png(array: np.ndarray, settings: Mapping[str, Any]) -> bytes:
    """The chunks of metadata that Pillow writes beside one pixel, and pixels of 16 bits."""
    from PIL import Image

    small = io.BytesIO()
    Image.new("RGB", (1, 1)).save(small, "PNG", **settings)
    before = [chunk for kind, chunk in _chunks(small.getvalue()) if kind not in (b"IHDR", b"IDAT", b"IEND")]
    height, width = array.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[array.shape[2] if array.ndim == 3 else 1]
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    # each row less the pixel on its left (the filter "Sub"), which compresses far better
    step = rows.shape[1] // width
    filtered = np.ones((height, rows.shape[1] + 1), np.uint8)
    filtered[:, 1:] = rows
    filtered[:, 1 + step :] -= rows[:, :-step]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", header),
            *before,
            _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 3)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunks(png: bytes):
    start = 8
    while start < len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        yield kind, png[start : start + length + 12]
        start += length + 12


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def tiff(pages: Sequence[tuple[np.ndarray, Mapping[str, Any]]]) -> bytes:
    """A TIFF of one page or more, each an array and settings as of :func:`encode`."""
    data, link = bytearray(b"II*\x00"), 4
    data += bytes(4)
    for array, settings in pages:
        tags, strip = _tiff_page(np.ascontiguousarray(_without_grey_alpha(array)), settings)
        data += bytes(len(data) % 2)
        data[link : link + 4] = struct.pack("<I", len(data))
        link = len(data) + 2 + 12 * len(tags)  # behind the entries stands where the next page is
        data += tags.tobytes(len(data)) + strip
    return bytes(data)


def _tiff_page(array: np.ndarray, settings: Mapping[str, Any]):
    """The tags, and the one strip behind them: the EXIF block is a TIFF already, and wants but the tags of the layout."""
    from PIL import Image
    from PIL.TiffImagePlugin import IFDRational, ImageFileDirectory_v2

    exif = settings.get("exif")
    if not isinstance(exif, Image.Exif):
        data, exif = exif, Image.Exif()
        if data:
            exif.load(data)
    height, width = array.shape[:2]
    channels = array.shape[2] if array.ndim == 3 else 1
    whole = array.dtype.kind == "u"
    values = array.reshape(height, width, channels)
    if whole:
        values = values.copy()
        values[:, 1:] -= array.reshape(height, width, channels)[:, :-1]
    strip = zlib.compress(values.astype(array.dtype.newbyteorder("<")).tobytes(), 3)
    layout = {
        256: width,
        257: height,
        258: (array.itemsize * 8,) * channels,
        259: 8,  # deflate
        262: 2 if channels >= 3 else 1,
        273: 0,  # Pillow makes it the place behind the tags
        277: channels,
        278: height,
        279: len(strip),
        317: 2 if whole else 1,  # each pixel less that on its left
        339: (1 if whole else 3,) * channels,
    }
    if channels in (2, 4):
        layout[338] = 2  # alpha that the colours are not multiplied by
    if settings.get("icc_profile"):
        layout[34675] = settings["icc_profile"]
    if settings.get("dpi"):
        layout |= {282: IFDRational(settings["dpi"][0]), 283: IFDRational(settings["dpi"][1]), 296: 2}
    kept = {tag: exif.get_ifd(tag) if tag in (0x8769, 0x8825) else value for tag, value in exif.items()}
    tags = ImageFileDirectory_v2(prefix=b"II")
    for tag, value in {**kept, **layout}.items():
        tags[tag] = value
    tags.tagtype[34675] = 7
    return tags, strip


def _jpeg2000(array: np.ndarray, settings: Mapping[str, Any]) -> bytes:
    import cv2

    if array.ndim == 3 and array.shape[2] >= 3:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]
    done, data = cv2.imencode(".jp2", np.ascontiguousarray(array), [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])
    if not done:
        raise ValueError("OpenCV cannot write it as JPEG 2000")
    return data.tobytes()
