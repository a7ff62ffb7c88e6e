"""Long work that goes on where it was interrupted, and is never mistaken for work with other settings; and the making of a Hugging Face
dataset's rows that way, in parallel and with progress."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_actors.errors import IrEnvError
from tool_actors.extras import need
from tool_actors.threads import limit_threads

if TYPE_CHECKING:
    from datasets import Dataset, Features


def make_rows(
    function: Callable[[Any], list[dict]], jobs: Sequence[Any], features: Features, folder: Path, processes: int, what: str
) -> Dataset:
    """The rows of all jobs, in order, memory-mapped from disk.

    Args:
        function: from a job to its rows; importable, since other processes call it.
        jobs: what to do, in pieces of some seconds; they can be pickled.
        features: of the rows.
        folder: keeps each job's rows as soon as it is done; a job whose rows are there is not done again.
        processes: how many work at once, with one thread each; 1 works in this process.
        what: for the progress bar.
    """
    need("datasets")
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    places = [folder / f"{index:06}" for index in range(len(jobs))]
    missing = [(job, place) for job, place in zip(jobs, places, strict=True) if not place.is_dir()]
    work = partial(_make, function, features)
    if missing:
        if len(missing) < len(jobs):
            print(f"{what}: {len(jobs) - len(missing)} of {len(jobs)} pieces are there already")
        if processes == 1:
            for each in track(missing, what, transient=True):
                work(each)
        else:
            with multiprocessing.get_context("spawn").Pool(processes, limit_threads, (1,)) as pool:
                for _ in track(pool.imap_unordered(work, missing), what, total=len(missing), transient=True):
                    pass
    return load_rows(folder)


def load_rows(folder: Path) -> Dataset:
    """What :func:`make_rows` made in a folder."""
    need("datasets")
    from datasets import concatenate_datasets, load_from_disk

    return concatenate_datasets([load_from_disk(place) for place in sorted(folder.iterdir()) if not place.name.startswith(".")])


def _make(function: Callable[[Any], list[dict]], features: Features, job_and_place: tuple[Any, Path]) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    job, place = job_and_place
    rows = function(job)
    temporary = place.with_name(f".{place.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features).save_to_disk(temporary)
    temporary.replace(place)


def folder_for(work: Path, name: str, settings: Mapping[str, Any]) -> Path:
    """The folder below ``work`` for what these settings make, with them in ``settings.json``: other settings have another folder.

    Args:
        work: of all such folders.
        name: how the folder's name begins.
        settings: everything that decides what is made; of photographs their :meth:`~ir_env.datasets.Photos.listing`.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    folder = work / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    keep_settings(folder, settings)
    return folder


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note in a folder what it is made with; raises :class:`IrEnvError` if it was begun with something else."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "settings.json", json.dumps(settings, indent=2, default=str)
    if path.is_file() and (before := json.loads(path.read_text())) != (now := json.loads(text)):
        changed = ", ".join(f"{key} was {before.get(key)!r}" for key in {**before, **now} if before.get(key) != now.get(key))
        raise IrEnvError(f"{folder} was begun with other settings ({changed}). Repeat those to go on, or choose another --out.")
    path.write_text(text + "\n")
