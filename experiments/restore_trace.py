"""What `ir-env restore` writes beside an image: a trace of the restoration, its scores, and a contact sheet of the steps."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np

from experiments.restore_files import Job
from ir_env.images import save_image, written_whole
from ir_env.metrics import NO_REFERENCE_METRICS, MetricSuite
from ir_env.rendering import sheet
from policies.restoration import SOFTWARE, Restored
from tool_actors.errors import IrEnvError

VIEW = 768
"""Longest side, in pixels, of what is scored of an image: its middle. Metrics of 12 megapixels take longer than most tools do."""
_SUITES = {name: MetricSuite([name]) for name in NO_REFERENCE_METRICS}
"""One suite per metric, since an image may suit one and not another; each loads its metric once."""


def scores_of(restored: Restored, scores: str) -> list[dict[str, Any]]:
    """Of each state; ``scores`` as in :class:`experiments.restore_files.Output`."""
    if scores == "off":
        return [{"metrics": {}, "note": None} for _ in restored.episode.states]
    states = [state.pixels if scores == "full" else middle(state.pixels) for state in restored.episode.states]
    return [no_reference_scores(_as_uint8(pixels)) for pixels in states]


def middle(pixels: np.ndarray) -> np.ndarray:
    """The middle of an image, at most :data:`VIEW` pixels a side."""
    top, left = (max(0, (side - VIEW) // 2) for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + VIEW, left : left + VIEW])


def write_trace(job: Job, restored: Restored, scores: list[dict], seconds: float, notes: list[str], scored: str) -> None:
    """The JSON trace."""
    trace = trace_of(restored, scores, seconds, notes, scored, str(job.path), job.restored.name)
    with written_whole(job.trace) as file:
        file.write(json.dumps(trace, indent=2, allow_nan=False).encode())


def trace_of(
    restored: Restored, scores: list[dict], seconds: float, notes: list[str], scored: str, image: str, name: str
) -> dict[str, Any]:
    """What became of an image, step by step.

    Args:
        restored: the restoration.
        scores: see :func:`scores_of`; ``scored`` is what was asked for there.
        seconds: what all of it took.
        notes: what a user should know.
        image, name: of the photograph and of the result.
    """
    return {
        "image": image,
        "policy": restored.policy,
        "restored": name,
        "software": SOFTWARE,
        "seconds": round(seconds, 4),
        "error": restored.error or None,
        "not_run": restored.not_run,
        "notes": notes,
        "scored": f"the middle, at most {VIEW} px a side" if scored == "view" else scored,
        "steps": _steps(restored, scores),
    }


def write_sheet(job: Job, restored: Restored, scores: list[dict]) -> None:
    """The contact sheet."""
    episode = restored.episode
    titles = ["input", *map(restored.process.actions.name, episode.applied)]
    notes = ["  ".join(f"{name} {value:.3g}" for name, value in score["metrics"].items() if value is not None) for score in scores]
    pictures = [state.as_uint8() for state in episode.states]
    save_image(job.steps, sheet(list(zip(pictures, titles, notes, strict=True))), SOFTWARE)


def text_of(error: Exception) -> str:
    return str(error) if isinstance(error, IrEnvError) else f"{type(error).__name__}: {error}"


def _steps(restored: Restored, scores: list[dict]) -> list[dict]:
    episode, actions = restored.episode, restored.process.actions
    steps: list[dict[str, Any]] = [{"tool": None, "task": None, "seconds": 0.0, **scores[0]}]
    applied, state = list(episode.applied), 0
    for index, seconds, thought in zip(episode.history, episode.seconds, restored.thoughts, strict=True):
        task = None
        if applied and index == applied[0]:
            applied.pop(0)
            state += 1
            task = actions[index].task
        steps.append({"tool": actions.name(index), "task": task, "seconds": round(seconds, 4), "thought": thought, **scores[state]})
    return steps


def no_reference_scores(pixels: np.ndarray) -> dict[str, Any]:
    """Of a uint8 image: ``metrics``, each or None where it has no value; and ``note``, which have none and why, or None."""
    metrics: dict[str, float | None] = {}
    notes = []
    for name, suite in _SUITES.items():
        metrics[name] = None
        try:
            with warnings.catch_warnings(action="ignore"):  # NumPy's, on what the note tells
                value = float(suite.score([pixels], [None])[0, 0])
        except Exception as error:
            notes.append(f"{name}: {text_of(error)}")
            continue
        if math.isfinite(value):
            metrics[name] = value
        else:
            notes.append(f"{name}: it has no value on this image ({value})")
    return {"metrics": metrics, "note": "; ".join(notes) or None}


def _as_uint8(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255.0).astype(np.uint8)
