"""What a training of a restoration policy reports: per-metric means, tool use, and before/after pictures in TensorBoard."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ray.rllib.callbacks.callbacks import RLlibCallback

from policies.grpo.rollouts import tools_run
from policies.loading import BEFORE_TRAINING
from tool_actors.pool.counters import summarise
from tool_actors.threads import limit_threads

WINDOW = 400
"""Episodes over which the reported means run."""
PICTURE_SAMPLES = 6
MAX_LEARNER_THREADS = 8


class RestorationCallbacks(RLlibCallback):
    """Logs under ``env_runners/``: ``quality/<metric>`` (of the last image), ``gain/<metric>`` (last less first), ``tools_per_image``,
    ``part/<name>`` (of the reward of whole plans),
    ``stopped`` (share of episodes that the policy ended itself), ``invalid`` (share of forbidden actions), ``tool_failures``,
    ``undefined_scores`` (metrics without a value, counted as their worst); and writes a strip of held-out restorations to TensorBoard every
    ``picture_every`` iterations. Counters of the tool pool, if there is one, stand under ``pool/``.
    The policy as it was before the first update is kept beside the checkpoints, as ``before_training``.
    """

    picture_every = 10

    def on_algorithm_init(self, *, algorithm, **kwargs):
        # where it learns while runners wait, it has asked for next to nothing, and Ray would give it one thread
        asked = int(algorithm.config.num_cpus_for_main_process)
        limit_threads(asked or min(os.cpu_count() or 1, MAX_LEARNER_THREADS))
        if storage := getattr(algorithm, "_storage", None):
            keep_untrained(algorithm.get_module(), Path(storage.trial_fs_path) / BEFORE_TRAINING)

    def on_environment_created(self, *, env_runner, env, env_context, **kwargs):
        if env_runner.worker_index > 0:
            limit_threads(1)

    def on_episode_end(self, *, episode, metrics_logger, **kwargs):
        infos = episode.get_infos()
        first, last, steps = infos[0], infos[-1], infos[1:]
        log = metrics_logger.log_value
        for name, value in last["metrics"].items():
            log(("quality", name), float(value), window=WINDOW)
            log(("gain", name), float(value) - float(first["metrics"][name]), window=WINDOW)
        invalid = sum(bool(info["invalid"]) for info in steps)
        stopped = steps[-1]["tool"] == "stop"
        log("tools_per_image", float(tools_run([episode])[0]), window=WINDOW)
        log("stopped", float(stopped), window=WINDOW)
        log("invalid", invalid / len(steps), window=WINDOW)
        for name, value in last.get("parts", {}).items():
            log(("part", name), float(value), window=WINDOW)
        log("undefined_scores", sum(int(info["undefined"]) for info in infos), reduce="sum")
        log("tool_failures", sum(bool(info["error"]) for info in steps), reduce="sum")

    def on_train_result(self, *, algorithm, result, **kwargs):
        executor = str((algorithm.config.env_config or {}).get("executor", ""))
        if executor.startswith("pool:"):
            result["pool"] = self._pool_counters(executor.partition(":")[2])
        if result["training_iteration"] == 1 or result["training_iteration"] % self.picture_every == 0:
            self._write_pictures(algorithm, result["training_iteration"])

    def _pool_counters(self, name: str) -> dict:
        from tool_actors.pool import MCPool

        if not hasattr(self, "_pool"):
            self._pool = MCPool.connect(name)
        return summarise(self._pool.status())

    def _write_pictures(self, algorithm, iteration: int) -> None:
        import numpy as np
        from tensorboardX import SummaryWriter

        from ir_env.evaluation import evaluation_settings, start_heldout
        from ir_env.planner import run
        from ir_env.process import RestorationProcess
        from ir_env.rendering import film_strip
        from policies.loading import planner_of

        if not hasattr(self, "_process"):
            self._process = RestorationProcess(**evaluation_settings(algorithm.config.env_config))
            # under Tune, logdir is a scratch folder that goes with the session; the trial's own folder stays
            storage = getattr(algorithm, "_storage", None)
            self._writer = SummaryWriter(storage.trial_fs_path if storage else algorithm.logdir)
        episodes = start_heldout(self._process, PICTURE_SAMPLES)
        for _ in run(self._process, planner_of(algorithm.get_module()), episodes):
            pass
        strips = [film_strip(episode, self._process.actions, self._process.suite.names) for episode in episodes]
        width = max(strip.shape[1] for strip in strips)
        padded = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
        self._writer.add_image("heldout", np.concatenate(padded), iteration, dataformats="HWC")
        self._writer.flush()


def keep_untrained(module, folder: Path) -> None:
    """Write an RLModule where :func:`policies.loading.load_before_training` finds it; a resumed run keeps what its beginning wrote."""
    if not folder.exists():
        unfinished = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        module.save_to_path(unfinished)
        unfinished.replace(folder)
