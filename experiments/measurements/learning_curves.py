"""How trainings of one experiment rise: their curves in one picture, pale by iteration and strong as running means.

    python -m experiments.measurements.learning_curves results/seeds/seed-0 results/seeds/seed-1 --picture docs/learning.png

The returns are those of the exploring policy on the images that it learns from; what a policy is worth on others is in the tables.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tir_agent.curves import smoothed
from tool_actors.errors import IrEnvError

TOLD = {"episode_return_mean": "return", "tools_per_image": "tools per image"}
"""Of a result's ``env_runners``, beside the metrics of the last images."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs")
    parser.add_argument("--picture", type=Path, default=Path("learning.png"))
    options = parser.parse_args(arguments)
    runs = {folder.name: read(folder) for folder in options.runs}
    names = list(next(iter(runs.values())))
    draw(runs, names, options.picture)
    for run, curves in runs.items():
        ends = "  ".join(f"{name} {values[:5].mean():.4g} -> {values[-5:].mean():.4g}" for name, values in curves.items())
        print(f"{run}: means of the first and of the last five iterations: {ends}")
    return 0


def read(folder: Path) -> dict[str, np.ndarray]:
    """Curves of a run by name, float64 (iterations,) each."""
    results = sorted(folder.glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    told: dict[int, dict[str, Any]] = {}
    for line in results[-1].read_text().splitlines() if results else []:
        result = json.loads(line)
        told[result["training_iteration"]] = result["env_runners"]
    if not told:
        raise IrEnvError(f"{folder}: holds no results of a training. Give the folder of a run, like results/simplecall_ppo.")
    rows = [told[at] for at in sorted(told)]
    curves = {title: np.array([row[name] for row in rows], float) for name, title in TOLD.items() if name in rows[0]}
    for metric in rows[0].get("quality", {}):
        curves[metric] = np.array([row["quality"][metric] for row in rows], float)
    return curves


def draw(runs: dict[str, dict[str, np.ndarray]], names: list[str], place: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(names), 2.8), layout="constrained")
    for axes, name in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for run, curves in runs.items():
            [line] = axes.plot(np.arange(1, len(curves[name]) + 1), smoothed(curves[name], 3), label=run, linewidth=2)
            axes.plot(np.arange(1, len(curves[name]) + 1), curves[name], color=line.get_color(), alpha=0.25)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("iteration")
    axes.legend(fontsize=8)
    figure.savefig(place, dpi=110)


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
