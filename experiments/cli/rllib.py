"""The `rllib` command: `rllib train file EXPERIMENT`, `rllib evaluate CHECKPOINT`."""

from __future__ import annotations

import argparse
import sys

from experiments.cli.common import guarded, prepare_ray

DEFAULT_SAMPLES = 16


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rllib", description="Train and evaluate RLlib experiments, those of ir_env above all.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train an experiment").add_subparsers(dest="source", required=True)
    file = train.add_parser("file", help="a Python file that defines `config` and `stop`, or a YAML file")
    file.add_argument("experiment", help="e.g. experiments/simplecall_ppo.py")
    file.add_argument(
        "--stop", action="append", default=[], metavar="KEY=VALUE", help="when to stop, e.g. training_iteration=20; repeatable"
    )
    file.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="e.g. lr=1e-4, env_config.dataset.photos=folder or, for a sweep, 'lr={grid_search: [1e-3, 1e-4]}'; repeatable",
    )
    file.add_argument(
        "--asha", type=int, metavar="N", help="of a sweep: end trials that fall behind the others after N, 3 N, 9 N, ... iterations"
    )
    file.add_argument("--name", help="of the run; by default that of the experiment")
    file.add_argument("--storage", default="results", help="folder that holds the runs (default: results)")
    file.add_argument("--checkpoint-freq", type=int, default=1, metavar="N", help="iterations between checkpoints (default: 1)")
    file.add_argument(
        "--resume", action="store_true", help="continue the newest run of this name from its last checkpoint; with --stop, to a later end"
    )
    file.add_argument("--seed", type=int, help="replaces the experiment's seed")
    file.add_argument("--address", default="local", help="of a Ray cluster, e.g. auto (default: local, this machine alone)")
    file.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="held-out images of the closing table; 0 leaves it out")

    evaluate = commands.add_parser("evaluate", help="print the table of a trained policy beside the baselines")
    evaluate.add_argument("checkpoint", help="a checkpoint, or the folder of a run")
    evaluate.add_argument("--samples", type=int, default=DEFAULT_SAMPLES, help="number of held-out images")
    evaluate.add_argument("--combos", help="other degradations, e.g. single or B,rain+haze")
    evaluate.add_argument("--photos", metavar="FOLDER", help="other photographs than the training's held-out ones: all of this folder")
    evaluate.add_argument("--whole", action="store_true", help="whole photographs, where the training had crops")
    evaluate.add_argument("--json", metavar="FILE", help="write the table there, image by image")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    prepare_ray()
    return guarded(lambda: _evaluate(options) if options.command == "evaluate" else _train(options))


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console()
    console.print("loading the experiment (Ray and torch take some seconds) ...")
    from experiments.training.experiment_file import load_experiment
    from experiments.training.launch import RESTORATION, closing_table, run_folder, train
    from experiments.training.progress import reached
    from experiments.training.sweep import close_sweep
    from policies.loading import load_before_training
    from tool_actors.errors import IrEnvError

    if options.resume and (options.set or options.seed is not None or options.asha is not None):
        raise IrEnvError("a resumed run keeps its settings: leave out --set, --seed and --asha, or start a new run")
    experiment = load_experiment(options.experiment, options.set, options.stop, options.seed)
    folder = run_folder(options.storage, options.name or experiment.name, options.resume)
    verb = "resuming" if options.resume else "training"
    console.print(f"{verb} {experiment.name}; the run is kept in {folder}\n  curves: tensorboard --logdir {folder}", soft_wrap=True)
    extend = options.resume and bool(options.stop)
    outcome = train(experiment, folder, console, options.checkpoint_freq, options.resume, options.address, extend, options.asha)
    storage = "" if options.storage == "results" else f" --storage {options.storage}"
    resume = f"rllib train file {options.experiment}{storage} --name {folder.name} --resume"
    if outcome.interrupted:
        console.print(f"interrupted. What was learned is kept; go on with: {resume}", soft_wrap=True)
        return 130
    samples = options.samples if RESTORATION in str(experiment.config.env) else 0
    if outcome.was_finished:
        key, value = next(end for end in outcome.stop.items() if reached(dict([end]), outcome.trials[0].metrics))
        console.print(f"this run was finished already: it had reached {key}={value:g}", soft_wrap=True)
        console.print(f"train it further with a later end: {resume} --stop {key}={value + abs(value):g}", soft_wrap=True)
        if not outcome.is_sweep:
            console.print(f"see its table again with: rllib evaluate {folder}", soft_wrap=True)
            return 0
    if outcome.is_sweep:
        close_sweep(outcome, console, samples)
    outcome.check()
    if not outcome.is_sweep:
        [checkpoint] = outcome.checkpoints.values()
        console.print(f"policy: {checkpoint}", soft_wrap=True)
        if samples:
            closing_table({"trained policy": checkpoint}, console, folder, samples, before=load_before_training(checkpoint))
            console.print(f"restore a photograph of yours: ir-env restore PHOTO --policy {checkpoint} --out restored", soft_wrap=True)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from policies.loading import find_checkpoint, load_before_training

    checkpoint = find_checkpoint(options.checkpoint)  # before RLlib takes its seconds to load
    from rich.console import Console

    from experiments.training.launch import closing_table

    before = load_before_training(checkpoint)
    where = options.samples, options.combos, before, options.photos, options.whole
    table = closing_table({"trained policy": checkpoint}, Console(), None, *where)
    if options.json:
        table.save(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
