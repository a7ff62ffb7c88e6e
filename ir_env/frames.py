"""Files that hold several images: animations, which are one picture that moves, and pages.

>>> frames = open_frames("a.gif")
>>> write_frames("b.png", [(restore(each.pixels), each) for each in frames], frames)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ir_env.image_files import Photograph, current_frame, frame_count, open_heif, read_photograph, to_write, writable, write_photograph
from ir_env.images import ImageError, check_size, written_whole

__all__ = ["Frames", "open_frames", "write_frames"]

ANIMATED = frozenset({"GIF", "PNG", "WEBP", "AVIF"})
MOST_BYTES = 2 << 30
"""Of the frames of a file together: they are kept until they are written."""


@dataclass
class Frames:
    """The images of a file, which are read one by one.

    Each is a :class:`ir_env.image_files.Photograph`, whole: what an animation's frame leaves as it was is filled in.
    """

    path: Path
    count: int = 1
    animated: bool = False
    """A picture that moves; else pages."""
    loop: int | None = None
    """How often it is played, 0 for ever; None if the file does not say."""
    durations: list[float] = field(default_factory=list)
    """In milliseconds, of the frames that were read."""

    @property
    def what(self) -> str:
        return "frames" if self.animated else "pages"

    def __iter__(self) -> Iterator[Photograph]:
        from PIL import Image

        self.durations = []
        if self.count == 1:
            yield read_photograph(self.path)
            return
        with Image.open(self.path) as file:
            skipped = int(getattr(file, "default_image", False))  # of APNG: shown by those who know no animation
            for index in range(skipped, self.count + skipped):
                try:
                    file.seek(index)
                    photograph = current_frame(file, self.path, [])
                except Exception as error:
                    raise ImageError(f"{self.path}: {self.what[:-1]} {index + 1} is not readable ({error})") from error
                check_size(photograph.pixels, str(self.path))
                self.durations.append(float(file.info.get("duration", 0)))
                yield photograph


def open_frames(path: str | Path) -> Frames:
    """What a file holds; a file that Pillow cannot tell of holds one image, whose reading says what is wrong.

    Raises:
        ImageError: the frames together are larger than memory should hold.
    """
    from PIL import Image

    path = Path(path)
    try:
        if not path.is_file():  # a pipe would be waited for
            return Frames(path)
        open_heif(path)
        with Image.open(path) as file:
            count, size = frame_count(file), file.size
            frames = Frames(path, count - int(getattr(file, "default_image", False)), file.format != "TIFF", file.info.get("loop"))
    except Exception:
        return Frames(path)
    if count > 1 and count * size[0] * size[1] * 3 > MOST_BYTES:
        told = f"{count} {frames.what} of {size[0]}x{size[1]} pixels"
        raise ImageError(f"{path}: its {told} are too many at once. Take the first: --frames first")
    return frames


def write_frames(
    path: str | Path,
    images: Sequence[tuple[np.ndarray, Photograph]],
    frames: Frames,
    quality: int | None = None,
    keep_grey: bool = False,
    software: str = "",
    history: str = "",
) -> list[str]:
    """Write all images into one file, with the timing of an animation; as :func:`ir_env.image_files.write_photograph` otherwise.

    Pages go into TIFF, animations also into GIF, PNG, WebP and AVIF. Of a format that holds one image, the first is written.
    """
    path = Path(path)
    options = (quality, keep_grey, software, history)
    kind = writable(path.suffix)
    if len(images) == 1 or kind not in (ANIMATED | {"TIFF"} if frames.animated else {"TIFF"}):
        notes = write_photograph(path, *images[0], *options)
        return notes if len(images) == 1 else [*notes, f"{kind} holds none of the other {len(images) - 1} {frames.what}"]
    if kind == "TIFF":
        from ir_env.encoders import tiff

        pages = [to_write(path, *each, *options) for each in images]
        with written_whole(path) as file:
            file.write(tiff([(array, settings) for array, _, settings, _ in pages]))
        return list(dict.fromkeys(note for *_, notes in pages for note in notes))
    from PIL import Image

    _, _, settings, notes = to_write(path, *images[0], *options)
    pictures = [Image.fromarray(to_write(path, *each, *options)[0]) for each in images]
    if any(picture.mode != pictures[0].mode for picture in pictures):  # some frames of a GIF know no transparency, and others do
        pictures = [picture.convert("RGBA") for picture in pictures]
    settings |= {"duration": [round(each) for each in frames.durations]}
    if frames.loop is not None or kind != "GIF":
        settings["loop"] = 1 if frames.loop is None else frames.loop
    if kind == "GIF" and pictures[0].mode == "RGBA":
        settings["disposal"] = 2  # else what was there shines through
    with written_whole(path) as file:
        pictures[0].save(file, kind, save_all=True, append_images=pictures[1:], **settings)
    return notes
