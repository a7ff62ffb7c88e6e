"""Which files `ir-env restore` takes, and where their results go."""

from __future__ import annotations

import glob
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from ir_env.image_files import HEIF, software_of, writable
from ir_env.images import SUFFIXES, ImageError
from tool_actors.errors import IrEnvError

STEPS, TRACE = "_steps.png", "_trace.json"
NAME_MAX = 255
"""Longest name of a file, in bytes, where the system does not tell."""
PHOTOGRAPHS = SUFFIXES | HEIF
MARK = "ir_env"
"""How the software begins that results are marked with, see :data:`policies.restoration.SOFTWARE`."""


@dataclass(frozen=True)
class Output:
    """What is written, and where."""

    out: str | Path = "restored"
    """Folder for the results; those of a searched folder lie there as in it."""
    ending: str = "_restored"
    """Of the names of restored images, before the suffix."""
    format: str | None = None
    """Suffix of restored images; by default that of the photograph."""
    quality: int | None = None
    keep_grey: bool = False
    frames: str = "all"
    """Of an animation, or of a file of pages: ``all``, or the ``first``."""
    scores: str = "view"
    """Metrics of the trace: of a ``view`` of bounded size, of the ``full`` image, or ``off``."""
    skip_existing: bool = False
    again: bool = False
    """Restore results of an earlier restoration, too."""
    dry_run: bool = False

    def __post_init__(self):
        if "/" in self.ending or os.sep in self.ending:
            raise IrEnvError(f"the ending {self.ending!r} of names may hold no {os.sep!r}; --out chooses the folder")
        if self.format:
            writable(self.suffix or "")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise IrEnvError(f"quality must be 1 to 100, not {self.quality}")

    @property
    def suffix(self) -> str | None:
        return f".{self.format.lstrip('.').lower()}" if self.format else None

    def suffix_for(self, path: Path) -> str:
        """Of the result of a photograph: its own, where that stands for a format that can be written and holds more than 256 colours."""
        if self.suffix:
            return self.suffix
        try:
            return path.suffix if writable(path.suffix) != "GIF" else ".png"
        except ImageError:
            return ".png"


@dataclass(frozen=True)
class Job:
    """A photograph, and its results."""

    path: Path
    folder: Path
    stem: str
    ending: str
    suffix: str

    @property
    def restored(self) -> Path:
        return self.folder / f"{self.stem}{self.ending}{self.suffix}"

    @property
    def steps(self) -> Path:
        return self.folder / f"{self.stem}{STEPS}"

    @property
    def trace(self) -> Path:
        return self.folder / f"{self.stem}{TRACE}"

    @property
    def results(self) -> tuple[Path, Path, Path]:
        return self.restored, self.steps, self.trace


@dataclass
class Found:
    """What the arguments of the command stand for."""

    jobs: list[Job] = field(default_factory=list)
    own: int = 0
    """Results of an earlier restoration, which are left out."""
    existing: int = 0
    """Photographs that were restored before."""
    others: Counter[str] = field(default_factory=Counter)
    """Files in folders that are no images, by suffix."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """(argument, what is wrong with it)"""

    @property
    def skipped(self) -> list[str]:
        """In words."""
        told = [f"{self.own} {'is a result' if self.own == 1 else 'are results'} of an earlier restoration"] if self.own else []
        told += [f"{self.existing} restored before"] if self.existing else []
        if self.others:
            told.append(f"{self.others.total()} no images ({', '.join(f'{number} {name}' for name, number in self.others.most_common(6))})")
        return told


def find(images: Sequence[str], output: Output) -> Found:
    """The photographs among files, folders that are searched, and patterns such as ``photos/**/*.jpg``; each once."""
    found, seen = Found(), set()
    chosen: list[tuple[Path, Path]] = []
    for image in images:
        before, own = len(chosen), found.own
        try:
            for path, below in _expanded(image, found.others):
                if (place := os.path.realpath(path)) in seen:
                    before = -1
                    continue
                if not output.again and _is_result(path, output):
                    found.own += 1
                    continue
                seen.add(place)
                chosen.append((path, below))
        except (IrEnvError, OSError) as error:
            found.errors.append((image, str(error)))
            continue
        if len(chosen) == before and os.path.isdir(image):
            why = "only results of an earlier restoration" if found.own > own else f"no image files ({', '.join(sorted(PHOTOGRAPHS))})"
            found.errors.append((image, f"holds {why}. Give the photographs."))
    for job in _named(chosen, output):
        if output.skip_existing and job.restored.is_file():
            found.existing += 1
        else:
            found.jobs.append(job)
    return found


def _expanded(image: str, others: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Files, each with the folder below that of the results where its own go."""
    if os.path.isdir(image):
        yield from _searched(Path(image), others)
    elif glob.has_magic(image) and not os.path.lexists(image):
        root = Path(*_until_magic(Path(image).parts[:-1]))
        matches = sorted(glob.glob(image, recursive=True))
        if not matches:
            raise ImageError(f"{image}: no file is of this pattern")
        for match in matches:
            if os.path.isfile(match) and Path(match).suffix.lower() in PHOTOGRAPHS:
                yield Path(match), Path(match).parent.relative_to(root)
    else:
        yield Path(image), Path()


def _until_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _searched(root: Path, others: Counter[str]) -> Iterator[tuple[Path, Path]]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            suffix = Path(name).suffix.lower()
            if suffix in PHOTOGRAPHS:
                yield Path(folder, name), Path(folder).relative_to(root)
            elif not name.endswith(TRACE):
                others[suffix or "without suffix"] += 1


def _is_result(path: Path, output: Output) -> bool:
    """Whether a file is marked as a result; or, of the formats that take no mark, has its trace beside it."""
    if software_of(path).startswith(MARK):
        return True
    stem = path.stem.removesuffix(output.ending)
    return stem != path.stem and path.with_name(stem + TRACE).is_file()


def _named(chosen: Sequence[tuple[Path, Path]], output: Output) -> Iterator[Job]:
    """Results of different photographs get different names, and overwrite no photograph.

    Two that differ by their suffix alone keep it in the name; others get a number.
    """
    suffixes: dict[tuple[Path, str], set[str]] = {}
    for path, below in chosen:
        suffixes.setdefault((below, path.stem.casefold()), set()).add(path.suffix.casefold())
    taken = {_key(path) for path, _ in chosen}
    for path, below in chosen:
        folder = Path(output.out) / below
        stem = path.stem
        if len(suffixes[below, stem.casefold()]) > 1:
            stem += path.suffix.replace(".", "-")
        suffix = output.suffix_for(path)
        job = Job(path, folder, _shortened(stem, folder, output.ending, suffix), output.ending, suffix)
        for number in count(2):
            free = not any(_key(result) in taken for result in job.results)
            if free and not (job.restored.is_file() and not _is_result(job.restored, output)):
                break
            job = replace(job, stem=_shortened(f"{stem}-{number}", folder, output.ending, suffix))
        taken |= {_key(result) for result in job.results}
        yield job


def _key(path: Path) -> str:
    """Of a place; some file systems do not tell capitals apart."""
    return os.path.join(os.path.realpath(path.parent), path.name).casefold()


def _shortened(stem: str, folder: Path, ending: str, suffix: str) -> str:
    """The stem, cut so that it leaves room for the ends of the results' names; a hash tells two that begin alike apart."""
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), Path())
    longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else NAME_MAX
    room = longest - max(len(os.fsencode(end)) for end in (ending + suffix, STEPS, TRACE))
    name = os.fsencode(stem)
    if len(name) <= room:
        return stem
    mark = hashlib.blake2b(name, digest_size=4).hexdigest()
    return f"{name[: room - len(mark) - 1].decode(sys.getfilesystemencoding(), 'ignore')}-{mark}"
