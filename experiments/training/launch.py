"""Runs an experiment under Ray Tune: progress, checkpoints, interruption, resumption, and the closing table."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from experiments.training.experiment_file import Experiment, ExperimentError
from ir_env.images import make_folder
from ir_env.planner import Planner


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """The run's folder, ``storage/name``."""
    checkpoint: Path | None
    finished: bool
    """False if it was interrupted; it can be resumed then."""


def run_folder(storage: str | Path, name: str, resume: bool) -> Path:
    """Where a run is kept: ``storage/name``, with a number added if that is taken; with ``resume`` the newest such folder."""
    storage = Path(storage).expanduser().resolve()
    taken = [path for path in (storage / name, *sorted(storage.glob(f"{name}-*"))) if (path / "tuner.pkl").is_file()]
    if resume:
        if not taken:
            raise ExperimentError(f"{storage / name}: holds no run to resume. Leave out --resume, or give its --name and --storage.")
        return max(taken, key=lambda path: path.stat().st_mtime)
    make_folder(storage)
    candidates = (storage / name if number == 1 else storage / f"{name}-{number}" for number in range(1, 10_000))
    return next(path for path in candidates if not path.exists())


def train(
    experiment: Experiment,
    folder: Path,
    console: Console,
    checkpoint_every: int = 1,
    resume: bool = False,
    address: str = "local",
) -> Outcome:
    """Train until the experiment's ``stop``; returns also when interrupted with Ctrl-C.

    Args:
        experiment: what to train.
        folder: the run's folder, see :func:`run_folder`.
        console: for the progress display.
        checkpoint_every: iterations between checkpoints; the newest three are kept.
        resume: continue the run in ``folder`` from its last checkpoint.
        address: of a Ray cluster; ``local`` starts Ray in this machine.
    """
    import ray
    import ray.rllib
    from ray import tune

    from experiments.training.progress import ProgressDisplay, fraction_done

    # its warnings are about its own calls to itself; importing it sets the level, so this comes after
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    algorithm = experiment.config.algo_class
    stop = experiment.stop
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        display = ProgressDisplay(stop, console)
        if resume:
            tuner = tune.Tuner.restore(str(folder), trainable=algorithm, resume_unfinished=True, resume_errored=True)
            # Tune keeps the stop and the callbacks of the first start; the display belongs to this process
            saved = tuner._local_tuner._run_config
            display.stop = stop = dict(saved.stop)
            saved.callbacks = [display]
            env_config = _saved_env_config(folder)
        else:
            _check_resources(experiment.config, ray.cluster_resources())
            env_config = experiment.config.env_config
        if "ir_env/Restoration" in str(experiment.config.env):
            # before the tuner copies the config; the pool lives as long as its handle
            pool = _provide_tools(experiment, env_config, f"{folder.name}-tools")  # noqa: F841
        if not resume:
            tuner = tune.Tuner(
                algorithm,
                param_space=experiment.config,
                run_config=tune.RunConfig(
                    name=folder.name,
                    storage_path=str(folder.parent),
                    stop=stop,
                    verbose=0,
                    callbacks=[display],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=checkpoint_every, checkpoint_at_end=True, num_to_keep=3),
                ),
            )
        [result] = tuner.fit()
    finally:
        ray.shutdown()
    if result.error is not None:
        raise ExperimentError(
            f"the training failed: {_last_line(result.error)}\nThe whole trace is in {result.path}/error.txt; what was learned up to the "
            f"last checkpoint is kept: mend the cause and add --resume."
        )
    checkpoint = Path(result.checkpoint.path) if result.checkpoint else None
    return Outcome(folder, checkpoint, fraction_done(stop, result.metrics or {}) >= 1.0)


def _provide_tools(experiment: Experiment, env_config: dict, name: str):
    """Start the run's own pool, if it wants one, and return it."""
    import ray

    from experiments.training.pool_placement import pool_settings, settle_executor, start_pool

    asked, available = _asked(experiment.config), ray.cluster_resources()
    if env_config.get("executor") == f"pool:{name}" or settle_executor(env_config, asked, available, name):
        return start_pool(name, pool_settings(env_config["toolbox"], experiment.pool, asked, available))
    return None


def _saved_env_config(folder: Path) -> dict:
    """That of the trial that is resumed, as Tune keeps it."""
    [path] = folder.glob("*/params.json")
    return json.loads(path.read_text())["env_config"]


def _asked(config) -> dict[str, float]:
    """What a trial asks Ray for."""
    bundles = config.algo_class.default_resource_request(config).bundles
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in ("CPU", "GPU")}


def _check_resources(config, available: dict[str, float]) -> None:
    """A trial that asks for more than there is would wait for ever."""
    for kind, asked in _asked(config).items():
        if asked > available.get(kind, 0):
            raise ExperimentError(
                f"the experiment asks for {asked:g} {kind}s and there are {available.get(kind, 0):g}. Lower num_env_runners (now "
                f"{config.num_env_runners}; 0 samples in the main process) with --set, or use a larger machine or cluster (--address)."
            )


def closing_table(
    checkpoint: Path, console: Console, folder: Path | None, samples: int, combos: str | None = None, before: Planner | None = None
) -> None:
    """Print the table of policies on held-out photographs, and keep it beside the run.

    ``before`` is the policy as it was before training, for a row of its own and the difference that the training made.
    """
    from ir_env.evaluation import compare
    from policies.loading import load_checkpoint
    from policies.planners import baselines
    from tool_actors.threads import limit_threads

    limit_threads(1)
    planner = load_checkpoint(checkpoint)
    if not planner.env_config:
        raise ExperimentError(f"{checkpoint}: was not trained in ir_env/Restoration-v0, so there is no table for it")
    planners = {"trained policy": planner, **({} if before is None else {"before training": before}), **baselines()}
    pairs = [("trained policy", name) for name in ("before training", "best fixed plan") if name in planners]
    with console.status("evaluating") as status:

        def progress(what: str, done: int, total: int) -> None:
            status.update(f"evaluating: {what}, {done} of {total}")

        table = compare(planner.env_config, planners, samples, combos, pairs=pairs, progress=progress)
    console.print(table.render(f"{samples} held-out images"))
    if folder is not None:
        table.save(folder / "heldout.json")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
