"""The README's training command over several seeds: wall-clock time, held-out tables, and what the training brought, paired.

    python -m experiments.measurements.simplecall_seeds --seeds 0 1 2
    python -m experiments.measurements.simplecall_seeds --seeds 0 1 2 --photos FOLDER --samples 192

Runs `rllib train file experiments/simplecall_ppo.py --seed S` as a user would, one after another, then `rllib evaluate` on ``--photos``.
The policy as it was before its first update is a row of each table; the difference that the training made is taken image by image,
averaged over the seeds, with an interval by photograph. What is done for a seed is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from ir_env.evaluation import Row, bootstrap, save_json, sign_flips

TRAINED, BEFORE, FIXED, GREEDY = "trained policy", "before training", "best fixed plan", "greedy"
POLICIES = (TRAINED, BEFORE, "nothing", "random", FIXED, GREEDY)
COLUMNS = ("reward", "tools")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--experiment", default="experiments/simplecall_ppo.py")
    parser.add_argument("--storage", type=Path, default=Path("results/seeds"))
    parser.add_argument("--photos", help="folder of photographs for the tables; by default those that the training holds out")
    parser.add_argument("--samples", type=int, default=128, help="images of a table")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options, passed_on = parser.parse_known_args(arguments)

    runs = {seed: run(seed, options, passed_on) for seed in options.seeds}
    console = Console()
    table = RichTable("policy", *(f"seed {seed}" for seed in runs), "mean", "spread (std)", title="mean reward")
    report: dict[str, Any] = {"seconds": {str(seed): told["seconds"] for seed, told in runs.items()}, "rewards": {}}
    for policy in POLICIES:
        rewards = [float(np.mean(np.array(row_of(told, policy).per_image["reward"], np.float64))) for told in runs.values()]
        report["rewards"][policy] = {
            "seeds": rewards,
            "mean": float(np.mean(rewards)),
            "std": float(np.std(rewards, ddof=min(1, len(rewards) - 1))),
        }
        told = report["rewards"][policy]
        table.add_row(policy, *(f"{reward:+.3f}" for reward in rewards), f"{told['mean']:+.3f}", f"{told['std']:.3f}")
    console.print(table)
    report["differences"] = {column: difference(list(runs.values()), column) for column in COLUMNS}
    for column, told in report["differences"].items():
        ends = "" if told["interval"] is None else " ({:+.3f} to {:+.3f})".format(*told["interval"])
        console.print(
            f"{TRAINED} less {BEFORE}, {column}: {told['mean']:+.3f}{ends}, p = {told['p']:.2g}; by photograph, mean of the seeds"
        )
    report["worse"] = {policy: float(np.mean([row_of(told, policy).worse for told in runs.values()])) for policy in POLICIES}
    means = {policy: report["rewards"][policy]["mean"] for policy in POLICIES}
    report["closed"] = (means[TRAINED] - means[FIXED]) / (means[GREEDY] - means[FIXED])
    console.print(
        f"the policy closes {report['closed']:.0%} of the distance from the best fixed plan to greedy; images worse than they began: "
        f"{report['worse'][TRAINED]:.1%}, before training {report['worse'][BEFORE]:.1%}; a training took "
        f"{np.mean(list(report['seconds'].values())):.0f} s"
    )
    if options.json:
        save_json(report, options.json)
    return report


def run(seed: int, options: argparse.Namespace, passed_on: list[str]) -> dict[str, Any]:
    """Train with one seed; its table, and the seconds of the training command (with its own table, unless ``--photos`` asks for one)."""
    folder = options.storage / f"seed-{seed}"
    seconds, table = folder / "seconds.json", folder / (f"{Path(options.photos).name}.json" if options.photos else "heldout.json")
    rllib = [sys.executable, "-m", "experiments.cli.rllib"]
    if not seconds.is_file():
        start = time.monotonic()
        samples = 0 if options.photos else options.samples
        settings = [f"--seed={seed}", f"--name={folder.name}", f"--storage={options.storage}", f"--samples={samples}", *passed_on]
        subprocess.run([*rllib, "train", "file", options.experiment, *settings], check=True)
        seconds.write_text(json.dumps(time.monotonic() - start))
    if not table.is_file():
        elsewhere = [f"--photos={options.photos}", f"--samples={options.samples}", f"--json={table}"]
        subprocess.run([*rllib, "evaluate", str(folder), *elsewhere], check=True)
    return {**json.loads(table.read_text()), "seconds": json.loads(seconds.read_text())}


def row_of(told: dict[str, Any], policy: str) -> Row:
    return Row.of(next(row for row in told["rows"] if row["policy"].startswith(policy)))


def difference(runs: list[dict[str, Any]], column: str) -> dict[str, Any]:
    """What the training changed in a column of :attr:`Row.per_image`, of the seeds' mean."""
    of = lambda policy: np.array([row_of(told, policy).per_image[column] for told in runs], np.float64)  # noqa: E731
    values = (of(TRAINED) - of(BEFORE)).mean(0)
    photographs = runs[0]["photographs"]
    return {"mean": float(values.mean()), "interval": bootstrap(values, photographs), "p": sign_flips(values, photographs)}


if __name__ == "__main__":
    main()
