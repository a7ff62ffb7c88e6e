"""TIR-Agent's table 5 at nano scale: each part left out in turn, as one Tune sweep.

How to run
----------
    python -m experiments.tir_agent --photos FOLDER --out results/tir_agent                  # makes nano and the demonstrations
    python -m experiments.tir_agent.ablation --base results/tir_agent --photos FOLDER --out results/ablation

Every row is a trial: supervised fine-tuning on demonstrations perturbed its way (rows that perturb alike share it), GRPO from there with
its advantages, and the held-out images. ``--out`` then holds ``table.json``, and TensorBoard's curves of all rows. Rows that are done are
kept; the same command goes on with the others.

Results to expect
-----------------
README has five rows of 12 iterations, ``--rows "w/o RL,TIR-Agent,w/o w,w/o decouple,w/o MAR" --iterations 12 --images 32 --cpus 1`` with
``--grpo "lr=3e-4 num_cpus_for_main_process=1 env_config.dataset.split=all env_config.dataset.images=240"`` and the fine-tuning of the base
as ``sft-both``: PSNR and PIQE tell most rows apart, their rewards hardly. 29 minutes beside other jobs, two rows at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.tir_agent.__main__ import NANO_EXPERIMENT, view_setting

if TYPE_CHECKING:
    from ir_env.evaluation import Table


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    edp: str | None = "both"
    """How the demonstrations are perturbed, see :data:`EDP`; None leaves supervised fine-tuning out."""
    grpo: dict[str, Any] | None = field(default_factory=dict)
    """Settings of GRPO; None leaves it out."""


EDP = {
    "both": [],
    "none": ["--alpha-order", "0", "--alpha-tool", "0"],
    "tools": ["--alpha-order", "0"],
    "order": ["--alpha-tool", "0"],
}
ROWS = {
    "vanilla": Row(edp=None, grpo=None),
    "w/o SFT": Row(edp=None),
    "w/o RL": Row(grpo=None),
    "w/o EDP": Row(edp="none"),
    "w/o alpha^t": Row(edp="tools"),
    "w/o alpha^m": Row(edp="order"),
    "w/o MAR": Row(grpo={"mar": False}),
    "w/o decouple": Row(grpo={"decouple": False}),
    "w/o w": Row(grpo={"dynamic_weights": False}),
    "w/o EDP and MAR": Row(edp="none", grpo={"mar": False}),
    "TIR-Agent": Row(),
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, required=True, help="folder of experiments.tir_agent, with nano and demos")
    parser.add_argument("--photos", required=True, help="folder of photographs, or builtin; one in five is held out")
    parser.add_argument("--out", type=Path, default=Path("results/tir_agent_ablation"))
    parser.add_argument("--rows", default=",".join(ROWS), help="rows of the table, separated by commas")
    parser.add_argument("--iterations", type=int, default=20, help="of GRPO")
    parser.add_argument("--images", type=int, default=128, help="held-out images")
    parser.add_argument("--sft", type=str.split, default=[], help='more arguments of the fine-tuning, e.g. --sft "--steps 300"')
    parser.add_argument("--grpo", type=str.split, default=[], help='settings of GRPO for all rows, e.g. --grpo "lr=1e-4"')
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="of a trial; as many run side by side as there are")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--address", default="local", help="of a Ray cluster whose machines share these folders")
    options = parser.parse_args(arguments)

    from experiments.cli.common import prepare_ray

    prepare_ray()
    import ray
    from ray import tune

    from ir_env.evaluation import save_json
    from tool_actors.errors import UnknownNameError

    rows = [name.strip() for name in options.rows.split(",")]
    for name in rows:
        if name not in ROWS:
            raise UnknownNameError("row", name, ROWS)
    settings = {name: value for name, value in vars(options).items() if name not in ("rows", "address")}
    settings |= {name: str(settings[name].resolve()) for name in ("base", "out")}
    if settings["photos"] != "builtin":
        settings["photos"] = str(Path(settings["photos"]).resolve())
    ray.init(address=options.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_row, settings=settings), {"cpu": options.cpus}),
        param_space={"row": tune.grid_search(rows)},
        run_config=tune.RunConfig(name="trials", storage_path=settings["out"], verbose=1),
    )
    results = tuner.fit()
    ray.shutdown()
    for result in results:
        if result.error:
            cause = str(result.error).strip().splitlines()[-1]
            print(f"{(result.config or {}).get('row')}: failed ({cause}); the same command tries it again")
    done = {name: json.loads(place.read_text()) for name in ROWS if (place := options.out / folder_of(name) / "result.json").is_file()}
    save_json(done, options.out / "table.json")
    if done:
        columns = {"distinct": "distinct", "order": "order_pairs", "tool": "tool_pairs", "entropy": "mean_entropy"}
        shares = {title: lambda row, name=name: f"{row.more['diversity'][name]:.2f}" for title, name in columns.items()}
        beside_one_another(done, options.base / "demos").show(None, f"{options.images} held-out images", shares)


def beside_one_another(done: Mapping[str, dict[str, Any]], demos: Path) -> Table:
    """The rows that are done as a table; TIR-Agent is compared with each of the others."""
    from experiments.tir_agent.demos import load_demonstrations
    from experiments.tir_agent.held_out import table_of
    from ir_env.evaluation import Row as Measured

    rows = [Measured.of({**told, "policy": name}) for name, told in done.items()]
    table = table_of(rows, load_demonstrations(demos)[0]["heldout"].select(range(rows[0].images)))
    if "TIR-Agent" in done:
        table.differences.extend(table.difference("TIR-Agent", name) for name in done if name != "TIR-Agent")
    return table


def folder_of(row: str) -> str:
    return row.replace("w/o ", "without_").replace("^", "_").replace(" ", "_")


def run_row(config: dict[str, str], settings: dict[str, Any]) -> None:
    """A trial: reports GRPO's curves as they come, and the held-out table's row at the end."""
    from filelock import FileLock
    from ray import tune

    from experiments.tir_agent.demos import load_demonstrations
    from experiments.tir_agent.held_out import evaluate, rollout_diversity
    from ir_env.evaluation import save_json
    from policies.loading import load_policy
    from policies.vlm.planner import VLMPlanner
    from tool_actors.threads import limit_threads

    row, base, out = ROWS[config["row"]], Path(settings["base"]), Path(settings["out"])
    place = out / folder_of(config["row"])
    if (place / "result.json").is_file():
        tune.report(_means(json.loads((place / "result.json").read_text())))
        return
    place.mkdir(parents=True, exist_ok=True)
    limit_threads(settings["cpus"])
    policy = base / "nano"
    if row.edp is not None:
        sft = out / f"sft-{row.edp}"
        with FileLock(f"{sft}.lock"):
            if not (sft / "report.json").is_file():
                words = ["--demos", base / "demos", "--model", base / "nano", "--out", sft, "--seed", settings["seed"]]
                words += [*EDP[row.edp], "--diversity-images", 0, "--heldout", 8, *settings["sft"]]
                # Ray gives its workers one thread
                surroundings = {**os.environ, "OMP_NUM_THREADS": str(settings["cpus"])}
                subprocess.run([sys.executable, "-m", "experiments.tir_agent.sft", *map(str, words)], check=True, env=surroundings)
        policy = sft / "policy"
    if row.grpo is not None:
        trained = place / "policy"
        train_grpo(policy, trained, row.grpo, settings, tune.report)
        policy = trained
    splits, made_with = load_demonstrations(base / "demos")
    rows = splits["heldout"].select(range(min(settings["images"], len(splits["heldout"]))))
    told = evaluate(config["row"], load_policy(policy), rows, made_with).as_dict()
    sampled = VLMPlanner.load(policy, temperature=1.0, seed=settings["seed"])
    told["diversity"] = rollout_diversity(sampled, rows, made_with, 8)
    save_json(told, place / "result.json")
    tune.report(_means(told))


def _means(told: dict[str, Any]) -> dict[str, Any]:
    """What Tune shows of a row: not image by image."""
    return {name: value for name, value in told.items() if name != "per_image"}


def train_grpo(policy: Path, out: Path, grpo: dict[str, Any], settings: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """GRPO from a policy's folder into another one; ``report`` is told of each iteration."""
    from ray.rllib.callbacks.callbacks import RLlibCallback

    from experiments.training.experiment_file import load_experiment

    changes = [f"model_config.model={policy}", f"env_config.dataset.photos={settings['photos']}", "env_config.executor=local"]
    changes.append(view_setting(policy))
    changes += [*settings["grpo"], *(f"{name}={json.dumps(value)}" for name, value in grpo.items())]
    config = load_experiment(NANO_EXPERIMENT, changes, seed=settings["seed"]).config.callbacks(RLlibCallback)
    algorithm = config.build_algo()
    try:
        for _ in range(settings["iterations"]):
            told = algorithm.train()["grpo"]
            shown = {name: told[name] for name in ("reward", "weight", "format_rate", "diversity")}
            report(json.loads(json.dumps(shown, default=float)))
        module = algorithm.get_module()
        module.vlm.save(out)
        module.settings.after(config.env_config["dataset"]["combos"]).save(out)
    finally:
        algorithm.stop()


if __name__ == "__main__":
    main()
