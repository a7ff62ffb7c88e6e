"""Restores photographs: the image at full resolution, a contact sheet of the steps, and a trace.

Files come from everywhere, so whatever goes wrong with one is reported, with its name, and the others go on; and what is finished of a
photograph is on disk before anything else is tried with it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
import warnings
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ir_env.actions import MALFORMED
from ir_env.episode import Episode
from ir_env.images import find_images, load_image, make_folder, save_image, written_whole
from ir_env.metrics import NO_REFERENCE_METRICS, MetricSuite
from ir_env.planner import Planner, run
from ir_env.process import DEFAULT_MAX_STEPS, PHOTO_LOW_RESOLUTION_BELOW, RestorationProcess
from ir_env.rendering import sheet
from policies.loading import load_policy
from policies.planners import FixedPlan
from tool_actors.errors import IrEnvError
from tool_actors.executor import LocalExecutor
from tool_actors.toolboxes import load_toolbox

RESULTS = ("_restored.png", "_steps.png", "_trace.json")
"""What the names of a photograph's results end in."""
NAME_MAX = 255
"""Longest name of a file, in bytes, where the system does not tell."""
_SUITES = {name: MetricSuite([name]) for name in NO_REFERENCE_METRICS}
"""One suite per metric, since an image may suit one and not another; each loads its metric once."""


class NoMetrics(MetricSuite):
    """Restoring plans without a reference; nobody reads these zeros, the trace is scored afterwards."""

    def score(self, images, references):
        return np.zeros((len(images), len(self.metrics)), np.float32)


def restore_all(
    images: Sequence[str], policy: str | Planner, out: str, max_steps: int | None = None, seed: int = 0, toolbox: str | None = None
) -> int:
    """Restore every image; one that fails is reported and the others go on.

    Args:
        images: files, and folders that are searched; results of an earlier restoration into the same ``out`` are passed over there.
        policy: see :func:`policies.loading.load_policy`.
        out: folder for the results.
        max_steps, toolbox: see :func:`photograph_process`.
        seed: for planners that draw.

    Returns:
        The exit status: 0, or 2 if something went wrong with an image.

    Raises:
        IrEnvError: nothing can be restored, because of the policy, the toolbox or the folder.
    """
    planner = load_policy(policy, seed)
    if planner.needs_reference:
        raise IrEnvError(
            f"the policy {planner.name!r} looks at the clean image, which a photograph to restore does not have; choose another"
        )
    process = photograph_process(planner, toolbox, max_steps)
    folder = make_folder(out)
    process.suite = NoMetrics()
    restored, failed = 0, []

    def report(name: str, errors: Sequence[str]) -> None:
        for error in errors:
            print(f"error: {error if error.startswith(name) else f'{name}: {error}'}", file=sys.stderr)
        if errors:
            failed.append(name)

    paths: list[Path] = []
    for image in images:
        try:
            paths += _images_at(image, folder)
        except Exception as error:
            report(str(image), [_text(error)])
    taken = {path.name for path in paths if _lies_in(path, folder)}
    for path in paths:
        try:
            line, errors = _restore_one(path, _stem(path, folder, taken), process, planner, folder)
        except Exception as error:
            report(str(path), [_text(error)])
            continue
        restored += 1
        print(line)
        report(str(path), errors)
    if failed:
        print(f"{restored} restored, {len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return 2 if failed else 0


def photograph_process(planner: Planner, toolbox: str | None = None, max_steps: int | None = None) -> RestorationProcess:
    """The decision process that the policy was trained in, for whole photographs.

    An image is enlarged below 300 pixels, unless the training's settings say otherwise by themselves: the size of its crops says nothing
    about photographs.

    Args:
        planner: a trained one carries the settings of its training in ``env_config``.
        toolbox: for planners that can use any.
        max_steps: most steps; by default the training's, or 6.
    """
    trained = planner.env_config
    settings: dict[str, Any] = {"max_steps": DEFAULT_MAX_STEPS, "low_resolution_below": PHOTO_LOW_RESOLUTION_BELOW}
    settings |= {key: trained[key] for key in ("toolbox", "quantize", *settings) if trained.get(key) is not None}
    if chosen := toolbox or planner.toolbox:
        settings["toolbox"] = chosen
    if max_steps is not None:
        settings["max_steps"] = max_steps
    # a photograph is worth all cores, and the last bit that some networks round otherwise with more of them
    executor = LocalExecutor(
        load_toolbox(settings.pop("toolbox", "default")), settings.pop("quantize", "uint8"), cache_bytes=0, threads=os.cpu_count() or 1
    )
    return RestorationProcess(**settings, executor=executor)


# -- files ---------------------------------------------------------------------------------------------------------------------------


def _images_at(image: str, folder: Path) -> list[Path]:
    if not Path(image).is_dir():
        return [Path(image)]
    found = find_images(image)
    chosen = [path for path in found if not (path.name.endswith(RESULTS) and _lies_in(path, folder))]
    if not chosen:
        raise IrEnvError(f"{image}: holds only results of an earlier restoration. Give the photographs.")
    return chosen


def _lies_in(path: Path, folder: Path) -> bool:
    return os.path.realpath(path.parent) == os.path.realpath(folder)


def _stem(path: Path, folder: Path, taken: set[str]) -> str:
    """What the names of the results begin with.

    Photographs of one name from several folders must not overwrite one another, nor a result a photograph; ``taken`` grows by the names.
    """
    for number in count(1):
        stem = _shortened(path.stem if number == 1 else f"{path.stem}-{number}", folder)
        names = {stem + end for end in RESULTS}
        if not names & taken:
            break
    taken |= names
    return stem


def _shortened(stem: str, folder: Path) -> str:
    """The stem, cut so that it leaves room for the ends of the results' names; a hash tells two that begin alike apart."""
    room = (os.pathconf(folder, "PC_NAME_MAX") if hasattr(os, "pathconf") else NAME_MAX) - max(map(len, RESULTS))
    name = os.fsencode(stem)
    if len(name) <= room:
        return stem
    mark = hashlib.blake2b(name, digest_size=4).hexdigest()
    return f"{name[: room - len(mark) - 1].decode(sys.getfilesystemencoding(), 'ignore')}-{mark}"


# -- one photograph ------------------------------------------------------------------------------------------------------------------


def _restore_one(path: Path, stem: str, process: RestorationProcess, planner: Planner, folder: Path) -> tuple[str, list[str]]:
    """Returns the line to print, and what went wrong after there was an image to save; raises if there is none."""
    start = time.perf_counter()
    episode = process.start_image(load_image(path), name=str(path))
    for _ in run(process, planner, [episode]):
        pass
    seconds = time.perf_counter() - start
    restored = save_image(folder / f"{stem}_restored.png", episode.state.as_uint8())
    errors = [f"{episode.error}; the restoration ends before that tool"] if episode.error else []
    scores = [_no_reference_scores(state.as_uint8()) for state in episode.states]
    not_run = _not_run(episode, process, planner)
    trace = {
        "image": str(path),
        "policy": planner.name,
        "restored": restored.name,
        "seconds": round(seconds, 4),
        "error": episode.error or None,
        "not_run": not_run,
        "steps": _steps(episode, process, scores),
    }
    for write in (
        lambda: save_image(folder / f"{stem}_steps.png", _contact_sheet(episode, process, scores)),
        lambda: _save_json(folder / f"{stem}_trace.json", trace),
    ):
        try:
            write()
        except Exception as error:
            errors.append(_text(error))
    line = f"{restored}  ({' + '.join(map(process.actions.name, episode.applied)) or 'nothing'}; {seconds:.2f} s)"
    if not_run:
        line += "  not run: " + "; ".join(f"{tool['tool']} ({tool['why']})" for tool in not_run)
    if not stem.startswith(path.stem):
        line += "  (the photograph's own name is too long for its results)"
    return line, errors


def _save_json(path: Path, content: dict) -> None:
    with written_whole(path) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False).encode())


def _not_run(episode: Episode, process: RestorationProcess, planner: Planner) -> list[dict[str, str]]:
    """The tools that were asked for and did not run, each with the reason."""
    actions = process.actions
    if isinstance(planner, FixedPlan):
        left = [actions.index(tool) for tool in planner.tools]
    else:
        left = [index for index in episode.history if index != actions.stop]
    for index in episode.applied:
        left.remove(index)
    whys = []
    for index in left:
        longer = max(episode.state.shape[:2])
        if index == MALFORMED:
            why = "an answer that names no tool"
        elif not episode.mask[index] and longer > max(episode.states[0].shape[:2]):
            why = "an image is enlarged once"
        elif not episode.mask[index]:
            why = f"its longer side, {longer} px, is not below {actions.low_resolution_below}"
        elif episode.error:
            why = "it failed" if index == episode.history[-1] else "the tool before it failed"
        elif episode.truncated:
            why = f"after {process.max_steps} steps the restoration ends, see --max-steps"
        else:
            why = "the policy stopped before it"
        whys.append({"tool": actions.name(index), "why": why})
    return whys


def _steps(episode: Episode, process: RestorationProcess, scores: list[dict]) -> list[dict]:
    steps = [{"tool": None, "task": None, "seconds": 0.0, **scores[0]}]
    applied, state = list(episode.applied), 0
    for index, seconds in zip(episode.history, episode.seconds, strict=True):
        task = None
        if applied and index == applied[0]:
            applied.pop(0)
            state += 1
            task = process.actions[index].task
        steps.append({"tool": process.actions.name(index), "task": task, "seconds": round(seconds, 4), **scores[state]})
    return steps


def _no_reference_scores(pixels: np.ndarray) -> dict:
    """``metrics``: each metric, or None where it has no value for this image; ``note``: which have none and why, or None."""
    metrics: dict[str, float | None] = {}
    notes = []
    for name, suite in _SUITES.items():
        metrics[name] = None
        try:
            with warnings.catch_warnings(action="ignore"):  # NumPy's, on what the note tells
                value = float(suite.score([pixels], [None])[0, 0])
        except Exception as error:
            notes.append(f"{name}: {_text(error)}")
            continue
        if math.isfinite(value):
            metrics[name] = value
        else:
            notes.append(f"{name}: it has no value on this image ({value})")
    return {"metrics": metrics, "note": "; ".join(notes) or None}


def _contact_sheet(episode: Episode, process: RestorationProcess, scores: list[dict]) -> np.ndarray:
    titles = ["input", *map(process.actions.name, episode.applied)]
    notes = ["  ".join(f"{name} {value:.3g}" for name, value in score["metrics"].items() if value is not None) for score in scores]
    return sheet([(state.as_uint8(), title, note) for state, title, note in zip(episode.states, titles, notes, strict=True)])


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, IrEnvError) else f"{type(error).__name__}: {error}"
