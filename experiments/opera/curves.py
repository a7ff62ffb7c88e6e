"""The dynamics of OPERA's trainings as figures: figure 4 (Rd and Rq) and figure 5 (length of the answers, with and without Rc).

How to run
----------
    python -m experiments.opera.curves --run "seed 0=results/s0" --run "seed 1=results/s1" --out figure4.png
    python -m experiments.opera.curves --figure 5 --run "with Rc=results/with" --run "without Rc=results/without" --out figure5.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from tool_actors.errors import IrEnvError

FIGURES = {
    "4": {"degradation prediction, Rd": ("grpo", "part", "degradation"), "restoration, Rq": ("grpo", "part", "quality")},
    "5": {"tokens of an answer": ("grpo", "tokens")},
}
REACH = 2
"""Iterations before and after one that its drawn value is the mean of."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", action="append", required=True, metavar="NAME=FOLDER", help="repeatable")
    parser.add_argument("--figure", choices=FIGURES, default="4")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)

    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    from experiments.tir_agent.curves import smoothed

    runs = {name: results_of(Path(folder)) for name, _, folder in (text.partition("=") for text in options.run)}
    panels = FIGURES[options.figure]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 3.4), squeeze=False, layout="constrained")
    for axis, (title, path) in zip(axes[0], panels.items(), strict=True):
        for name, results in runs.items():
            values = np.array([value_at(result, path) for result in results], float)
            [line] = axis.plot(np.arange(1, len(values) + 1), values, alpha=0.25, linewidth=1)
            axis.plot(np.arange(1, len(values) + 1), smoothed(values, REACH), color=line.get_color(), label=name)
            print(f"{name}, {title}: {values[:3].mean():.3f} (first three) -> {values[-3:].mean():.3f} (last three of {len(values)})")
        axis.set(title=title, xlabel="iteration")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(options.out, dpi=120)


def results_of(run: Path) -> list[dict[str, Any]]:
    """The results of a run's longest trial, by iteration."""
    found: list[list[dict[str, Any]]] = []
    for file in run.glob("**/result.json"):
        told = {result["training_iteration"]: result for result in map(json.loads, file.read_text().splitlines())}
        found.append([told[at] for at in sorted(told)])
    if not any(found):
        raise IrEnvError(f"{run}: holds no result.json of a training")
    return max(found, key=len)


def value_at(result: dict[str, Any], path: tuple[str, ...]) -> float:
    value: Any = result
    for name in path:
        if name not in value:
            raise IrEnvError(f"the training has no {'/'.join(path)} in its results; it is none of ir_env/RestorationPlan-v0")
        value = value[name]
    return float(value)


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(lambda: main() or 0))
