"""TIR-Agent at nano scale, whole: from photographs to the final table with one command, on two CPU cores.

How to run
----------
    python -m experiments.tir_agent --photos FOLDER --heldout OTHER --out results/tir_agent
    python -m experiments.tir_agent --photos FOLDER --out results/tir_agent --seeds 0,1,2       # GRPO with several seeds

The stages, each a script of its own that can be run alone:

1. ``experiments/tir_agent/pretrain.py``: nano learns to see (what a published model brings along).
2. ``experiments/tir_agent/demos.py``: demonstrations by a training-free agent in 4KAgent's manner.
3. ``experiments/tir_agent/sft.py``: supervised fine-tuning on perturbed demonstrations (EDP).
4. ``experiments/tir_agent/nano.py``: GRPO with the multi-dimensional adaptive reward (MAR), one run per seed.
5. The table (``table.json``): the policy after each stage on photographs that it has never seen, beside the demonstrator, once as it made
   the demonstrations (it perceives without fault, and judges results by the clean image), once as it can be deployed (it perceives with an
   encoder, and judges by PIQE).

What is done is kept: the same command after an interruption goes on where it stopped.

Results to expect
-----------------
Photographs of BSDS500's train set; the table on 256 crops of 64 px of its test set, which no tool has learned from either; ``--iterations
60 --pretrain " --states 10080" --demos " --count 4000" --seeds 0,1,2``; 95 % intervals by photograph (142):

    policy                    reward                normalised  psnr   psnry  ssim_ycbcr  gmsd    piqe   tools run
    demonstrator, an oracle   +1.89 [+1.75, +2.04]  +4.67       24.54  26.31  0.7085      0.1155  39.24  8.29
    demonstrator, deployed    +0.93 [+0.79, +1.07]  +1.91       19.43  21.05  0.6045      0.1538  41.89  5.10
    SFT                       +1.06 [+0.90, +1.22]  +2.22       19.70  21.27  0.6252      0.1488  40.01  1.82
    SFT + GRPO, seed 0        +1.14 [+0.99, +1.27]  +2.46       20.19  21.82  0.6468      0.1430  42.64  1.73
    SFT + GRPO, seed 1        +1.12 [+0.99, +1.25]  +2.47       20.23  21.83  0.6418      0.1410  42.92  1.78
    SFT + GRPO, seed 2        +1.18 [+1.04, +1.33]  +2.64       20.45  22.10  0.6448      0.1394  41.44  1.80

The mean of the three seeds less SFT, paired: reward +0.08 [-0.01, +0.18], normalised +0.31 [+0.05, +0.56], PSNR +0.59 dB [+0.10, +1.09],
SSIM +.019 [+.006, +.032], GMSD -.008 [-.012, -.003], PIQE +2.3 [+0.5, +4.3], which is worse: MAR weighs the four metrics nearly alike, and
three of them compare with the clean image. Every answer was well-formed, after SFT and after GRPO. One core for each stage, beside other
work on the second: demonstrations 4 minutes, fine-tuning some 7, GRPO 8 to 10 per seed; pretraining 19 with other work on both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ir_env.evaluation import Table

NANO_EXPERIMENT = Path(__file__).with_name("nano.py")
DONE = "finished"
"""Beside a run that came to its end."""


def main(arguments: list[str] | None = None) -> None:
    options = build_parser().parse_args(arguments)

    from ir_env.evaluation import save_json

    out, start = options.out, time.monotonic()
    kept = out / "seconds.json"
    seconds = json.loads(kept.read_text()) if kept.is_file() else {}

    def stage(name: str, done: Path, command: Sequence[str]) -> None:
        if not done.exists():
            print(f"\n--- {name}", flush=True)
            begun = time.monotonic()
            subprocess.run([sys.executable, *command], check=True)
            seconds[name] = seconds.get(name, 0) + round(time.monotonic() - begun)
            kept.write_text(json.dumps(seconds, indent=2) + "\n")

    out.mkdir(parents=True, exist_ok=True)
    nano, demos, sft, photos = out / "nano", out / "demos", out / "sft", ["--photos", options.photos]
    script = "experiments.tir_agent."
    stage("pretraining", nano / "report.json", ["-m", f"{script}pretrain", *photos, "--out", str(nano), *options.pretrain])
    apart = ["--heldout-photos", options.heldout] if options.heldout else []
    stage("demonstrations", demos / "data", ["-m", f"{script}demos", *photos, *apart, "--out", str(demos), *options.demos])
    words = ["--demos", str(demos), "--model", str(nano), "--out", str(sft), *options.sft]
    stage("fine-tuning", sft / "report.json", ["-m", f"{script}sft", *words])
    policies = {"SFT": sft / "policy"}
    for seed in map(int, options.seeds.split(",")):
        name = f"grpo-{seed}"
        settings = [f"model_config.model={sft}/policy", f"env_config.dataset.photos={options.photos}", *options.grpo]
        stage(f"GRPO, seed {seed}", out / name / DONE, grpo_command(out, name, seed, settings, options.iterations))
        (out / name / DONE).touch()
        policies[f"SFT + GRPO, seed {seed}"] = out / name
    table = compare(out / "demos", policies, options.images)
    told: dict[str, Any] = {"images": len(table.photographs), "policies": {row.policy: row.as_dict() for row in table.rows}}
    told["differences"] = [asdict(difference) for difference in table.differences]
    save_json({**told, "seconds": {**seconds, "this command": round(time.monotonic() - start)}}, out / "table.json")
    formed = {"formed": lambda row: f"{row.more['well_formed']:.0%}" if "well_formed" in row.more else ""}
    table.show(None, f"{len(table.photographs)} held-out images", formed)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of photographs, or builtin; one in five is held out")
    parser.add_argument(
        "--heldout", metavar="FOLDER", help="photographs of the table, which no stage learns from and no tool has learned from"
    )
    parser.add_argument("--out", type=Path, default=Path("results/tir_agent"))
    parser.add_argument("--seeds", default="0", help="of GRPO, separated by commas")
    parser.add_argument("--iterations", type=int, help="of GRPO, by default those of its experiment file")
    parser.add_argument("--images", type=int, default=256, help="held-out images of the table")
    for name in ("pretrain", "demos", "sft"):
        parser.add_argument(f"--{name}", type=str.split, default=[], help=f'more arguments of that stage, e.g. --{name} " --seed 1"')
    parser.add_argument("--grpo", type=str.split, default=[], help='settings of GRPO, e.g. --grpo "mar=false lr=1e-4"')
    return parser


def grpo_command(storage: Path, name: str, seed: int, settings: Sequence[str], iterations: int | None) -> list[str]:
    """The arguments of ``python`` that train, or go on training, ``experiments/tir_agent/nano.py`` as ``storage/name``."""
    command = ["-m", "experiments.cli.rllib", "train", "file", str(NANO_EXPERIMENT)]
    command += ["--name", name, "--storage", str(storage), "--samples", "0"]
    if (storage / name / "tuner.pkl").is_file():
        return [*command, "--resume"]
    if iterations:
        command += ["--stop", f"training_iteration={iterations}"]
    return [*command, "--seed", str(seed), *(word for setting in settings for word in ("--set", setting))]


def compare(demos: Path, policies: Mapping[str, Path], images: int) -> Table:
    """The policies beside the demonstrator, on the first held-out demonstrations; the others, and their mean, less the first policy."""
    from rich.progress import track

    from experiments.tir_agent.demos import load_demonstrations
    from experiments.tir_agent.held_out import METRICS, evaluate, evaluate_demonstrator, evaluate_traversal, table_of
    from policies.loading import load_policy

    splits, made_with = load_demonstrations(demos)
    rows = splits["heldout"].select(range(min(images, len(splits["heldout"]))))
    told = [
        evaluate_demonstrator("demonstrator, an oracle", rows, made_with),
        evaluate_traversal("demonstrator, deployed", rows, made_with),
    ]
    for name, folder in track(policies.items(), "measuring", transient=True):
        told.append(evaluate(name, load_policy(folder), rows, made_with))
    table = table_of(told, rows)
    first, *others = policies
    table.differences.extend(table.difference(name, first) for name in others)
    if len(others) > 1:  # seeds of one training
        table.differences.extend(table.difference(others, first, column) for column in ("reward", "normalised", *METRICS))
    return table


if __name__ == "__main__":
    main()
