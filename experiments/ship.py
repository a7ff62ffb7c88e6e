"""Write a trained SimpleCall-style policy as two small files, weights and card, that need neither Ray nor a pickle to be read.

How to run
----------
    python -m experiments.ship results/simplecall_ppo --out mine.safetensors
    python -m experiments.ship results/simplecall_ppo --table results/photographs/table.json --row trained    # with what it reaches
    uv run ir-env restore PHOTO --policy mine.safetensors

Without ``--out`` the policy becomes the one that comes with the project.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ir_env.evaluation import Row
from policies.loading import find_checkpoint, load_checkpoint
from policies.simplecall.shipped import SHIPPED, save_policy


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a checkpoint, or the folder of a run")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    parser.add_argument("--table", type=Path, help="a table with what the policy reaches, as rllib evaluate --json writes it")
    parser.add_argument("--row", default="trained", help="how its row in that table begins")
    options = parser.parse_args(arguments)

    planner = load_checkpoint(options.run)
    dataset = planner.env_config.get("dataset")
    if isinstance(dataset, dict) and "photos" in dataset:
        dataset = {**dataset, "photos": "/".join(Path(dataset["photos"]).parts[-2:])}
    iterations = int("".join(filter(str.isdigit, find_checkpoint(options.run).name)) or 0) + 1
    card = {"trained": {"iterations": iterations, "dataset": dataset, "reward": planner.env_config.get("reward", "delta_iqa")}}
    if options.table:
        told = json.loads(options.table.read_text())
        row = Row.of(next(row for row in told["rows"] if row["policy"].startswith(options.row)))
        card["measured"] = {
            "images": row.images,
            **{name: getattr(row, name) for name in ("reward", "interval", "metrics", "tools", "worse")},
            "note": told["note"],
        }
    save_policy(planner, options.out, card)
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
