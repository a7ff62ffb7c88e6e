"""Restores photographs: the image at full resolution, a contact sheet of the steps, and a trace."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ir_env.episode import Episode
from ir_env.images import find_images, load_image, make_folder, save_image
from ir_env.metrics import NO_REFERENCE_METRICS, MetricError, MetricSuite
from ir_env.planner import Planner, run
from ir_env.process import RestorationProcess
from ir_env.rendering import sheet
from policies.loading import load_policy
from tool_actors.errors import IrEnvError

_SUITES = {name: MetricSuite([name]) for name in NO_REFERENCE_METRICS}
"""One suite per metric, since an image may be large enough for one and not for another; each loads its metric once."""


class _NoMetrics(MetricSuite):
    """Restoring plans without a reference; the trace is scored afterwards."""

    def score(self, images, references):
        import numpy as np

        return np.full((len(images), len(self.metrics)), np.nan, np.float32)


def restore_all(images: Sequence[str], policy: str, out: str, max_steps: int = 6, seed: int = 0, toolbox: str | None = None) -> int:
    """Restore every image; one that fails is reported and the others go on. Returns the exit status.

    ``toolbox`` is for planners that can use any; a trained policy keeps its own.
    """
    folder = make_folder(out)
    paths = [path for image in images for path in (find_images(image) if Path(image).is_dir() else [Path(image)])]
    planner = load_policy(policy, seed)
    if planner.needs_reference:
        raise IrEnvError(
            f"the policy {planner.name!r} looks at the clean image, which a photograph to restore does not have; choose another"
        )
    process = RestorationProcess(toolbox=toolbox or planner.toolbox or "default", max_steps=max_steps, cache_bytes=0)
    process.suite = _NoMetrics()
    failures = 0
    seen: Counter[str] = Counter()
    for path in paths:
        seen[path.stem] += 1
        # photographs of one name from several folders must not overwrite one another
        stem = path.stem if seen[path.stem] == 1 else f"{path.stem}-{seen[path.stem]}"
        try:
            print(_restore_one(path, stem, process, planner, folder))
        except IrEnvError as error:
            failures += 1
            print(f"error: {error}", file=sys.stderr)
    return 2 if failures else 0


def _restore_one(path: Path, stem: str, process: RestorationProcess, planner: Planner, folder: Path) -> str:
    start = time.perf_counter()
    episode = process.start_image(load_image(path), name=str(path))
    for _ in run(process, planner, [episode]):
        pass
    if episode.error:
        print(f"warning: {path}: {episode.error}; its restoration ends before that tool", file=sys.stderr)
    seconds = time.perf_counter() - start
    scores = [_no_reference_scores(state.as_uint8()) for state in episode.states]
    restored = save_image(folder / f"{stem}_restored.png", episode.state.as_uint8())
    save_image(folder / f"{stem}_steps.png", _contact_sheet(episode, process, scores))
    trace = {
        "image": str(path),
        "policy": planner.name,
        "restored": restored.name,
        "seconds": round(seconds, 4),
        "error": episode.error or None,
        "steps": _steps(episode, process, scores),
    }
    (folder / f"{stem}_trace.json").write_text(json.dumps(trace, indent=2))
    tools = [step["tool"] for step in trace["steps"] if step["task"]]
    return f"{restored}  ({' + '.join(tools) or 'nothing'}; {seconds:.2f} s)"


def _steps(episode: Episode, process: RestorationProcess, scores: list[dict]) -> list[dict]:
    steps = [{"tool": None, "task": None, "seconds": 0.0, "metrics": scores[0]}]
    state = 0
    for index, seconds in zip(episode.history, episode.seconds, strict=True):
        if index == process.actions.stop or state + 1 >= len(episode.states):
            steps.append({"tool": process.actions.name(index), "task": None, "seconds": 0.0, "metrics": scores[state]})
            continue
        state += 1
        action = process.actions[index]
        steps.append({"tool": action.tool, "task": action.task, "seconds": round(seconds, 4), "metrics": scores[state]})
    return steps


def _no_reference_scores(pixels) -> dict[str, float | None]:
    """Each metric, or None where the image is too small for it."""
    scores: dict[str, float | None] = {}
    for name, suite in _SUITES.items():
        try:
            scores[name] = float(suite.score([pixels], [None])[0, 0])
        except MetricError:
            scores[name] = None
    return scores


def _contact_sheet(episode: Episode, process: RestorationProcess, scores: list[dict]):
    titles = ["input", *map(process.actions.name, episode.applied)]
    notes = ["  ".join(f"{name} {value:.3g}" for name, value in score.items() if value is not None) for score in scores]
    return sheet([(state.as_uint8(), title, note) for state, title, note in zip(episode.states, titles, notes, strict=False)])
