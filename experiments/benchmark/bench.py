"""Measures policies on test sets, piece by piece: what is there is read, and an interruption loses the pieces under way alone."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.benchmark.measure import Entry, Job, metrics_for, policy_at, process_for, version_of, work
from experiments.benchmark.provenance import machine, tools_of, versions
from experiments.benchmark.sets import TestSet, reordered_share, seen_share, trained_combos
from experiments.resumable import folder_for
from ir_env.planner import Planner
from tool_actors.errors import IrEnvError
from tool_actors.threads import limit_threads

CHUNK = 8
"""Images of a piece of work: a policy decides on them together."""


@dataclass(frozen=True)
class Settings:
    """How all policies are measured."""

    metrics: tuple[str, ...]
    executor: str = "local"
    processes: int = 1
    seed: int = 0
    """Of policies that draw."""
    gallery: int = 4
    """Images whose trajectories are kept."""


@dataclass(frozen=True)
class Pieces:
    """What there is to do of a policy on a set."""

    entry: Entry
    test: TestSet
    jobs: tuple[Job, ...]
    gallery: tuple[Job, ...]


def load_planners(entries: Sequence[Entry], seed: int) -> dict[str, Planner]:
    """By name; raises :class:`IrEnvError` where two have one name."""
    names = [entry.name for entry in entries]
    if twice := {name for name in names if names.count(name) > 1}:
        raise IrEnvError(f"two policies are named {', '.join(sorted(twice))}: name them apart, --policy NAME=POLICY")
    return {entry.name: policy_at(entry.policy, seed) for entry in entries}


def describe(entry: Entry, planner: Planner, sets: Sequence[TestSet], settings: Settings) -> dict[str, Any]:
    """What a policy is, for results.json and as the key of its rows."""
    process = process_for(planner, entry, sets[0].dataset, metrics_for(settings.metrics, sets[0].has_reference), settings.executor)
    seen = trained_combos(planner)
    return {
        "policy": entry.policy,
        "version": version_of(entry.policy),
        "needs_reference": planner.needs_reference,
        "max_steps": process.max_steps,
        "quantize": process.executor.quantize,
        "toolbox": entry.toolbox or process.executor.toolbox.name,
        "tools": tools_of(process),
        "trained_on": None if seen is None else sorted(map("+".join, seen)),
        "seen": {test.name: seen_share(test, seen) for test in sets if test.unseen},
        "reordered": {test.name: reordered_share(test, seen) for test in sets if test.unseen},
    }


def pieces_of(entry: Entry, told: Mapping[str, Any], test: TestSet, shown: Sequence[Any], settings: Settings, out: Path) -> Pieces:
    """The jobs of a policy on a set; those whose results are there among them."""
    metrics = metrics_for(settings.metrics, test.has_reference)
    dataset = json.dumps(dict(test.dataset))
    key = {name: told[name] for name in ("policy", "version", "max_steps", "quantize", "tools")}
    key |= {"dataset": {name: value for name, value in test.dataset.items() if name != "combos"}, "files": test.listing}
    key |= {"set": test.name, "metrics": metrics, "seed": settings.seed, "chunk": CHUNK}
    folder = folder_for(out / "rows", _slug(f"{entry.name}-{test.name}"), key)
    common = (metrics, settings.executor, settings.seed)
    jobs, gallery = [], []
    for start in range(0, len(test.samples), CHUNK):
        samples = test.samples[start : start + CHUNK]
        jobs.append(Job(entry, dataset, samples, *common, folder / f"{_hash([sample.id for sample in samples])}.json"))
    for sample in shown:
        place = out / "gallery" / folder.name / _hash([sample.id])
        gallery.append(Job(entry, dataset, (sample,), *common, place, for_gallery=True))
    return Pieces(entry, test, tuple(jobs), tuple(gallery))


def shown_samples(sets: Sequence[TestSet], count: int) -> dict[str, list[Any]]:
    """The images of the gallery, by set: the sets take turns."""
    turns = [(at, number) for at in range(max(len(test.samples) for test in sets)) for number, test in enumerate(sets)]
    chosen = [(number, at) for at, number in turns if at < len(sets[number].samples)][:count]
    return {test.name: [test.samples[at] for own, at in chosen if own == number] for number, test in enumerate(sets)}


def is_done(job: Job) -> bool:
    return (job.place / "trajectory.json" if job.for_gallery else job.place).is_file()


def do(jobs: Sequence[Job], settings: Settings, console) -> list[str]:
    """Do the jobs whose results are not there; returns what went wrong."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    missing = [job for job in jobs if not is_done(job)]
    images, total = sum(len(job.samples) for job in missing), sum(len(job.samples) for job in jobs)
    if images < total:
        console.print(f"{total - images} of {total} images are there already")
    errors: dict[str, str] = {}
    if not missing:
        return []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("measuring", total=images)

        def done(job: Job, error: str) -> None:
            progress.update(bar, advance=len(job.samples), description=job.entry.name)
            if error:
                errors.setdefault(job.entry.name, f"{job.entry.name}, {job.samples[0].id}: {error}")

        if settings.processes == 1:
            for job in missing:
                done(*work(job))
        else:
            # OpenCV and torch do not survive a fork
            with multiprocessing.get_context("spawn").Pool(settings.processes, limit_threads, (1,)) as pool:
                for job, error in pool.imap_unordered(work, missing):
                    done(job, error)
    return list(errors.values())


def run(
    entries: Sequence[Entry], planners: Mapping[str, Planner], sets: Sequence[TestSet], settings: Settings, out: Path, console
) -> tuple[list[dict[str, Any]], dict[str, Any], list[str]]:
    """Measure; returns the rows of :mod:`experiments.benchmark.statistics` with what they depend on, and what went wrong."""
    described = {entry.name: describe(entry, planners[entry.name], sets, settings) for entry in entries}
    shown = shown_samples(sets, settings.gallery)
    pieces = [
        pieces_of(entry, described[entry.name], test, shown[test.name], settings, out)
        for entry in entries
        for test in sets
        # an oracle has nothing to look at there
        if test.has_reference or not planners[entry.name].needs_reference
    ]
    errors = do([job for each in pieces for job in (*each.jobs, *each.gallery)], settings, console)
    failed = {each.entry.name for each in pieces if not all(map(is_done, each.jobs))}
    rows: list[dict[str, Any]] = [
        {"policy": each.entry.name, "set": each.test.name, **row}
        for each in pieces
        if each.entry.name not in failed
        for job in each.jobs
        for row in json.loads(job.place.read_text())
    ]
    trajectories = [str(job.place.relative_to(out)) for each in pieces for job in each.gallery if is_done(job)]
    told = {
        "metrics": list(settings.metrics),
        "executor": settings.executor,
        "processes": settings.processes,
        "seed": settings.seed,
        "sets": [
            {"name": test.name, "images": len(test.samples), "has_reference": test.has_reference, "unseen": bool(test.unseen)}
            | {"dataset": dict(test.dataset)}
            for test in sets
        ],
        "policies": {name: told for name, told in described.items() if name not in failed},
        "machine": machine(),
        "versions": versions(),
        "undefined": sum(row["undefined"] for row in rows),
        "gallery": trajectories,
    }
    return rows, told, errors


def _hash(told: Any) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _slug(text: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in text)[:80]
