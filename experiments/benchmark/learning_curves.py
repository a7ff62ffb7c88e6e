"""Learning curves of RLlib runs, from what they wrote while they trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tool_actors.errors import IrEnvError

Curve = list[tuple[float, float]]
RETURNS = {"episode_return_mean": "mean return", "episode_len_mean": "mean length"}


def read_runs(runs: list[Path]) -> dict[str, dict[str, Curve]]:
    """What is drawn -> run, or trial of a sweep, -> (iteration, value).

    Raises:
        IrEnvError: a folder holds no ``result.json``.
    """
    told: dict[str, dict[str, Curve]] = {}
    for run in runs:
        found = _trials(run)
        if not found:
            raise IrEnvError(
                f"--curves {run}: holds no result.json. Give the folder of a run of `rllib train`, e.g. results/simplecall_ppo."
            )
        for trial, file in found.items():
            for iteration, result in iterations_of(file).items():
                for name, value in _values(result).items():
                    told.setdefault(name, {}).setdefault(trial, []).append((iteration, value))
    return told


def _trials(run: Path) -> dict[str, Path]:
    """The results of a run, by its name; of a sweep those of its trials, by what it varies in them."""
    try:
        names = json.loads((run / "run.json").read_text())["trials"]
    except (OSError, ValueError, KeyError):
        names = {}
    trials = {name: run / folder / "result.json" for folder, name in names.items()}
    if not trials:
        # of a training that was tried again, the longest counts
        files = sorted(run.rglob("result.json"), key=lambda path: path.stat().st_size)
        trials = {run.name: files[-1]} if files else {}
    return {f"{run.name}, {name}" if names else name: file for name, file in trials.items() if file.is_file()}


def iterations_of(file: Path) -> dict[int, Mapping[str, Any]]:
    """An iteration that was repeated after an interruption counts as it was in the end; a line that was cut off counts for nothing."""
    told = {}
    for line in file.read_text().splitlines():
        try:
            result = json.loads(line)
            told[int(result["training_iteration"])] = result
        except (ValueError, KeyError, TypeError):
            continue
    return dict(sorted(told.items()))


def _values(result: Mapping[str, Any]) -> dict[str, float]:
    runners = result.get("env_runners") or {}
    named = {title: runners.get(key) for key, title in RETURNS.items()}
    grpo = result.get("grpo") or {}
    for part, title in (("reward", "of rollouts"), ("weight", "MAR's weight")):
        values = grpo.get(part)
        if isinstance(values, Mapping):
            named |= {f"{metric}, {title}": value for metric, value in values.items()}
    return {name: float(value) for name, value in named.items() if isinstance(value, int | float) and value == value}
