"""Restores photographs: the image at full resolution, a contact sheet of the steps, and a trace.

Files come from everywhere, so whatever goes wrong with one is reported, with its name, and the others go on; and what is finished of a
photograph is on disk before anything else is tried with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from experiments.restore_files import Found, Job, Output, find
from experiments.restore_trace import scores_of, text_of, write_sheet, write_trace
from ir_env.frames import Frames, open_frames, write_frames
from ir_env.images import make_folder
from ir_env.planner import Planner
from policies.loading import DEFAULT
from policies.restoration import SOFTWARE, Restored, Restorer

FAILED_NAMES = 20
"""Of the photographs that failed, how many the summary names."""
DEFAULTS = Output()
WORTHWHILE = 4 << 20
"""Bytes of photographs from which on more processes are started: each takes seconds to load what it needs."""


@dataclass
class Outcome:
    """What became of one photograph."""

    line: str = ""
    """To print; empty if there is no result."""
    errors: list[str] = field(default_factory=list)


def restore_all(
    images: Sequence[str],
    policy: str | Planner = DEFAULT,
    output: Output = DEFAULTS,
    processes: int | None = 1,
    **settings: Any,
) -> int:
    """Restore every image; one that fails is reported and the others go on.

    Args:
        images: see :func:`experiments.restore_files.find`.
        policy, settings: see :class:`policies.restoration.Restorer`.
        output: what is written, and where.
        processes: that work side by side, each with its share of the cores; None: as many as there are cores, if that is worth it. More
            than one need a policy by name.

    Returns:
        The exit status: 0, or 2 if something went wrong with an image.

    Raises:
        IrEnvError: nothing can be restored, because of the policy, the toolbox or the folder.
    """
    start = time.perf_counter()
    found = find(images, output)
    if not output.dry_run:
        make_folder(output.out)
    restored, failed = 0, []

    def report(name: str, errors: Sequence[str]) -> None:
        for error in errors:
            print(f"error: {error if error.startswith(name) else f'{name}: {error}'}", file=sys.stderr)
        if errors:
            failed.append(name)

    for name, error in found.errors:
        report(name, [error])
    workers = _workers(processes, found.jobs, policy, settings)
    with _progress(len(found.jobs)) as advance:
        for job, outcome in _outcomes(found.jobs, output, workers, {"policy": policy, **settings}):
            if outcome.line:
                restored += 1
                print(outcome.line, flush=True)
            report(str(job.path), outcome.errors)
            advance()
    if failed or found.skipped or len(found.jobs) > 1:
        print(_summary(restored, failed, found, time.perf_counter() - start), file=sys.stderr)
    return 2 if failed else 0


def _summary(restored: int, failed: list[str], found: Found, seconds: float) -> str:
    told = f"{restored} restored"
    if failed:
        more = f" and {len(failed) - FAILED_NAMES} more" if len(failed) > FAILED_NAMES else ""
        told += f", {len(failed)} failed: {', '.join(failed[:FAILED_NAMES])}{more}"
    if found.skipped:
        told += f"; skipped: {', '.join(found.skipped)}"
    return f"{told}  ({seconds:.1f} s)"


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """How many are done and how long the rest will take, on a terminal; nothing elsewhere."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), BarColumn(), TextColumn("time left"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty()) as progress:
        bar = progress.add_task("", total=total)
        yield lambda: progress.advance(bar)


# -- processes -----------------------------------------------------------------------------------------------------------------------

_RESTORER: Restorer | None = None
"""Of a process that restores for another."""


def _workers(processes: int | None, jobs: Sequence[Job], policy: str | Planner, settings: Mapping[str, Any]) -> int:
    if processes is not None:
        return max(1, min(processes, len(jobs))) if isinstance(policy, str) else 1
    # what a planner draws depends on what it drew before, and a GPU is one for all
    if not isinstance(policy, str) or policy == "random" or sum(map(_size, jobs)) < WORTHWHILE:
        return 1
    from tool_actors.devices import choose_device

    return max(1, min(_cores(), len(jobs) // 2)) if choose_device(settings.get("device", "auto")) == "cpu" else 1


def _size(job: Job) -> int:
    try:
        return job.path.stat().st_size
    except OSError:
        return 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outcomes(jobs: Sequence[Job], output: Output, workers: int, settings: dict[str, Any]) -> Iterator[tuple[Job, Outcome]]:
    settings.setdefault("threads", max(1, _cores() // workers))
    if workers == 1:
        restorer = Restorer(**settings)  # also without jobs, so that what is wrong with the policy is said
        for job in jobs:
            yield job, restore_file(job, output, restorer)
        return
    left = list(jobs)
    with _pool(workers, settings) as pool:
        futures: dict[Future[Outcome], Job] = {pool.submit(_in_process, job, output): job for job in jobs}
        for future in as_completed(futures):
            # a process that is ended from outside, such as for its memory, takes all others down
            with contextlib.suppress(BrokenProcessPool):
                outcome = future.result()
                left.remove(futures[future])
                yield futures[future], outcome
    for job in left:
        with _pool(1, settings) as pool:
            try:
                yield job, pool.submit(_in_process, job, output).result()
            except BrokenProcessPool:
                yield job, Outcome(errors=["the process that restored it was ended, perhaps for want of memory; see --tile"])


def _pool(workers: int, settings: dict[str, Any]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(settings,))


def _begin(settings: dict[str, Any]) -> None:
    global _RESTORER
    from tool_actors.threads import limit_threads

    limit_threads(settings["threads"])
    _RESTORER = Restorer(**settings)


def _in_process(job: Job, output: Output) -> Outcome:
    assert _RESTORER is not None
    return restore_file(job, output, _RESTORER)


# -- one photograph ------------------------------------------------------------------------------------------------------------------


def restore_file(job: Job, output: Output, restorer: Restorer) -> Outcome:
    """Restore one photograph and write its results; whatever goes wrong is in the outcome."""
    try:
        return _restore_one(job, output, restorer)
    except Exception as error:
        return Outcome(errors=[text_of(error)])


def _restored_frames(frames: Frames, restorer: Restorer, name: str) -> list[Restored]:
    """Pages as the policy likes each; frames of an animation all by the plan of the first, since a picture that moves must not flicker."""
    results: list[Restored] = []
    for photograph in frames:
        results.append(restorer(photograph, name, like=results[0] if results and frames.animated else None))
        if len(results) > 1:
            results[-1].episode.states[:-1] = []  # of the steps, which are shown of the first alone
    return results


def _restore_one(job: Job, output: Output, restorer: Restorer) -> Outcome:
    """The outcome once there is an image; raises if there is none."""
    start = time.perf_counter()
    frames = open_frames(job.path) if output.frames == "all" and not output.dry_run else Frames(job.path)
    results = _restored_frames(frames, restorer, str(job.path))
    restored = results[0]
    errors = [f"{restored.error}; the restoration ends before that tool"] if restored.error else []
    notes = list(dict.fromkeys(note for each in results for note in each.notes))
    if len(results) > 1:
        told = "as the first" if frames.animated else "; ".join(each.plan for each in results)
        notes.append(f"{len(results)} {frames.what} ({told})")
    if job.suffix.lower() != job.path.suffix.lower() and not output.format:
        notes.append(f"it is written as {job.suffix}: {job.path.suffix or 'its format'} cannot hold the result")
    if not output.dry_run:
        images = [(each.pixels, each.source) for each in results]
        notes += write_frames(job.restored, images, frames, output.quality, output.keep_grey, SOFTWARE, restored.history)
        scores = scores_of(restored, output.scores)
        for write in (
            lambda: write_sheet(job, restored, scores),
            lambda: write_trace(job, restored, scores, time.perf_counter() - start, notes, output.scores),
        ):
            try:
                write()
            except Exception as error:
                errors.append(text_of(error))
    line = f"{'would write ' if output.dry_run else ''}{job.restored}  ({restored.plan}; {time.perf_counter() - start:.2f} s)"
    if output.dry_run and restored.thoughts and restored.thoughts[0]:
        line += "  first: " + ", ".join(f"{name} {share:.0%}" for name, share in restored.thoughts[0].items())
    if restored.not_run:
        line += "  not run: " + "; ".join(f"{tool['tool']} ({tool['why']})" for tool in restored.not_run)
    if not job.stem.startswith(job.path.stem):
        line += "  (the photograph's own name is too long for its results)"
    if notes:
        line += "  note: " + "; ".join(notes)
    return Outcome(line, errors)
