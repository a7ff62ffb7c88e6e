"""The README's training command over several seeds: wall-clock time, and the held-out table's mean and spread.

    python -m experiments.measurements.simplecall_seeds --seeds 0 1 2

Runs `rllib train file experiments/simplecall_ppo.py --seed S` as a user would, one after another. A seed whose run is complete is read, not
repeated.
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
from rich.table import Table

POLICIES = ("trained policy", "nothing", "random", "best fixed", "greedy")


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--experiment", default="experiments/simplecall_ppo.py")
    parser.add_argument("--storage", type=Path, default=Path("results/bench"))
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options, passed_on = parser.parse_known_args(arguments)

    runs = {seed: run(options.experiment, seed, options.storage, passed_on) for seed in options.seeds}
    table = Table(title=f"mean reward on held-out photographs, seeds {options.seeds}")
    for column in ("policy", *(f"seed {seed}" for seed in runs), "mean", "spread (std)"):
        table.add_column(column, justify="right")
    report: dict[str, Any] = {"seconds": {seed: result["seconds"] for seed, result in runs.items()}, "rewards": {}}
    for policy in POLICIES:
        rewards = [next(row["reward"] for row in result["rows"] if row["policy"].startswith(policy)) for result in runs.values()]
        mean, spread = float(np.mean(rewards)), float(np.std(rewards, ddof=1)) if len(rewards) > 1 else 0.0
        report["rewards"][policy] = {"seeds": rewards, "mean": mean, "std": spread}
        table.add_row(policy, *(f"{reward:+.3f}" for reward in rewards), f"{mean:+.3f}", f"{spread:.3f}")
    table.add_row(
        "seconds", *(f"{seconds:.0f}" for seconds in report["seconds"].values()), f"{np.mean(list(report['seconds'].values())):.0f}", ""
    )
    fixed, greedy = report["rewards"]["best fixed"]["mean"], report["rewards"]["greedy"]["mean"]
    report["closed"] = (report["rewards"]["trained policy"]["mean"] - fixed) / (greedy - fixed)
    console = Console()
    console.print(table)
    console.print(f"the policy closes {report['closed']:.0%} of the distance from the best fixed plan to greedy")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    return report


def run(experiment: str, seed: int, storage: Path, passed_on: list[str]) -> dict:
    """Train with one seed; the rows of its closing table and the seconds of the whole command."""
    folder = storage / f"seed-{seed}"
    kept = folder / "bench.json"
    if not kept.is_file():
        command = [sys.executable, "-m", "experiments.cli.rllib", "train", "file", experiment]
        command += [f"--seed={seed}", f"--name={folder.name}", f"--storage={storage}", *passed_on]
        start = time.monotonic()
        subprocess.run(command, check=True)
        rows = json.loads((folder / "heldout.json").read_text())["rows"]
        kept.write_text(json.dumps({"seconds": time.monotonic() - start, "rows": rows}))
    return json.loads(kept.read_text())


if __name__ == "__main__":
    main()
