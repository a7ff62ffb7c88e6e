"""The progress display of a training."""

from __future__ import annotations

import time
from collections.abc import Mapping

from ray.tune import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ir_env.metrics import METRICS

METRIC_ORDER = tuple(METRICS)
RETURN = "env_runners/episode_return_mean"
"""The result by which trainings are compared."""


class ProgressDisplay(Callback):
    """One line per iteration (return, metrics of the last images, tool calls per image, steps per second, time left) over a bar.

    Args:
        stop: the run's stopping criteria; the time left is that of the one which ends it first.
        console: where to write.
        trials: how many the run has; of a sweep, each line begins with the trial's name, and the time left is that of all.
    """

    def __init__(self, stop: Mapping[str, float], console: Console, trials: int = 1):
        self.stop, self.console, self.trials = dict(stop), console, trials
        self._began: tuple[float, float] | None = None
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.description}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("starting", total=1.0)

    def __getstate__(self):  # Tune saves its callbacks with the run; a display has nothing to keep
        return {"stop": self.stop}

    def setup(self, *args, **kwargs):
        self._progress.start()

    def on_trial_result(self, iteration, trials, trial, result, **info):
        others = sum(
            1.0 if each.is_finished() else fraction_done(self.stop, each.last_result or {}) for each in trials if each is not trial
        )
        done = (others + fraction_done(self.stop, result)) / self.trials
        now = time.monotonic()
        if self._began is None:
            before = fraction_done(self.stop, {**result, "training_iteration": result["training_iteration"] - 1})
            self._began = now - result.get("time_this_iter_s", 0.0), (others + before) / self.trials
        start, first = self._began
        left = (1 - done) * (now - start) / (done - first) if done > first else float("nan")
        line = describe(result, left)
        self.console.print(f"{trial}: {line}" if self.trials > 1 else line, highlight=False, markup=False, soft_wrap=True)
        self._progress.update(self._task, completed=done, description=f"{clock(left)} left")

    def on_experiment_end(self, trials, **info):
        self._progress.stop()


def reached(stop: Mapping[str, float], result: Mapping) -> bool:
    """Whether a result is at the end of its run: one of its values has reached its criterion."""
    return any((value := lookup(result, key)) is not None and value >= target for key, target in stop.items())


def fraction_done(stop: Mapping[str, float], result: Mapping) -> float:
    """How far the run is, from 0 to 1, by the criterion that is nearest to its end."""
    shares = [value / target for key, target in stop.items() if (value := lookup(result, key)) is not None and target > 0]
    return max(0.0, min(1.0, max(shares, default=0.0)))


def lookup(result: Mapping, key: str) -> float | None:
    """A result by its path, ``env_runners/episode_return_mean``."""
    value = result
    for part in key.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value if isinstance(value, int | float) else None


def describe(result: Mapping, left: float) -> str:
    """An iteration as one line."""
    runners = result.get("env_runners", {})
    parts = [f"iteration {result['training_iteration']:>4}"]
    if "episode_return_mean" in runners:
        parts.append(f"return {runners['episode_return_mean']:+.3f}")
    parts += [
        f"{name} {value:.4g}" for name, value in sorted(runners.get("quality", {}).items(), key=lambda item: METRIC_ORDER.index(item[0]))
    ]
    if "tools_per_image" in runners:
        parts.append(f"tools/image {runners['tools_per_image']:.2f}")
    steps, seconds = runners.get("num_env_steps_sampled"), result.get("time_this_iter_s")
    if steps and seconds:
        parts.append(f"{steps / seconds:.0f} steps/s")
    return "  ".join([*parts, f"{clock(left)} left"])


def clock(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
