"""Every step of ``experiments/tir_agent/qwen3vl_8b.py`` with a tiny Qwen3-VL, on two CPU cores: what is wrong with it shows before GPUs do.

How to run
----------
    python -m experiments.tir_agent.rehearsal --out results/rehearsal

The experiment file is run as it stands, by ``rllib train file``; what differs are the sizes (:data:`SMALLER`). A Qwen3-VL of 5 million
parameters with the same view takes the model's place; it learns to write calls first, at random, for lack of a fine-tuned one. Photographs
have different sizes, some are of low resolution; six metrics that need no weights stand in for the paper's; tools run in a pool; two
learners share the parameters (FSDP2, in bfloat16); and the run is killed after its first checkpoint, and resumed on the cluster, which goes
on.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from experiments.cli.common import guarded, prepare_ray, start_ray
from tool_actors.errors import IrEnvError

prepare_ray()

EXPERIMENT, NAME = "experiments/tir_agent/qwen3vl_8b.py", "run"
TOOLS = ["tv.denoise", "dcp.strong", "gamma.brighten", "bicubic.x4"]
ACTIONS = [("denoise", "tv.denoise"), ("dehaze", "dcp.strong"), ("brighten", "gamma.brighten"), ("super_resolve", "bicubic.x4")]
VIEW = {"overview": 0, "glimpses": 0, "whole": 96, "images": "all"}
METRICS = ["psnr", "ssim_ycbcr", "gmsd", "nlpd", "piqe", "fsim"]
COMBOS = "noise,low_resolution,haze+low_resolution"
SIDES = ((96, 160), (128, 96), (160, 160), (96, 96))
LESSONS, ITERATIONS = 80, 3
CPUS = 6
"""Of the cluster, on paper: one for each process of the run, and two for the pool."""
SMALLER = {
    "num_env_runners": 1,
    "num_envs_per_env_runner": 8,
    "num_gpus_per_env_runner": 0,
    "num_learners": 2,
    "num_gpus_per_learner": 0,
    "num_cpus_for_main_process": 1,
    "num_cpus_per_learner": 1,
    "group_size": 4,
    "micro_batch_size": 4,
    "env_config.executor": "pool",
    "env_config.toolbox": TOOLS,
    "env_config.metrics": METRICS,
    "env_config.max_steps": 2,
    "env_config.view": VIEW,
    "env_config.dataset.combos": COMBOS,
    "env_config.dataset.split": "all",
    "model_config.max_tokens": 24,
    "model_config.batch": 4,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the model, the photographs and the run")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--address", default="local", help="of a Ray cluster, e.g. auto (default: local, one on this machine)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="more settings, as of `rllib train`; repeatable")
    options = parser.parse_args(arguments)
    return guarded(lambda: rehearse(options.out.resolve(), options.iterations, options.address, options.set))


def rehearse(out: Path, iterations: int, address: str, more: list[str]) -> int:
    out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    make_photographs(out / "photos")
    if not (out / "model").is_dir():
        teach(out / "model")
    print(f"a model that writes calls, and photographs of {len(SIDES)} sizes: {time.perf_counter() - begun:.0f} s", flush=True)

    start_ray(address=address, **({"num_cpus": CPUS} if address == "local" else {}))
    import ray

    settings = {**SMALLER, "model_config.model": out / "model", "env_config.dataset.photos": out / "photos"}
    where = ["--storage", str(out), "--name", NAME, "--address", ray.get_runtime_context().gcs_address, "--samples", "0"]
    command = [sys.executable, "-m", "experiments.cli.rllib", "train", "file", EXPERIMENT, *where]
    given = [f"--set={key}={value}" for key, value in settings.items()]
    begun = time.perf_counter()
    first = subprocess.Popen(
        [*command, *given, *(f"--set={one}" for one in more), f"--stop=training_iteration={iterations}"],
        start_new_session=True,
    )
    wait_for_checkpoint(out / NAME, first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = len(results(out / NAME))
    print(f"killed after {done} of {iterations} iterations, {time.perf_counter() - begun:.0f} s", flush=True)
    begun = time.perf_counter()
    ended = subprocess.run([*command, "--resume"]).returncode
    print(f"resumed to its end in {time.perf_counter() - begun:.0f} s", flush=True)
    report(out / NAME)
    return ended


def make_photographs(folder: Path) -> None:
    """Photographs of several sizes, from those that come with the packages."""
    import cv2

    from ir_env.datasets import BuiltinPhotos
    from ir_env.images import save_image

    photos = BuiltinPhotos("all")
    folder.mkdir(exist_ok=True)
    for index, photo in enumerate(photos.names):
        height, width = SIDES[index % len(SIDES)]
        save_image(folder / f"{photo}.png", cv2.resize(photos.load(photo), (width, height), interpolation=cv2.INTER_AREA))


def teach(folder: Path, lessons: int = LESSONS) -> None:
    """A tiny Qwen3-VL that writes well-formed calls most of the time, whichever; without lessons it writes anything."""
    import torch

    from ir_env.actions import ActionTable
    from ir_env.view import View
    from policies.vlm.model import VisionLanguageModel
    from policies.vlm.planner import PolicySettings
    from tool_actors.threads import limit_threads

    limit_threads(1)
    settings = PolicySettings(compact=True, view=View.of(VIEW), toolbox=TOOLS)
    prompter = settings.prompter(ActionTable.from_pairs(ACTIONS))
    vlm = VisionLanguageModel.load("nano", prompter)
    optimiser = torch.optim.Adam(vlm.model.parameters(), 2e-3)
    rng = np.random.default_rng(0)
    answers = [prompter.answer(action) for action in range(len(ACTIONS) + 1)]
    for lesson in range(lessons):
        pictures = rng.integers(0, 256, (8, 2, 64, 64, 3), np.uint8)
        histories = [(index % 3,) * (index % 2) for index in range(len(pictures))]
        chats = [prompter.messages(list(seen[: 1 + len(past)]), past) for seen, past in zip(pictures, histories, strict=True)]
        tokens, mask = vlm.encode_answers([answers[(index + lesson) % len(answers)] for index in range(len(chats))])
        optimiser.zero_grad()
        (-vlm.logprobs(vlm.encode(chats), tokens, mask).sum(1).mean()).backward()
        optimiser.step()
    vlm.save(folder)
    settings.save(folder)


def wait_for_checkpoint(run: Path, process: subprocess.Popen) -> None:
    """Until Tune has kept its state after the run's first checkpoint, from which it then would go on."""
    while not _newest(run, "experiment_state-*.json") > _newest(run, "*/checkpoint_000000/rllib_checkpoint.json") > 0:
        if process.poll() is not None:
            raise IrEnvError(f"the run ended before its first checkpoint, see {run}")
        time.sleep(0.5)


def _newest(run: Path, pattern: str) -> float:
    """When the newest of such files was written; 0 if there is none."""
    return max((path.stat().st_mtime for path in run.glob(pattern)), default=0.0)


def results(run: Path) -> list[dict]:
    lines = [line for file in sorted(run.glob("*/result.json")) for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines if line.endswith("}")]


def report(run: Path) -> None:
    """A line per iteration."""
    for result in results(run):
        told, learner = result["grpo"], result["learners"]["default_policy"]
        rewards = ", ".join(f"{name} {value:.3f}" for name, value in told["reward"].items())
        norm, gap = learner["gradients_default_optimizer_global_norm"], learner["sampling_gap"]
        print(
            f"iteration {result['training_iteration']}: {result['time_this_iter_s']:.0f} s; {rewards}; format {told['format_rate']:.2f}; "
            f"gradient {norm:.2f}, entropy {learner['entropy']:.2f}, sampling gap {gap:.4f}, pool ran {result['pool']['executions']:.0f}"
        )


if __name__ == "__main__":
    sys.exit(main())
