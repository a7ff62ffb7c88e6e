"""What runs of GRPO left of their iterations, for figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Curves = dict[str, dict[str, np.ndarray]]
"""``reward`` (the metrics' means over the rollouts, oriented so that higher is better) and ``weight`` (MAR's) -> metric -> float64
(iterations,)."""


def read_curves(trial: Path) -> Curves:
    """Of a trial's ``result.json``, as RLlib writes it or :mod:`experiments.tir_agent.ablation`; an iteration that was repeated after an
    interruption counts as it was in the end. Empty if there is none."""
    told: dict[int, Mapping[str, Any]] = {}
    for line in (trial / "result.json").read_text().splitlines():
        result = json.loads(line)
        part = result.get("grpo", result)
        # the ablation's last line is the row of its table, with one reward
        if isinstance(part.get("reward"), Mapping):
            told[result["training_iteration"]] = part
    iterations = [told[at] for at in sorted(told)]
    if not iterations:
        return {}
    return {
        part: {metric: np.array([each[part][metric] for each in iterations], float) for metric in iterations[0]["weight"]}
        for part in ("reward", "weight")
    }


def grpo_curves(run: Path) -> dict[str, Curves]:
    """Of the runs ``grpo-SEED`` in the folder of :mod:`experiments.tir_agent`, by name."""
    return {folder.name: curves for folder in sorted(run.glob("grpo-*")) if (curves := _longest(folder.glob("*/result.json")))}


def row_curves(ablation: Path) -> dict[str, Curves]:
    """Of the rows in the folder of :mod:`experiments.tir_agent.ablation`, by their names."""
    trials: dict[str, list[Path]] = {}
    for result in sorted((ablation / "trials").glob("*/result.json")):
        first = result.read_text().partition("\n")[0]
        if first:
            trials.setdefault(json.loads(first)["config"]["row"], []).append(result)
    return {row: curves for row, results in trials.items() if (curves := _longest(results))}


def _longest(results) -> Curves:
    """A trial that failed, or was tried again from the beginning, is shorter than the one that counts."""
    found = [curves for result in results if (curves := read_curves(result.parent))]
    return max(found, key=lambda curves: len(next(iter(curves["weight"].values()))), default={})


def smoothed(values: np.ndarray, reach: int = 2) -> np.ndarray:
    """The running mean, float64 (n,): of each value with ``reach`` before and after it, as far as there are so many."""
    return np.array([values[max(0, at - reach) : at + reach + 1].mean() for at in range(len(values))])
