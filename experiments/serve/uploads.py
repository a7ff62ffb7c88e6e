"""Photographs as they come in: written to a file of the service's own as they arrive, and looked at before anything decodes them."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from experiments.serve.formats import FORMATS
from experiments.serve.limits import Limits, Refused, megabytes

NAMES = "JPEG, PNG, TIFF, WebP, AVIF, JPEG 2000, GIF, BMP"
HEIC = (b"heic", b"heix", b"mif1", b"heim", b"hevc")
BODIES = ("image/", "application/octet-stream", "application/x-www-form-urlencoded")
"""Types of a body that is the photograph itself; the last is what curl says of any."""
PART = 64 << 10


@dataclass(frozen=True)
class Upload:
    """A photograph that was taken."""

    path: Path
    suffix: str
    width: int
    height: int
    size: int
    """In bytes."""


async def receive(request: Request, path: Path, limits: Limits) -> None:
    """Write the photograph of a request to a file: the body, or the field ``photo`` of a form. No name that the client gives is used.

    Raises:
        Refused: it holds no photograph, or too large a one.
    """
    kind = request.headers.get("content-type", "application/octet-stream").lower()
    size = 0
    with path.open("wb") as file:
        if kind.startswith("multipart/form-data"):
            try:
                async with request.form(max_files=1, max_fields=0, max_part_size=PART) as form:
                    photo = form.get("photo")
                    if not isinstance(photo, UploadFile):
                        raise Refused(422, "the form holds no file in the field `photo`")
                    while part := await photo.read(PART):
                        size += file.write(part)
            except (MultiPartException, AssertionError, ValueError, KeyError) as error:
                raise Refused(400, f"the form cannot be read: {getattr(error, 'message', error)}") from None
            except Exception as error:  # Starlette turns what it finds into an answer of its own
                if isinstance(error, Refused) or not hasattr(error, "detail"):
                    raise
                raise Refused(400, f"the form cannot be read: {error.detail}") from None
        elif kind.startswith(BODIES):
            async for part in request.stream():
                size += file.write(part)
        else:
            raise Refused(
                415, f"a body of type {kind[:80]!r} is no photograph: send the file itself as image/*, or a form with the field `photo`"
            )
    if size == 0:
        raise Refused(422, "there is no photograph in the request: send the file itself, or a form with the field `photo`")
    if size > limits.max_bytes:
        raise Refused(413, f"the file is larger than {megabytes(limits.max_bytes)}: save it smaller, or raise --max-megabytes")


def inspect(path: Path, limits: Limits) -> Upload:
    """What kind of photograph a file holds, by its head alone.

    Raises:
        Refused: none that is taken, or one of too many pixels.
    """
    from PIL import Image

    with contextlib.suppress(ImportError):
        import pillow_heif  # pyrefly: ignore[missing-import]  # of an extra

        pillow_heif.register_heif_opener()
    Image.init()
    size = path.stat().st_size
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[kind for kind in FORMATS if kind in Image.OPEN]) as image:
            kind, (width, height) = image.format or "", image.size
    except Image.DecompressionBombError:
        raise Refused(413, _too_many(limits)) from None
    except Exception:
        kind, (width, height) = "TIFF", _tiff_size(path)
    if not width:
        raise Refused(415, _unknown(path))
    if width * height > limits.max_pixels:
        raise Refused(413, _too_many(limits))
    return Upload(path, FORMATS[kind], width, height, size)


def _too_many(limits: Limits) -> str:
    return f"the photograph has more than {limits.max_pixels / 1e6:g} million pixels: shrink it, or raise --max-megapixels"


def _unknown(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(16)
    if head[4:8] == b"ftyp" and head[8:12] in HEIC:
        return "HEIC is read by pillow-heif, which is not installed here: `pip install 'ir-env[heic]'`"
    return f"this is no photograph of a kind that is taken ({NAMES})"


def _tiff_size(path: Path) -> tuple[int, int]:
    """Of a TIFF that Pillow cannot open, such as one of three floats per pixel, which OpenCV can; zeros if it is none."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            head = file.read(8)
            if head[:4] not in (b"II*\0", b"MM\0*"):
                return 0, 0
            tags = ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return int(tags[256]), int(tags[257])
    except Exception:
        return 0, 0
