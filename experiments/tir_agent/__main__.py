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

``python -m experiments.tir_agent.figures --run results/tir_agent`` then draws ours of the paper's figures 3, 6 and 7.

What is done is kept: the same command after an interruption goes on where it stopped.

Results to expect
-----------------
Photographs of BSDS500, trained on its train set and measured on its test set, whole, with

    --pretrain " --heldout-photos VAL --epochs 12 --seed 7" --demos " --count 1600 --heldout 32" --sft " --steps 550" --seeds 0,1,2
    --images 32 --grpo " env_config.dataset.images=480 env_config.dataset.split=all env_config.cache_bytes=800000000"

README has the table of these policies on 160 images (``python -m experiments.opera.table`` printed it). The paired mean of the three seeds
less SFT is +0.11 [+0.02, +0.21] of the reward. Every answer was well-formed. On one busy core: demonstrations 32 minutes, fine-tuning 17,
GRPO 25 to 45 per seed; the pretraining (27 minutes) was made before the sheet had its ruler.
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
        settings = [f"model_config.model={sft}/policy", f"env_config.dataset.photos={options.photos}", view_setting(sft / "policy")]
        settings += options.grpo
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


def view_setting(policy: Path) -> str:
    """The setting with which the environment shows what a policy was trained with."""
    from policies.vlm.planner import PolicySettings

    return f"env_config.view={json.dumps(asdict(PolicySettings.read(policy).view))}"


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
