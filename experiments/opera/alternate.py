"""OPERA whole: planner and tools learn in turn, any number of rounds.

How to run
----------
    python -m experiments.opera.alternate --photos FOLDER --heldout OTHER --out results/opera --rounds 2

Each round trains the planner by GRPO with the tools as they are (``experiments/opera/planner.py``), from the second round on beginning
with the planner of the round before, and then the tools under its plans (``experiments/opera/cotrain.py``). Paper and released code do
one round.
The closing table (``experiments/opera/table.py``) has each round's planner with the tools before and after it. What is done is kept: the
same command after an interruption goes on where it stopped.

``--planner`` and ``--tools`` pass arguments on, e.g. ``--planner " --stop training_iteration=20" --tools " --steps 500"``.

Results to expect
-----------------
Two rounds, 96 whole photographs (the planner from ``opera/clone.py``'s start, ``--tools " --combos A,B,C:2 --images 500 --epochs 4 --single
0.4"``): reward +1.70 with the first planner, +1.91 with its tools; +1.89 with the second planner and these tools, +1.93 with the second
tools, which is PIQE's alone (-3.1). A second round adds no reward that is told from chance. Some 35 minutes of a core.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

EXPERIMENT = Path(__file__).with_name("planner.py")
DONE = "finished"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs to learn from")
    parser.add_argument("--heldout", required=True, help="folder of clean photographs for the table")
    parser.add_argument("--out", type=Path, default=Path("results/opera"))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--toolbox", default="default", help="the tools of the first round")
    parser.add_argument("--samples", type=int, default=64, help="images of the table")
    for name, what in (("planner", "rllib train"), ("tools", "opera/cotrain.py"), ("table", "opera/table.py")):
        parser.add_argument(f"--{name}", type=str.split, default=[], help=f'more arguments of {what}, e.g. --{name} " --seed 1"')
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    toolbox, before, rows = options.toolbox, None, []
    for turn in range(1, options.rounds + 1):
        planner, tools = options.out / f"planner-{turn}", options.out / f"tools-{turn}"
        stage(f"round {turn}: planner", planner, planner_command(options, turn, toolbox, before))
        learned = tools / "toolbox" / "toolbox.yaml"
        words = ["-m", "experiments.opera.cotrain", "--photos", options.photos, "--policy", str(planner), "--toolbox", toolbox]
        stage(f"round {turn}: tools", tools, [*words, "--out", str(tools), "--seed", str(options.seed), *options.tools])
        rows += [f"planning {turn}={planner}@{toolbox}", f"full {turn}={planner}@{learned}"]
        toolbox, before = str(learned), planner
    words = [
        "-m",
        "experiments.opera.table",
        "--photos",
        options.heldout,
        "--out",
        str(options.out / "table"),
        "--samples",
        str(options.samples),
    ]
    for row in rows:
        words += ["--row", row]
    subprocess.run([sys.executable, *words, "--pair", "full 1,planning 1", *options.table], check=True)
    return 0


def stage(name: str, folder: Path, command: Sequence[str]) -> None:
    """Run a stage unless it is done."""
    if not (folder / DONE).exists():
        print(f"\n--- {name}", flush=True)
        subprocess.run([sys.executable, *command], check=True)
        (folder / DONE).touch()


def planner_command(options: argparse.Namespace, turn: int, toolbox: str, before: Path | None) -> list[str]:
    """The arguments of ``python`` that train, or go on training, a round's planner."""
    command = ["-m", "experiments.cli.rllib", "train", "file", str(EXPERIMENT)]
    command += ["--name", f"planner-{turn}", "--storage", str(options.out), "--samples", "0"]
    if (options.out / f"planner-{turn}" / "tuner.pkl").is_file():
        return [*command, "--resume"]
    settings = {"env_config.dataset.photos": options.photos, "env_config.dataset.split": "all", "env_config.toolbox": toolbox}
    if before:
        settings["model_config.start"] = str(before)
    return [
        *command,
        "--seed",
        str(options.seed),
        *(word for item in settings.items() for word in ("--set", "=".join(item))),
        *options.planner,
    ]


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
