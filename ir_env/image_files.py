"""Photographs in files: pixels at the depth they have, and beside them what is not pixels (transparency, profile, EXIF, resolution).

>>> photograph = read_photograph("a.tif")                        # 16 bits stay 16 bits: float32 in [0, 1]
>>> write_photograph("b.tif", restore(photograph.pixels), photograph)

Pillow reads and writes. What it would cut to 8 bits, OpenCV decodes, and :mod:`ir_env.encoders` writes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.images import SUFFIXES, ImageError, check_size, written_whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DEFAULT_QUALITY",
    "Photograph",
    "as_array",
    "on_white",
    "open_heif",
    "photograph_of",
    "read_photograph",
    "software_of",
    "writable",
    "write_photograph",
]

HEIF = frozenset({".heic", ".heif", ".hif"})
DEFAULT_QUALITY = 95
"""Of the formats that lose something."""
EXIF_IFD, GPS_IFD, ORIENTATION, SOFTWARE, HISTORY, XMP = 0x8769, 0x8825, 0x0112, 0x0131, 0x9213, 700
"""Tags of EXIF. The history (TIFF/EP's ImageHistory) is where it is told what was done to an image."""
WIDTH_TAG, HEIGHT_TAG, MAKER_NOTE = 0xA002, 0xA003, 0x927C
STRUCTURE = frozenset({254, 255, *range(256, 267), *range(273, 274), *range(277, 282), 284, 317, 320, *range(322, 326), 330, 338, 339})
STRUCTURE |= {340, 341, 347, *range(512, 522), *range(529, 533), XMP, 34675, 34377, 33723}
"""Tags of TIFF that say how the pixels are laid out, or that are kept elsewhere."""
ALPHA = frozenset({"PNG", "TIFF", "WEBP", "AVIF", "JPEG2000", "HEIF", "GIF"})
EXIF = frozenset({"JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF"})
DEPTH = {"PNG": 16, "JPEG2000": 16, "TIFF": 32}
"""Bits per channel of the formats that hold more than 8; 32 are floats."""
OVERSHOOT = 1e-3
"""By which a float image may leave [0, 1]: resampling does."""


@dataclass(frozen=True)
class Metadata:
    """What a file holds beside its pixels."""

    exif: bytes = b""
    """Without the orientation, which was applied, and without the thumbnail, which shows the old pixels."""
    icc: bytes = b""
    xmp: bytes = b""
    dpi: tuple[float, float] | None = None
    text: Mapping[str, str] = field(default_factory=dict)
    """Of PNG, by keyword."""
    comment: bytes = b""
    """Of JPEG."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """An image as tools want it, and what it takes to give it back as it was."""

    pixels: np.ndarray
    """RGB (H, W, 3), upright: uint8, or float32 in [0, 1] where the file holds more than 8 bits per channel."""
    depth: int = 8
    """Bits per channel: 8, 16, or 32 for floats."""
    alpha: np.ndarray | None = None
    """(H, W), of the type of the pixels; 0 is transparent."""
    grey: bool = False
    lossless: bool = True
    """False if the file is of a kind that loses something, as far as it tells."""
    metadata: Metadata = Metadata()
    notes: tuple[str, ...] = ()
    """What the file holds and this does not."""


# -- reading -------------------------------------------------------------------------------------------------------------------------


def read_photograph(path: str | Path) -> Photograph:
    """Read a photograph at its own depth, upright, in sRGB.

    A colour profile is applied where there are 8 bits per channel, and kept with the file otherwise. Float images are in [0, 1].

    Raises:
        ImageError: the file is missing, unreadable, truncated, smaller than 16 pixels a side, or larger than memory.
    """
    from PIL import Image

    path = Path(path)
    _check_there(path)
    try:
        photograph = _read(path)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}. Cut or shrink the image first.") from error
    except MemoryError as error:
        raise ImageError(f"{path}: the image does not fit into memory. Cut or shrink it first.") from error
    except Exception as error:
        raise ImageError(f"{path}: not a readable image ({error}). Is the file complete? Open and save it again.") from error
    check_size(photograph.pixels, str(path))
    return photograph


def photograph_of(image: np.ndarray | Image.Image | str | Path) -> Photograph:
    """A photograph from a path, an image of Pillow, or an array: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8, uint16, or float in
    [0, 1].

    Raises:
        ImageError: it is none of these.
    """
    if isinstance(image, str | Path):
        return read_photograph(image)
    if not isinstance(image, np.ndarray):
        return _of_pillow(image, "the image")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image must be an array of shape (H, W), (H, W, 3) or (H, W, 4); this is {image.shape}")
    photograph = _of_array(image, "the array")
    check_size(photograph.pixels, "the array")
    return photograph


def software_of(path: str | Path) -> str:
    """The software that a file says it was written by; empty if it says nothing, or cannot be read."""
    from PIL import Image

    try:
        if not Path(path).is_file():  # a pipe would be waited for
            return ""
        open_heif(Path(path))
        with Image.open(path) as file:
            return str(file.getexif().get(SOFTWARE) or file.info.get("Software") or _comment(file).decode("utf-8", "replace"))
    except Exception:
        return ""


def _check_there(path: Path) -> None:
    try:
        there = path.is_file()
        empty = there and path.stat().st_size == 0
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise ImageError(f"{path}: {error.strerror}. Give a path that can be opened.") from error
    if not there:
        what = "a folder" if path.is_dir() else "no regular file" if path.exists() else "no such file"
        raise ImageError(f"{path}: {what}. Give the path of an image file ({', '.join(sorted(SUFFIXES))}).")
    if empty:
        raise ImageError(f"{path}: the file is empty. Copy it again from where it came from.")


def open_heif(path: Path) -> None:
    """Let Pillow open HEIC, which it cannot by itself."""
    if path.suffix.lower() in HEIF:
        try:
            import pillow_heif  # pyrefly: ignore[missing-import]  # of an extra
        except ImportError:
            raise ImageError(
                f"{path}: HEIC is read by pillow-heif, which is not installed. `pip install 'ir-env[heic]'` does it."
            ) from None
        pillow_heif.register_heif_opener()


def _read(path: Path) -> Photograph:
    from PIL import Image

    open_heif(path)
    try:
        file = Image.open(path)
    except Image.UnidentifiedImageError:
        array = _decoded(path)  # such as float RGB in TIFF, which Pillow does not know
        if array is None:
            raise
        return _of_array(array, str(path), notes=("its metadata cannot be read",))
    with file:
        return current_frame(file, path, _first_of(file))


def current_frame(file: Image.Image, path: Path, notes: list[str]) -> Photograph:
    """The image at which an open file stands, by itself the first; ``notes`` are what is known of the file."""
    depth = _depth(file, path)
    if depth > 8 and file.mode not in ("F", "I") and file.format in DEPTH and (array := _decoded(path, file.tell())) is not None:
        orientation = file.getexif().get(ORIENTATION, 1)
        return _of_array(_upright(array, orientation), str(path), _metadata(file), [*notes, *_profile_notes(dict(file.info))])
    told = [f"its {depth} bits per channel are read as 8"] if depth > 8 and file.mode not in ("F", "I") else []
    return _of_pillow(file, str(path), [*told, *notes])


def frame_count(file: Image.Image) -> int:
    """How many images a file shows; those behind a camera's photograph (previews, a depth map) do not count."""
    return 1 if file.format in ("MPO", "HEIF") else getattr(file, "n_frames", 1)


def _first_of(file: Image.Image) -> list[str]:
    count = frame_count(file)
    return [] if count == 1 else [f"it holds {count} {'pages' if file.format == 'TIFF' else 'frames'}: this is the first"]


def _depth(file: Image.Image, path: Path) -> int:
    """Bits per channel in the file, whatever Pillow makes of them."""
    with open(path, "rb") as opened:
        head = opened.read(4096)
    if file.format == "PNG":
        return head[24]
    if file.format == "TIFF":
        return max(np.atleast_1d(getattr(file, "tag_v2", {}).get(258, 1)))
    if file.format == "JPEG2000" and (start := head.find(b"\xff\x4f\xff\x51")) >= 0:
        return (head[start + 42] & 0x7F) + 1
    if file.format == "AVIF" and (start := head.find(b"pixi")) >= 0:
        return head[start + 9]
    return 8


def _decoded(path: Path, page: int = 0) -> np.ndarray | None:
    """By OpenCV: (H, W) or (H, W, C), RGB first."""
    import cv2

    data = np.fromfile(path, np.uint8)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what it cannot read is said by us
    if page:
        _, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
        array = pages[0] if pages else None
    else:
        array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if array is not None and array.ndim == 3 and array.shape[2] >= 3:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]
    if array is None and bytes(data[:4]) in (b"II*\0", b"MM\0*"):
        import tifffile

        with suppress(Exception):  # it knows more kinds, such as floats of 16 bits
            array = tifffile.imread(path, key=page)
    return array


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    turns = {
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: np.rot90,
    }
    return turns[orientation](array) if orientation in turns else array


def _of_array(array: np.ndarray, name: str, metadata: Metadata = Metadata(), notes: Any = ()) -> Photograph:
    depth = {"uint8": 8, "uint16": 16}.get(array.dtype.name, 32)
    if depth > 8:
        array = _to_float(array, name)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    grey = array.ndim == 2
    colours = np.repeat(array[..., None], 3, 2) if grey else array[..., :3]
    alpha = np.ascontiguousarray(array[..., 3]) if not grey and array.shape[2] == 4 else None
    return Photograph(np.ascontiguousarray(colours), depth, alpha, grey, True, metadata, tuple(notes))


def _to_float(array: np.ndarray, name: str) -> np.ndarray:
    """float32 in [0, 1]."""
    if array.dtype == np.uint16:
        return array.astype(np.float32) / np.float32(65535)
    if array.dtype.kind not in "fiu":
        raise ImageError(f"{name}: values of type {array.dtype} are no image. Use uint8, uint16, or floats in [0, 1].")
    low, high = float(array.min()), float(array.max())
    if np.isfinite([low, high]).all():
        if low >= -OVERSHOOT and high <= 1 + OVERSHOOT and array.dtype.kind == "f":
            return np.clip(array, 0, 1).astype(np.float32)
        # whole numbers in a wide type: 8 or 16 bits that some program wrote so
        if low >= 0 and high <= 65535 and np.array_equal(array, np.rint(array)):
            return (array / (255.0 if high <= 255 else 65535.0)).astype(np.float32)
    raise ImageError(f"{name}: its values span {low:g} to {high:g}, and a float image is read in [0, 1]. Scale it first.")


def _of_pillow(file: Image.Image, name: str, notes: Any = ()) -> Photograph:
    from PIL import ImageOps

    notes = list(notes)
    try:
        image = ImageOps.exif_transpose(file)
        metadata = _metadata(image, file)
        broken = bool(file.info.get("exif")) and not file.getexif()  # of JPEG Pillow hides the error
    except (SyntaxError, ValueError, struct.error):
        image, metadata, broken = file.copy(), Metadata(icc=file.info.get("icc_profile") or b""), True
    if broken:
        notes.append("its EXIF cannot be read")
    if image.mode.startswith("I") or image.mode == "F":
        array = np.asarray(image)
        return _of_array(array.astype(np.uint16) if image.mode.startswith("I;16") else array, name, metadata, notes)
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = np.array(image.getchannel("A"))
    if image.mode == "CMYK":
        notes.append("its CMYK becomes RGB")
    image, icc, told = _in_srgb(image, metadata.icc)
    lossless = file.format not in ("JPEG", "MPO", "AVIF", "HEIF") and not (file.format == "WEBP" and not _lossless_webp(file))
    return Photograph(np.array(image.convert("RGB")), 8, alpha, grey, lossless, replace(metadata, icc=icc), (*notes, *told))


def _lossless_webp(file: Image.Image) -> bool:
    try:
        with open(getattr(file, "filename", ""), "rb") as opened:
            return b"VP8L" in opened.read(4096)
    except (AttributeError, OSError):
        return False


def _in_srgb(image: Image.Image, icc: bytes) -> tuple[Image.Image, bytes, list[str]]:
    """The image in sRGB, the profile that it then needs, and what is to be said."""
    if not icc:
        return image, b"", []
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        if "srgb" in ImageCms.getProfileDescription(profile).lower() and image.mode != "CMYK":
            return image, icc, []
        if image.mode not in ("RGB", "L", "CMYK", "LAB"):
            grey = profile.profile.xcolor_space.strip() == "GRAY"
            image = image.convert("L" if grey else "RGB")
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return image, b"", [f"its colour profile cannot be used ({error})"]
    return converted or image, b"", []


def _profile_notes(info: Mapping[Any, Any]) -> list[str]:
    from PIL import ImageCms

    try:
        told = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(info["icc_profile"]))).strip()
    except Exception:
        return []
    return [] if "srgb" in told.lower() else [f"its colours stay in its profile ({told})"]


def _metadata(image: Image.Image, file: Image.Image | None = None) -> Metadata:
    file = file or image
    info = {**file.info, **image.info}
    exif = file.getexif()  # of the file: what Pillow turned is a copy, which knows no tags of TIFF
    kept = {tag: value for tag, value in exif.items() if tag not in STRUCTURE and tag != ORIENTATION}
    parts = {tag: dict(exif.get_ifd(tag)) for tag in (EXIF_IFD, GPS_IFD) if tag in exif}
    xmp = info.get("xmp", b"")
    text = {key: str(value) for key, value in getattr(file, "text", {}).items() if key != "XML:com.adobe.xmp"}
    return Metadata(
        _exif_bytes({**kept, **parts}),
        info.get("icc_profile") or b"",
        xmp.encode() if isinstance(xmp, str) else xmp,
        (float(info["dpi"][0]), float(info["dpi"][1])) if "dpi" in info and min(info["dpi"]) > 1 else None,
        text,
        _comment(file),
    )


def _comment(file: Image.Image) -> bytes:
    comment = file.info.get("comment", b"")
    return comment.encode() if isinstance(comment, str) else bytes(comment)


def _exif_bytes(tags: Mapping[int, Any]) -> bytes:
    """EXIF of those tags that can be written: cameras write a few that no standard knows."""
    from PIL import Image

    def exif_of(some: Mapping[int, Any]) -> bytes:
        exif = Image.Exif()
        for tag, value in some.items():
            exif[tag] = value
        return exif.tobytes() if some else b""

    try:
        return exif_of(tags)
    except Exception:
        good: dict[int, Any] = {}
        for tag, value in tags.items():
            rows = {key: each for key, each in value.items() if _writes(exif_of, {tag: {key: each}})} if isinstance(value, dict) else value
            if _writes(exif_of, {tag: rows}):
                good[tag] = rows
        return exif_of(good)


def _writes(write, tags: Mapping[int, Any]) -> bool:
    try:
        write(tags)
    except Exception:
        return False
    return True


# -- writing -------------------------------------------------------------------------------------------------------------------------


def writable(suffix: str) -> str:
    """Pillow's name of the format that a suffix stands for; raises :class:`ImageError` if there is none that can be written."""
    from PIL import Image

    open_heif(Path(f"x{suffix}"))
    kind = Image.registered_extensions().get(suffix.lower())
    if kind not in Image.SAVE:
        raise ImageError(
            f"{suffix or 'no suffix'}: cannot be written (no format has this suffix). Choose one of {', '.join(sorted(SUFFIXES))}."
        )
    return kind


def write_photograph(
    path: str | Path,
    pixels: np.ndarray,
    source: Photograph,
    quality: int | None = None,
    keep_grey: bool = False,
    software: str = "",
    history: str = "",
) -> list[str]:
    """Write pixels with all that the source holds beside its own; the format follows the suffix; the file appears whole or not at all.

    Args:
        path: the file.
        pixels: RGB, uint8 or float32 in [0, 1]; of any size, to which the source's transparency is brought.
        source: gives depth, transparency and metadata.
        quality: 1 to 100, of the formats that lose something; 95 by default, and without loss where a format can and the source was so.
        keep_grey: write a grey image if the source was one.
        software, history: what wrote the file, and what was done to it.

    Returns:
        What the format cannot hold.

    Raises:
        ImageError: it cannot be written.
    """
    path = Path(path)
    array, kind, settings, notes = to_write(path, pixels, source, quality, keep_grey, software, history)
    with written_whole(path) as file:
        if array.dtype != np.uint8 or kind == "TIFF":
            from ir_env.encoders import encode

            file.write(encode(array, kind, settings))
        else:
            from PIL import Image

            Image.fromarray(array).save(file, kind, **settings)
    return notes


def to_write(
    path: Path, pixels: np.ndarray, source: Photograph, quality: int | None, keep_grey: bool, software: str, history: str
) -> tuple[np.ndarray, str, dict[str, Any], list[str]]:
    """What :func:`write_photograph` writes: the array, the format, the settings of Pillow's ``save``, and what the format cannot hold."""
    try:
        kind = writable(path.suffix)
    except ImageError as error:
        raise ImageError(f"{path.name}: {error}") from None
    notes = []
    depth = min(source.depth, DEPTH.get(kind, 8))
    if depth < source.depth:
        notes.append(f"{kind} holds {depth} of its {source.depth} bits per channel")
    array = as_array(pixels, source, depth, keep_grey)
    if array.shape[-1] in (2, 4) and array.ndim == 3 and kind not in ALPHA:
        array = on_white(array)
        notes.append(f"{kind} holds no transparency, which is laid on white")
    metadata = source.metadata
    has = {"EXIF": metadata.exif, "colour profile": metadata.icc, "resolution": metadata.dpi}
    if kind not in EXIF and (lost := [name for name, value in has.items() if value and not (name == "resolution" and kind == "BMP")]):
        notes.append(f"{kind} holds no {', no '.join(lost)}")
    settings, lost = _settings(kind, array, source, quality, software, history)
    return array, kind, settings, notes + lost


def as_array(pixels: np.ndarray, source: Photograph, depth: int | None = None, keep_grey: bool = True) -> np.ndarray:
    """Pixels (H, W, 3) as an array of the source's kind: uint8, uint16 or float32; (H, W) if it is grey; with its transparency."""
    depth = depth or source.depth
    planes = [_luma(pixels, source)[..., None] if source.grey and keep_grey else pixels]
    if source.alpha is not None:
        planes.append(_resized(source.alpha, pixels.shape[:2])[..., None])
    planes = [_at_depth(plane, depth) for plane in planes]
    array = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
    return np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array)


def _luma(pixels: np.ndarray, source: Photograph) -> np.ndarray:
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    # the three are equal where no tool made a difference, and then no rounding may
    if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
        return pixels[..., 0]
    luma = pixels.astype(np.float32) @ weights
    return np.rint(luma).astype(np.uint8) if pixels.dtype == np.uint8 else luma


def _resized(alpha: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if alpha.shape == size:
        return alpha
    import cv2

    smaller = size[0] < alpha.shape[0]
    resized = cv2.resize(alpha, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    return resized if alpha.dtype == np.uint8 else np.clip(resized, 0, 1)


def _at_depth(plane: np.ndarray, depth: int) -> np.ndarray:
    if depth == 8:
        return plane if plane.dtype == np.uint8 else np.rint(plane * 255.0).astype(np.uint8)
    as_float = plane.astype(np.float32) / 255.0 if plane.dtype == np.uint8 else plane
    # in double: float32 cannot tell whether half of the last of 16 bits is rounded up
    return np.rint(as_float * np.float64(65535)).astype(np.uint16) if depth == 16 else as_float.astype(np.float32)


def on_white(array: np.ndarray) -> np.ndarray:
    """A uint8 array with its last channel, transparency, laid on white."""
    colours, alpha = array[..., :-1].astype(np.float32), array[..., -1:].astype(np.float32) / 255.0
    laid = np.rint(colours * alpha + 255.0 * (1 - alpha)).astype(np.uint8)
    return np.ascontiguousarray(laid[..., 0] if laid.shape[2] == 1 else laid)


def _settings(
    kind: str, array: np.ndarray, source: Photograph, quality: int | None, software: str, history: str
) -> tuple[dict[str, Any], list[str]]:
    """What Pillow's ``save`` is told, and what had to be left out."""
    metadata, settings, notes = source.metadata, {}, []
    if kind in EXIF:
        settings["exif"], lost = _exif_for(kind, metadata.exif, array.shape[:2], software, history)
        notes += lost
        settings["icc_profile"] = metadata.icc or None
        if metadata.xmp and kind != "PNG":
            settings["xmp"] = metadata.xmp
    if metadata.dpi and kind in ("JPEG", "PNG", "TIFF", "BMP"):
        settings["dpi"] = metadata.dpi
    if kind == "JPEG":
        settings |= {"quality": quality or DEFAULT_QUALITY, "subsampling": 0}
        settings |= {"comment": metadata.comment} if metadata.comment else {}
    elif kind in ("WEBP", "AVIF", "HEIF"):
        settings["quality"] = quality or DEFAULT_QUALITY
        if kind == "WEBP":
            settings |= {"exact": True, "lossless": source.lossless and not quality}
    elif kind == "PNG":
        settings |= {"pnginfo": _png_text(metadata, software, history), "compress_level": 3}
    elif kind == "TIFF":
        xmp = settings.pop("xmp", None)
        if xmp:
            exif = _exif(settings["exif"])
            exif[XMP] = xmp
            settings["exif"] = exif
    elif kind == "JPEG2000":
        settings["comment"] = " ".join(filter(None, (software, history)))
    return {key: value for key, value in settings.items() if value not in (None, b"")}, notes


def _exif(data: bytes):
    from PIL import Image

    exif = Image.Exif()
    if data:
        exif.load(data)
    return exif


def _exif_for(kind: str, data: bytes, size: tuple[int, int], software: str, history: str) -> tuple[bytes, list[str]]:
    """The source's EXIF with the new size and history."""
    exif = _exif(data)
    tags = {tag: exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else value for tag, value in exif.items()}
    if software:
        tags[SOFTWARE] = software
    if history:
        tags[HISTORY] = history.encode("ascii", "replace").decode()
    detail = dict(tags.get(EXIF_IFD, {}))
    detail |= {tag: side for tag, side in ((WIDTH_TAG, size[1]), (HEIGHT_TAG, size[0])) if tag in detail}
    if detail:
        tags[EXIF_IFD] = detail
    written = _exif_bytes(tags)
    if kind == "JPEG" and len(written) > 65500:  # a segment of JPEG holds no more
        detail.pop(MAKER_NOTE, None)
        written = _exif_bytes({**tags, EXIF_IFD: detail})
        if len(written) > 65500:
            return _exif_bytes({SOFTWARE: software, HISTORY: history}), ["its EXIF is larger than JPEG can hold"]
        return written, ["the camera's own notes in EXIF are larger than JPEG can hold"]
    return written, []


def _png_text(metadata: Metadata, software: str, history: str):
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    for key, value in metadata.text.items():
        if key not in ("Software", "History"):
            told.add_itxt(key, value)
    if metadata.xmp:
        told.add_itxt("XML:com.adobe.xmp", metadata.xmp.decode("utf-8", "replace"))
    for key, value in (("Software", software), ("History", history)):
        if value:
            told.add_text(key, value)
    return told
