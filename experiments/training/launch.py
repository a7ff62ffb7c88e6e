"""Runs an experiment under Ray Tune: progress, checkpoints, interruption, resumption, sweeps, and the closing table."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.rllib
from filelock import FileLock, Timeout
from ray import tune
from rich.console import Console

from experiments.cli.common import start_ray
from experiments.training.experiment_file import Experiment, ExperimentError
from experiments.training.progress import ProgressDisplay, reached
from ir_env.planner import Planner

if TYPE_CHECKING:
    from ir_env.evaluation import Table

KEPT = "run.json"
"""In a run's folder: its ``stop``; name by folder of the ``trials`` of a sweep; the tools of its ``pool``, or null; and ``asha``, the least
iterations of a sweep's trials whose worse ones end early, or null."""
LOCK = ".lock"
RESTORATION = "ir_env/Restoration"


@dataclass(frozen=True)
class Trial:
    """How a training ended: the only one of a run, or one of a sweep."""

    name: str
    """What a sweep varies in it, ``lr=0.001``; "" of an only one."""
    folder: Path
    checkpoint: Path | None
    """The last one."""
    metrics: Mapping[str, Any]
    """Its last result."""
    finished: bool
    """Whether it came to its end."""
    early: bool
    """Whether that was because it fell behind."""
    error: str
    """Why it failed, "" if it did not."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    """The run's folder, ``storage/name``."""
    trials: list[Trial]
    """One, or those of a sweep in the order of its values."""
    stop: Mapping[str, float]
    """Result -> value at which a trial ends."""
    was_finished: bool = False
    """Whether there was nothing left to do."""

    @property
    def is_sweep(self) -> bool:
        return bool(self.trials[0].name)

    @property
    def interrupted(self) -> bool:
        """It can be resumed then."""
        return not all(trial.finished or trial.error for trial in self.trials)

    @property
    def checkpoints(self) -> dict[str, Path]:
        """That of each training which came to its end and did not fall behind, by its name."""
        return {trial.name: trial.checkpoint for trial in self.trials if trial.finished and not trial.early and trial.checkpoint}

    def check(self) -> None:
        """Raises :class:`ExperimentError` if trainings failed."""
        failed = [trial for trial in self.trials if trial.error]
        if failed:
            causes = "\n".join(f"{f'{trial.name}: ' if trial.name else ''}{trial.error}" for trial in failed)
            traces = ", ".join(f"{trial.folder}/error.txt" for trial in failed)
            which = f"{len(failed)} of {len(self.trials)} trials" if len(self.trials) > 1 else "the training"
            raise ExperimentError(
                f"{which} failed: {causes}\nThe whole trace is in {traces}; what was learned up to the last checkpoint is kept: mend the "
                f"cause, and go on with --name {self.folder.name} --resume."
            )


def run_folder(storage: str | Path, name: str, resume: bool) -> Path:
    """Where a run is kept: a new folder ``storage/name``, with a number added if that is taken; with ``resume`` the newest such folder.

    Raises:
        ExperimentError: there is no run to resume; or the folder cannot be written.
    """
    place = Path(storage).expanduser().resolve() / name
    if resume:
        ours = re.compile(rf"{re.escape(place.name)}(-\d+)?")
        begun = (path.parent for path in place.parent.glob(f"*/{KEPT}") if ours.fullmatch(path.parent.name))
        runs = [folder for folder in begun if any(folder.glob("experiment_state-*.json"))]
        if not runs:
            raise ExperimentError(f"{place}: holds no run to resume. Leave out --resume, or give its --name and --storage.")
        return max(runs, key=lambda folder: folder.stat().st_mtime)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 10_000):
            folder = place if number == 1 else place.with_name(f"{place.name}-{number}")
            # made here and now, so that of two runs that begin at once each has its own
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return folder
    except OSError as error:
        raise ExperimentError(f"{place.parent}: this folder cannot be written ({error.strerror}). Choose another --storage.") from error
    raise ExperimentError(f"{place}: so many runs have this name that there is no number left; choose another --name")


def train(
    experiment: Experiment,
    folder: Path,
    console: Console,
    checkpoint_every: int = 1,
    resume: bool = False,
    address: str = "local",
    extend: bool = False,
    asha: int | None = None,
) -> Outcome:
    """Train until the experiment's ``stop``; returns also when interrupted with Ctrl-C.

    The trials of a sweep run side by side where there is room; one that fails does not end the others.

    Args:
        experiment: what to train.
        folder: the run's folder, see :func:`run_folder`.
        console: for the progress display.
        checkpoint_every: iterations between checkpoints; the newest three are kept.
        resume: continue the run in ``folder`` from its last checkpoint.
        address: of a Ray cluster; ``local`` starts Ray in this machine. If this process is connected to one already, that is used.
        extend: of a resumed run: end at the experiment's ``stop``, and not where it was first to end.
        asha: of a new sweep: end trials that fall behind, none before so many iterations, see
            :class:`experiments.training.early_stopping.ResumableASHA`. A resumed sweep keeps what it began with.

    Raises:
        ExperimentError: there is not what the experiment asks for; or the run goes on in another process.
    """
    with _held(folder):
        if resume:
            kept: dict[str, Any] = json.loads((folder / KEPT).read_text())
        else:
            kept = {"trials": _folders(list(experiment.variants)), "pool": None, "asha": asha}
            _check_asha(experiment, asha)
        if extend and kept.get("asha"):
            raise ExperimentError(
                f"{folder}: the trials that fell behind in this sweep cannot go on to a later end; leave out --stop, or begin another sweep"
            )
        stop = kept["stop"] if resume and not extend else experiment.stop
        if resume:
            # which warns of trials that have not begun
            logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
            before = _trials(tune.ResultGrid(tune.ExperimentAnalysis(str(folder))), kept, stop)
            if all(trial.finished for trial in before):
                return Outcome(folder, before, stop, was_finished=True)
        with _ray(address):
            if not resume:
                for name, config in experiment.variants.items():
                    _check(name, config, ray.cluster_resources())
            # before the tuner copies the configs; the pool lives as long as its handle
            pool = _provide_tools(experiment, kept, f"{folder.name}-tools") if RESTORATION in str(experiment.config.env) else None  # noqa: F841
            (folder / KEPT).write_text(json.dumps({**kept, "stop": stop}, indent=2) + "\n")
            display = ProgressDisplay(stop, console, max(1, len(kept["trials"])))
            tuner = (
                _resumed(folder, experiment, stop, display, extend)
                if resume
                else _begun(folder, experiment, kept, display, checkpoint_every)
            )
            return Outcome(folder, _trials(tuner.fit(), kept, stop), stop)


def _begun(folder: Path, experiment: Experiment, kept: Mapping[str, Any], display: ProgressDisplay, checkpoint_every: int) -> tune.Tuner:
    names, space = list(experiment.variants), [config.to_dict() for config in experiment.variants.values()]
    naming = {}
    if kept["trials"]:
        naming = {"trial_name_creator": partial(_of_trial, names), "trial_dirname_creator": partial(_of_trial, list(kept["trials"]))}
    scheduler = None
    if kept["asha"]:
        from experiments.training.early_stopping import ITERATION, ResumableASHA

        scheduler = ResumableASHA(kept["asha"], int(experiment.stop[ITERATION]))
    return tune.Tuner(
        experiment.config.algo_class,
        param_space=tune.grid_search(space) if kept["trials"] else space[0],
        tune_config=tune.TuneConfig(**naming, scheduler=scheduler),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop=experiment.stop,
            verbose=0,
            callbacks=[display],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=checkpoint_every, checkpoint_at_end=True, num_to_keep=3),
        ),
    )


def _resumed(folder: Path, experiment: Experiment, stop: Mapping[str, float], display: ProgressDisplay, extend: bool) -> tune.Tuner:
    go_on, leave = tune.ResumeConfig.ResumeType.RESUME, tune.ResumeConfig.ResumeType.SKIP
    tuner = tune.Tuner.restore(
        str(folder),
        trainable=experiment.config.algo_class,
        _resume_config=tune.ResumeConfig(unfinished=go_on, errored=go_on, finished=go_on if extend else leave),
    )
    # Tune keeps the callbacks of the first start; the display belongs to this process
    tuner._local_tuner._run_config.callbacks = [display, _NewEnd(stop)]
    return tuner


class _NewEnd(tune.Callback):
    """Gives resumed trials their end, since Tune keeps the one of the first start with each."""

    def __init__(self, stop: Mapping[str, float]):
        self.stop = dict(stop)

    def on_trial_start(self, iteration, trials, trial, **info):
        trial.stopping_criterion = self.stop


def _folders(names: list[str]) -> dict[str, str]:
    """Folder -> name of a sweep's trials; empty for a run that is none."""
    return {f"{index:02}_{re.sub(r'[^A-Za-z0-9.=,+-]+', '_', name)[:80]}": name for index, name in enumerate(names) if name}


def _of_trial(values: list[str], trial: Any) -> str:
    """The value that belongs to a trial; Tune numbers the trials of a grid in its order."""
    return values[int(trial.trial_id.rsplit("_", 1)[-1])]


def _check_asha(experiment: Experiment, asha: int | None) -> None:
    """Name what ending trials early would lack."""
    if asha is None:
        return
    longest = experiment.stop.get("training_iteration", 0)
    if len(experiment.variants) < 2:
        raise ExperimentError("--asha ends trials of a sweep that fall behind, and this is a single training: vary something with --set")
    if not 1 <= asha < longest:
        raise ExperimentError(
            f"--asha {asha}: trials are compared after so many iterations, at least 1 and fewer than they have (now {longest:g}; "
            "--stop training_iteration=N changes that)"
        )


def _trials(results: tune.ResultGrid, kept: Mapping[str, Any], stop: Mapping[str, float]) -> list[Trial]:
    """How the trials of a run stand, in the order of their folders; also those of a sweep that did not begin."""
    names, found = kept["trials"], {}
    for result in results:
        folder, metrics = Path(result.path), result.metrics or {}
        name = names.get(folder.name, "")
        error = _last_line(result.error) if result.error is not None else ""
        checkpoint = Path(result.checkpoint.path) if result.checkpoint else None
        early = bool(kept.get("asha") and metrics.get("done")) and not reached(stop, metrics)
        found[name] = Trial(name, folder, checkpoint, metrics, not error and (early or reached(stop, metrics)), early, error)
    missing = {name: Trial(name, Path(folder), None, {}, False, False, "") for folder, name in names.items() if name not in found}
    return [{**found, **missing}[name] for name in names.values() or found]


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; a folder in which no run began is removed."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ExperimentError(f"{folder}: this run goes on in another process; wait for its end, or choose another --name") from None
    try:
        yield
    finally:
        if not (folder / "tuner.pkl").is_file():
            for name in (KEPT, LOCK):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        lock.release()


@contextlib.contextmanager
def _ray(address: str) -> Iterator[None]:
    """Ray, and its end; where this process is connected to it already, that stays as it is."""
    # its warnings are about its own calls to itself; importing it sets the level, so this comes after
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    start_ray(address=address)
    try:
        yield
    finally:
        ray.shutdown()


def _provide_tools(experiment: Experiment, kept: dict[str, Any], name: str):
    """Start the run's own pool, if it wants one, and return it; ``kept["pool"]`` holds its tools from then on."""
    from experiments.training.pool_placement import pool_settings, settle_executor, start_pool

    asked, available = _asked(list(experiment.variants.values())), ray.cluster_resources()
    if "stop" not in kept:  # a new run
        env_configs = [config.env_config for config in experiment.variants.values()]
        pooled = [env_config for env_config in env_configs if settle_executor(env_config, asked, available, name)]
        tools = {json.dumps(tool): tool for env_config in pooled for tool in env_config["toolbox"]}
        kept["pool"] = list(tools.values()) or None
    if kept["pool"] is None:
        return None
    return start_pool(name, pool_settings(kept["pool"], experiment.pool, asked, available))


def _asked(configs: list[Any]) -> dict[str, float]:
    """What a trial asks Ray for, at most."""
    requests = [config.algo_class.default_resource_request(config).bundles for config in configs]
    return {kind: max(sum(bundle.get(kind, 0) for bundle in bundles) for bundles in requests) for kind in ("CPU", "GPU")}


def _check(name: str, config: Any, available: Mapping[str, float]) -> None:
    """Name a config that RLlib refuses, and one that asks for more than there is, whose trial would wait for ever."""
    begin = f"{name}: " if name else ""
    try:
        needed = _asked([config])
    except ValueError as error:
        raise ExperimentError(f"{begin}{error}") from error
    for kind, asked in needed.items():
        if asked > available.get(kind, 0):
            raise ExperimentError(
                f"{begin}the experiment asks for {asked:g} {kind}s and there are {available.get(kind, 0):g}. Lower num_env_runners (now "
                f"{config.num_env_runners}; 0 samples in the main process) with --set, or use a larger machine or cluster (--address)."
            )


def closing_table(
    policies: Mapping[str, Path],
    console: Console,
    folder: Path | None,
    samples: int,
    combos: str | None = None,
    before: Planner | None = None,
    photos: str | None = None,
    whole: bool = False,
) -> Table:
    """Print the table of policies on held-out photographs, and keep it beside the run.

    Args:
        policies: checkpoints by the names of their rows, trained in the same environment.
        folder: keeps the table, as ``heldout.json``.
        before: the policy as it was before training, for a row of its own and the difference that the training made.
        combos, photos: other degradations, and other photographs, than those that the training holds out.
        whole: whole photographs instead of crops.
    """
    from ir_env.evaluation import compare
    from policies.loading import load_checkpoint
    from policies.planners import baselines
    from tool_actors.threads import limit_threads

    limit_threads(1)
    planners = {name: load_checkpoint(checkpoint) for name, checkpoint in policies.items()}
    env_config = next(iter(planners.values())).env_config
    if not env_config:
        raise ExperimentError(f"{next(iter(policies.values()))}: was not trained in an environment of ir_env, so there is no table for it")
    beside = {**({} if before is None else {"before training": before}), **baselines()}
    pairs = [(name, other) for name in planners for other in ("before training", "best fixed plan") if other in beside]
    with console.status("evaluating") as status:

        def progress(what: str, done: int, total: int) -> None:
            status.update(f"evaluating: {what}, {done} of {total}")

        table = compare(env_config, {**planners, **beside}, samples, combos, pairs=pairs, progress=progress, photos=photos, whole=whole)
    table.show(console, f"{samples} held-out images")
    if folder is not None:
        table.save(folder / "heldout.json")
    return table


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
