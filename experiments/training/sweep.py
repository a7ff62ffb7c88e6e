"""What ends a sweep: its trials side by side, as a table and as a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.benchmark.learning_curves import iterations_of
from experiments.training.launch import Outcome, Trial, closing_table
from experiments.training.progress import RETURN, lookup

RESULT = "sweep.json"
"""In the folder of a sweep: how each trial ended, and the tables of their policies on held-out photographs."""
PICTURE = "sweep.png"
"""Beside it: the returns of the trials, while they trained and at their end."""


def close_sweep(outcome: Outcome, console: Console, samples: int) -> None:
    """Print how each trial ended and, of restoration policies, a row per trial on held-out photographs; and keep both beside the run, with
    a picture.

    Trials that fell behind have no row there. Those whose policies act in the same environment share a table, and with it the images and
    the baselines.

    Args:
        samples: held-out images of a table; 0 leaves the tables out.
    """
    trials = [_summary(trial) for trial in outcome.trials]
    shown = Table("trial", "iterations", "return", "policy", title=f"{len(trials)} trials")
    for trial in trials:
        kept = f"{trial['folder']}/{Path(trial['checkpoint']).name}" if trial["checkpoint"] else ""
        policy = f"failed: {trial['error']}" if trial["error"] else kept
        iterations = f"{trial['iterations']}{', fell behind' if trial['early'] else ''}"
        shown.add_row(trial["trial"], iterations, "" if trial["return"] is None else f"{trial['return']:+.3f}", policy)
    console.print(shown)
    tables = []
    for policies in _alike(outcome).values() if samples else ():
        tables.append(closing_table(policies, console, None, samples).as_dict())
    (outcome.folder / RESULT).write_text(json.dumps({"trials": trials, "tables": tables}, indent=2) + "\n")
    draw(outcome, trials)
    console.print(f"{outcome.folder / RESULT}, {outcome.folder / PICTURE}", soft_wrap=True)


def draw(outcome: Outcome, trials: Sequence[Mapping[str, Any]]) -> None:
    """The picture: a curve of returns per trial, and the return at its end, in the order of the trials."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 1.6 + max(3.0, 0.3 * len(trials))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for at, (trial, told) in enumerate(zip(outcome.trials, trials, strict=True)):
        written = trial.folder / "result.json"
        curve = iterations_of(written) if written.is_file() else {}
        returns = [lookup(result, RETURN) for result in curve.values()]
        left.plot(list(curve), [math.nan if value is None else value for value in returns], marker=".", color=f"C{at}")
        last = told["return"]
        right.barh(at, 0.0 if last is None else last, color=f"C{at}", alpha=0.4 if told["early"] else 1.0)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="iteration", ylabel="mean return in training")
    right.set_yticks(range(len(trials)), [f"{each['trial']}{' (fell behind)' if each['early'] else ''}" for each in trials])
    right.invert_yaxis()
    right.set_xlabel("mean return of the last iteration")
    figure.savefig(outcome.folder / PICTURE, dpi=120)


def _summary(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "folder": trial.folder.name,
        "checkpoint": trial.checkpoint and str(trial.checkpoint),
        "iterations": trial.metrics.get("training_iteration", 0),
        "return": lookup(trial.metrics, RETURN),
        "early": trial.early,
        "error": trial.error,
    }


def _alike(outcome: Outcome) -> dict[str, dict[str, Path]]:
    """The policies that one table can hold: those that are evaluated alike."""
    from ir_env.evaluation import evaluation_settings
    from policies.loading import load_checkpoint

    groups: dict[str, dict[str, Path]] = {}
    for name, checkpoint in outcome.checkpoints.items():
        settings = evaluation_settings(load_checkpoint(checkpoint).env_config)
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), {})[name] = checkpoint
    return groups
