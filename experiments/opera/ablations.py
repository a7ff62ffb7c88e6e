"""OPERA's ablations of planning (tables 9, 10 and 11), each beside the paper's numbers.

How to run
----------
    python -m experiments.opera.ablations --table 9 --photos FOLDER --heldout OTHER --out results/opera_ablations
    python -m experiments.opera.ablations --table 10 --planner " --set model_config.model=results/opera_sft/policy" ...
    python -m experiments.opera.ablations --table 9 --tools ...          # with the rows in which tools learn, too

Table 9 is the ratio of single to dual to triple degradations, table 10 the consistency reward (of the vision-language planner, since that
without language has nothing to be judged), table 11 the metrics of the reward. Each row is a training by GRPO, and with ``--tools`` a
co-training under its plans; then all are measured on the same photographs (``experiments/opera/table.py``). Stages that are done are not
done again.

Results to expect
-----------------
Table 10, with ``--planner " --set model_config.model=results/opera_sft/policy --set num_cpus_for_main_process=1 --set
env_config.dataset.crop_size=256 --set num_envs_per_env_runner=32 --set micro_batch_size=32 --set lr=3e-4 --stop training_iteration=14
--checkpoint-freq 12"``: four images of eight answers an iteration, 14 iterations in one to four minutes of a shared core. Without Rc an
answer shrinks from 29 tokens to 18; with Rc it keeps its 30. README has the figure, and a table of the policies of iteration 12
(``experiments/opera/table.py --paper 10 --samples 32 --crop 256``, whose rows are the fine-tuned policy and the folders
``checkpoint_000000``).

Tables 9 and 11: README has them, of one seed with ``--samples 96 --planner " --set model_config.start=results/opera_start.safetensors"``,
and for table 9 ``--tools " --combos A,B,C:2 --images 500 --epochs 4 --single 0.4"``. A planner takes 10 minutes of a core, its tools 6.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from experiments.opera.alternate import stage

HERE = Path(__file__).parent
TABLES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "9": ("planner.py", {ratio: [f"env_config.dataset.combos=opera:{ratio}"] for ratio in ("1:1:1", "1:3:5")}),
    "10": ("planner_nano.py", {"without Rc": ["env_config.judge=none"], "with Rc": []}),
    "11": ("planner.py", {"all metrics": [], "no-reference metrics alone": ["env_config.reward_weights={piqe: 1.0}"]}),
}
"""Table -> the experiment, and the settings of each row."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--photos", required=True, help="folder of clean photographs to learn from")
    parser.add_argument("--heldout", required=True, help="folder of clean photographs for the table")
    parser.add_argument("--out", type=Path, default=Path("results/opera_ablations"))
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--samples", type=int, default=64, help="images of the table")
    parser.add_argument(
        "--planner", type=str.split, default=[], help='more arguments of rllib train, e.g. --planner " --stop training_iteration=9"'
    )
    parser.add_argument("--tools", type=str.split, nargs="?", const=[], help="let tools learn, too; more arguments of opera/cotrain.py")
    options = parser.parse_args(arguments)
    experiment, rows = TABLES[options.table]
    words = ["-m", "experiments.opera.table", "--photos", options.heldout, "--paper", options.table, "--samples", str(options.samples)]
    words += ["--out", str(options.out / f"table-{options.table}")]
    options.out.mkdir(parents=True, exist_ok=True)
    for row, settings in rows.items():
        for seed in options.seeds.split(","):
            name = f"table-{options.table} {row} seed {seed}".replace(" ", "-").replace(":", "-")
            command = [
                "-m",
                "experiments.cli.rllib",
                "train",
                "file",
                str(HERE / experiment),
                "--name",
                name,
                "--storage",
                str(options.out),
            ]
            command += ["--samples", "0", "--seed", seed]
            if (options.out / name / "tuner.pkl").is_file():
                command = [*command[:-2], "--resume"]
            else:
                data = [f"env_config.dataset.photos={options.photos}", "env_config.dataset.split=all"]
                command += [word for setting in (*data, *settings) for word in ("--set", setting)] + options.planner
            stage(f"{row}, seed {seed}", options.out / name, command)
            told = f"{row}, seed {seed}" if "," in options.seeds else row
            words += ["--row", f"{told}, planning={options.out / name}"]
            if options.tools is not None:
                tools = options.out / f"{name}-tools"
                learn = [
                    "-m",
                    "experiments.opera.cotrain",
                    "--photos",
                    options.photos,
                    "--policy",
                    str(options.out / name),
                    "--out",
                    str(tools),
                ]
                stage(f"{told}: tools", tools, [*learn, *options.tools])
                words += ["--row", f"{told}, full={options.out / name}@{tools / 'toolbox' / 'toolbox.yaml'}"]
    subprocess.run([sys.executable, *words], check=True)
    return 0


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
