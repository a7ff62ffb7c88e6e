"""Ends the trials of a sweep that fall behind: ASHA, which a resumed sweep goes on with."""

from __future__ import annotations

from pathlib import Path

from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler

from experiments.benchmark.learning_curves import iterations_of
from experiments.training.progress import RETURN, lookup

ITERATION = "training_iteration"
REDUCTION = 3
"""Of the trials that were compared so far the best third goes on, after n, 3n, 9n, ... iterations."""


class ResumableASHA(ASHAScheduler):
    """Asynchronous successive halving (Li et al., MLSys 2020) by the mean return.

    Tune forgets with the process what a scheduler has seen; here a trial that comes back brings the returns that it wrote.

    Args:
        grace: iterations that every trial gets.
        longest: iterations of a trial that never falls behind.
    """

    def __init__(self, grace: int, longest: int):
        super().__init__(ITERATION, RETURN, "max", max_t=longest, grace_period=grace, reduction_factor=REDUCTION)

    def on_trial_add(self, tune_controller, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        if not trial.storage or not trial.storage.trial_dir_name:  # it is new
            return
        written = Path(trial.storage.trial_fs_path) / "result.json"
        for iteration, result in (iterations_of(written) if written.is_file() else {}).items():
            if (value := lookup(result, RETURN)) is not None:
                self._trial_info[trial.trial_id].on_result(trial, iteration, value)
