"""Odd photographs, of the kinds that users of restoration tools report: what `ir-env restore` makes of each, as a table.

How to run
----------
    python -m experiments.measurements.odd_files --out results/odd_files
    python -m experiments.measurements.odd_files --out results/odd_files --files FOLDER             # and files of yours
    python -m experiments.measurements.odd_files --out results/odd_files --photos FOLDER --mixed 30   # and a mixed folder, restored twice

Each file is restored by one classical tool. A row tells what was read, and what was written or why nothing was. ``--mixed`` fills a folder
with the odd files and with photographs, restores it twice by the command's own function, and fails unless the second time finds the same
photographs, makes the same results, and restores no result.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.restore import restore_all, restore_file
from experiments.restore_files import PHOTOGRAPHS, Output, find
from ir_env.datasets import BuiltinPhotos
from ir_env.image_files import read_photograph
from ir_env.images import find_images
from policies.restoration import Restorer
from tool_actors.errors import IrEnvError

PLAN = "fixed:tv.denoise"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files and the results")
    parser.add_argument("--files", type=Path, help="folder of odd files of yours, of which each is a row, too")
    parser.add_argument("--photos", type=Path, help="folder of photographs for --mixed")
    parser.add_argument("--mixed", type=int, default=0, help="photographs beside the odd files in the mixed folder")
    options = parser.parse_args(arguments)
    shutil.rmtree(options.out, ignore_errors=True)
    made = options.out / "made"
    make_all(made)
    console = Console(width=200)
    table = Table("input", "result", title=f"odd files by {PLAN}")
    output, restorer = Output(options.out / "restored", keep_grey=True, scores="off"), Restorer(PLAN, device="cpu", threads=1)
    given = sorted(path for path in options.files.iterdir() if path.suffix.lower() in PHOTOGRAPHS) if options.files else []
    for path in [*given, *sorted(made.iterdir())]:
        table.add_row(*map(printable, (path.name, result_of(path, output, restorer))))
    console.print(table)
    if options.mixed:
        twice(options.out, made, options.photos, options.mixed)
    return 0


def result_of(path: Path, output: Output, restorer: Restorer) -> str:
    """What the command makes of one file, in words."""
    found = find([str(path)], output)
    if found.errors:
        return f"error: {found.errors[0][1]}"
    if not found.jobs:
        return "; ".join(found.skipped)
    outcome = restore_file(found.jobs[0], output, restorer)
    if not outcome.line:
        return f"error: {outcome.errors[0]}"
    result = read_photograph(found.jobs[0].restored)
    height, width = result.pixels.shape[:2]
    has = [name for name in ("exif", "icc", "dpi") if getattr(result.metadata, name)]
    kind = f"{'grey' if result.grey else 'RGB'}{'' if result.alpha is None else ' with alpha'}, {result.depth} bits, {width}x{height}"
    _, _, told = outcome.line.partition(")  ")
    return "; ".join(part for part in (f"{found.jobs[0].suffix} {kind}", ", ".join(has), told, *outcome.errors) if part)


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("[", r"\[")


def twice(out: Path, made: Path, photos: Path | None, size: int) -> None:
    """Restore a mixed folder two times; raises IrEnvError unless both make the same results."""
    mixed, results = out / "mixed", out / "mixed" / "restored"
    shutil.copytree(made, mixed, symlinks=True, ignore=lambda _, names: [name for name in names if name == "pipe.png"])
    (mixed / "holiday").mkdir()
    for picture in find_images(photos)[:size] if photos else ():
        shutil.copy(picture, mixed / "holiday" / picture.name)
    seen = []
    for time in ("first", "second"):
        print(f"\n{time} time")
        output = Output(results, keep_grey=True, scores="off")
        jobs = find([str(mixed)], output).jobs
        with open(out / f"{time}.txt", "w", errors="backslashreplace") as file, contextlib.redirect_stdout(file):
            restore_all([str(mixed)], PLAN, output, 1, device="cpu", threads=1)
        # pixels, since a trace tells seconds, and an animated AVIF when it was made
        files = [path for path in sorted(results.rglob("*")) if path.is_file()]
        written = {path: None if path.suffix == ".json" else read_photograph(path).pixels.tobytes() for path in files}
        seen.append(([job.restored for job in jobs], written))
    if seen[0] != seen[1]:
        raise IrEnvError("the second time made other results than the first")
    print(f"\nboth times {len(seen[0][0])} photographs found and the same {len(seen[0][1])} files written")


# -- the files -----------------------------------------------------------------------------------------------------------------------


def make_all(folder: Path) -> None:
    """Write every odd file into a folder."""
    folder.mkdir(parents=True)
    photo = np.ascontiguousarray(BuiltinPhotos("heldout").load("chelsea")[60:188, 100:260])
    for makers in (modes, depths, metadata, broken, shapes, names, several):
        for name, write in makers(photo):
            write(str(folder / name))


def modes(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    from PIL import Image

    image = Image.fromarray(photo)
    alpha = Image.fromarray(np.linspace(0, 255, photo.shape[1]).astype(np.uint8)[None].repeat(len(photo), 0))
    with_alpha = image.copy()
    with_alpha.putalpha(alpha)
    yield "mode-1bit.png", image.convert("1").save
    yield "mode-grey.png", image.convert("L").save
    yield "mode-grey-alpha.png", with_alpha.convert("LA").save
    yield "mode-palette.png", image.quantize(64).save
    yield "mode-palette-transparent.png", lambda path: image.quantize(64).save(path, transparency=0)
    yield "mode-palette.bmp", image.quantize(16).save
    yield "mode-rgba.webp", with_alpha.save
    yield "mode-rgba.tif", with_alpha.save
    yield "mode-cmyk.jpg", image.convert("CMYK").save
    yield "mode-cmyk.tif", image.convert("CMYK").save
    yield "mode-ycbcr.tif", image.convert("YCbCr").save
    yield "mode-lab.tif", image.convert("LAB").save
    yield "mode-still.gif", image.save
    yield "mode-progressive.jpg", lambda path: image.save(path, progressive=True)
    yield "mode-4bit.png", lambda path: image.quantize(8).save(path, bits=4)


def depths(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    import cv2
    from tifffile import imwrite

    deep = photo.astype(np.uint16) * 257 + 21
    floats = photo.astype(np.float32) / 255
    yield "depth-16-grey.png", lambda path: cv2.imwrite(path, deep[..., 1])
    yield "depth-16-rgb.png", lambda path: cv2.imwrite(path, deep)
    yield "depth-16-rgba.png", lambda path: cv2.imwrite(path, np.dstack([deep, deep[..., 0]]))
    yield "depth-16-big-endian.tif", lambda path: imwrite(path, deep, byteorder=">", photometric="rgb")
    yield "depth-8-big-endian.tif", lambda path: imwrite(path, photo, byteorder=">", photometric="rgb")
    yield "depth-8-planar.tif", lambda path: imwrite(path, photo.transpose(2, 0, 1), planarconfig="separate", photometric="rgb")
    yield "depth-16-signed.tif", lambda path: imwrite(path, (deep[..., 0] // 2).astype(np.int16))
    yield "depth-float16.tif", lambda path: imwrite(path, floats[..., 0].astype(np.float16))
    yield "depth-float32.tif", lambda path: imwrite(path, floats, photometric="rgb")
    yield "depth-float64.tif", lambda path: imwrite(path, floats[..., 0].astype(np.float64))
    yield "depth-float-0to255.tif", lambda path: imwrite(path, floats[..., 0] * 255)
    yield "depth-float-nan.tif", lambda path: imwrite(path, np.where(floats[..., 0] > 0.5, np.nan, floats[..., 0]))
    yield "depth-16.jp2", lambda path: cv2.imwrite(path, deep)
    yield "depth-12.tif", lambda path: imwrite(path, deep >> 4, photometric="rgb")


def metadata(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    from PIL import Image, ImageCms

    image = Image.fromarray(photo)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112], exif[271] = orientation, "TestCam"
        exif[0x8825] = {1: "N", 2: (48.0, 8.0, 15.0)}
        yield f"exif-orientation{orientation}.jpg", lambda path, exif=exif: image.save(path, exif=exif, dpi=(300, 300))
    yield "exif-orientation99.jpg", lambda path: image.save(path, exif=_exif(0x0112, 99))
    yield "exif-nonsense.jpg", lambda path: image.save(path, exif=b"Exif\0\0" + b"nonsense" * 20)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    yield "icc-nonsense.jpg", lambda path: image.save(path, icc_profile=b"nonsense" * 30)
    yield "icc-of-lab-on-rgb.png", lambda path: image.save(path, icc_profile=lab)
    yield "icc-truncated.png", lambda path: image.save(path, icc_profile=lab[:200])


def _exif(tag: int, value: Any):
    from PIL import Image

    exif = Image.Exif()
    exif[tag] = value
    return exif


def broken(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    from PIL import Image

    image = Image.fromarray(photo)

    def cut(path: str) -> None:
        image.save(path)
        os.truncate(path, os.path.getsize(path) * 2 // 5)

    def mistaken(path: str, kind: str) -> None:
        image.save(path, kind)

    for suffix in ("jpg", "png", "tif", "webp", "gif", "avif", "jp2", "bmp"):
        yield f"cut.{suffix}", cut
    yield "empty.jpg", lambda path: Path(path).touch()
    yield "one-byte.png", lambda path: Path(path).write_bytes(b"\x89")
    yield "text.jpg", lambda path: Path(path).write_text("not an image")
    yield "really-a-jpeg.png", lambda path: mistaken(path, "JPEG")
    yield "really-a-png.jpg", lambda path: mistaken(path, "PNG")
    yield "really-a-webp.tif", lambda path: mistaken(path, "WEBP")
    yield "huge-header.png", lambda path: Path(path).write_bytes(_png_header(60000, 60000))
    yield "bad-checksum.png", lambda path: (image.save(path), _flip(path, 300))
    yield "trailing-garbage.jpg", lambda path: (image.save(path), Path(path).write_bytes(Path(path).read_bytes() + bytes(5000)))


def _png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">II", zlib.crc32(chunk), 400) + b"IDAT" + bytes(400)


def _flip(path: str, place: int) -> None:
    data = bytearray(Path(path).read_bytes())
    data[place] ^= 255
    Path(path).write_bytes(data)


def shapes(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    from PIL import Image

    for width, height in ((1, 1), (3, 5000), (16, 16), (17, 4000), (5000, 16)):
        pixels = np.resize(photo, (height, width, 3)).astype(np.uint8)
        yield f"shape-{width}x{height}.png", Image.fromarray(pixels).save
    yield "shape-flat.png", Image.new("RGB", (200, 120), (90, 90, 90)).save
    yield "shape-black.png", Image.new("RGB", (200, 120)).save
    yield "shape-transparent.png", Image.new("RGBA", (200, 120)).save


def names(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    from PIL import Image

    image = Image.fromarray(photo)
    yield "name-with\nnewline.png", lambda path: image.save(path)
    yield os.fsdecode(b"name-not-utf8-\xff\xfe.png"), lambda path: image.save(path)
    yield "name-\u202eover-🙂.png", lambda path: image.save(path)
    yield "-name-like-an-option.png", lambda path: image.save(path)
    yield "name [with] *glob?.png", lambda path: image.save(path)
    yield "n" * 251 + ".png", lambda path: image.save(path)
    yield "NAME.PNG", lambda path: image.save(path)
    yield ".hidden.png", lambda path: image.save(path)
    yield "link-to-a-photo.png", lambda path: os.symlink("mode-grey.png", path)
    yield "link-in-a-circle.png", lambda path: os.symlink("link-in-a-circle.png", path)
    yield "link-to-nothing.png", lambda path: os.symlink("gone.png", path)
    yield "folder.png", os.mkdir
    yield "pipe.png", os.mkfifo
    yield "unknown.xyz", lambda path: image.save(path, "PNG")


def several(photo: np.ndarray) -> Iterator[tuple[str, Callable[[str], Any]]]:
    from PIL import Image

    frames = [Image.fromarray(np.roll(photo, 20 * step, 1)) for step in range(3)]
    for suffix in ("gif", "webp", "png", "avif"):
        yield (
            f"animated.{suffix}",
            lambda path: frames[0].save(path, save_all=True, append_images=frames[1:], duration=[40, 80, 200], loop=0),
        )
    yield "pages.tif", lambda path: frames[0].save(path, save_all=True, append_images=frames[1:])
    yield "previews.mpo.jpg", lambda path: frames[0].save(path, "MPO", save_all=True, append_images=frames[1:])
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
        yield "phone.heic", frames[0].save


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
