"""What ends a sweep: its trials side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.training.launch import Outcome, Trial, closing_table
from experiments.training.progress import lookup

RESULT = "sweep.json"
"""In the folder of a sweep: how each trial ended, and the tables of their policies on held-out photographs."""


def close_sweep(outcome: Outcome, console: Console, samples: int) -> None:
    """Print how each trial ended and, of restoration policies, a row per trial on held-out photographs; and keep both beside the run.

    Trials whose policies act in the same environment share a table, and with it the images and the baselines.

    Args:
        samples: held-out images of a table; 0 leaves the tables out.
    """
    trials = [_summary(trial) for trial in outcome.trials]
    shown = Table("trial", "iterations", "return", "policy", title=f"{len(trials)} trials")
    for trial in trials:
        policy = f"failed: {trial['error']}" if trial["error"] else str(trial["checkpoint"])
        shown.add_row(trial["trial"], str(trial["iterations"]), "" if trial["return"] is None else f"{trial['return']:+.3f}", policy)
    console.print(shown)
    tables = []
    for policies in _alike(outcome).values() if samples else ():
        tables.append(closing_table(policies, console, None, samples).as_dict())
    (outcome.folder / RESULT).write_text(json.dumps({"trials": trials, "tables": tables}, indent=2) + "\n")


def _summary(trial: Trial) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "folder": trial.folder.name,
        "checkpoint": trial.checkpoint and str(trial.checkpoint),
        "iterations": trial.metrics.get("training_iteration", 0),
        "return": lookup(trial.metrics, "env_runners/episode_return_mean"),
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
