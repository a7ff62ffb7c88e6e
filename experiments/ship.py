"""Write a trained policy as a few small files, with a card, that need neither Ray nor a pickle to be read.

How to run
----------
    python -m experiments.ship results/simplecall_ppo --out mine.safetensors
    python -m experiments.ship results/simplecall_ppo --table results/photographs/table.json --row trained    # with what it reaches
    uv run ir-env restore PHOTO --policy mine.safetensors
    python -m experiments.ship results/tir_agent/grpo-0 --out mine_nano                                       # a folder, of nano

Without ``--out`` the policy becomes the one that comes with the project, ``simplecall`` or ``tir_agent``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ir_env.evaluation import Row
from ir_env.planner import Planner
from policies.loading import find_checkpoint, load_policy
from policies.simplecall import shipped as simplecall
from policies.vlm import shipped as vlm
from policies.vlm.planner import VLMPlanner


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a checkpoint, the folder of a run, or that of a vision-language policy")
    parser.add_argument("--out", type=Path, help="a file ending in .safetensors, or for a vision-language policy a folder")
    parser.add_argument("--table", type=Path, help="a table with what the policy reaches, as rllib evaluate --json writes it")
    parser.add_argument("--row", default="trained", help="how its row in that table begins")
    options = parser.parse_args(arguments)

    planner = load_policy(options.run)
    card = {"trained": trained(planner, options.run)}
    if options.table:
        told = json.loads(options.table.read_text())
        row = Row.of(next(row for row in told["rows"] if row["policy"].startswith(options.row)))
        figures = {name: getattr(row, name) for name in ("reward", "interval", "metrics", "tools", "worse")}
        card["measured"] = {"images": row.images, **figures, "note": told["note"]}
    if isinstance(planner, VLMPlanner):
        out = options.out or vlm.SHIPPED
        vlm.save_small(planner, out, card)
        size = sum(file.stat().st_size for file in out.iterdir())
    else:
        out = options.out or simplecall.SHIPPED
        simplecall.save_policy(planner, out, card)
        size = out.stat().st_size
    print(f"{out}: {size / 1024:.0f} KiB")
    return 0


def trained(planner: Planner, run: str) -> dict[str, Any]:
    """What a card tells of the training: where photographs came from, and no path of this machine."""
    dataset = planner.env_config.get("dataset")
    if isinstance(dataset, dict) and "photos" in dataset:
        dataset = {**dataset, "photos": "/".join(Path(dataset["photos"]).parts[-2:])}
    told = {"dataset": dataset, "reward": planner.env_config.get("reward"), "metrics": planner.env_config.get("metrics")}
    if planner.env_config:
        told["iterations"] = int("".join(filter(str.isdigit, find_checkpoint(run).name)) or 0) + 1
    return told


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
