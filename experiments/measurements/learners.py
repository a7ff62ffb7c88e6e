"""GRPO on several learners, and the engines that sample, measured.

    python -m experiments.measurements.learners --json learners.json
    python -m experiments.measurements.learners --only engines

Parts: ``equality`` (three updates on two and three learners beside one, of a small network that is replicated and of a tiny Qwen3-VL that
is sharded: largest differences of losses, gradients and parameters), ``throughput`` (two learners over one, in turn), ``engines``
(continuous batching over transformers' ``generate``).

Every process computes on one thread. The load of the machine is printed: on a busy one only ratios tell something.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.cli.common import guarded, prepare_ray, start_ray

prepare_ray()

UPDATES, ROLLOUTS, TIMED = 3, 16, 5
TOOLS = ["tv.denoise", "dcp.strong", "gamma.brighten", "bicubic.x4"]
CPUS = 8
"""On paper, so that all groups of learners fit side by side."""


@dataclass(frozen=True)
class Updates:
    """What some updates did."""

    losses: np.ndarray
    """float64 (U,)"""
    gradients: list[dict[str, np.ndarray]]
    """Of each update's last step, clipped."""
    parameters: dict[str, np.ndarray]
    """After them."""
    moved: float
    """The furthest that a parameter went."""

    def differences(self, other: Updates) -> dict[str, float]:
        """The largest absolute ones."""
        pairs = zip(self.gradients, other.gradients, strict=True)
        return {
            "loss": float(np.abs(self.losses - other.losses).max()),
            "gradient": max(_furthest(mine, theirs) for mine, theirs in pairs),
            "parameter": _furthest(self.parameters, other.parameters),
        }


def small_network() -> Any:
    """GRPO of SimpleCall's network, whose rollouts have one to three steps."""
    from ray.rllib.core.rl_module import RLModuleSpec

    from policies.simplecall.rl_module import SimpleCallRLModule

    spec = RLModuleSpec(module_class=SimpleCallRLModule, model_config={"hidden": [32]})
    return _config(3).training(lr=1e-2, micro_batch_size=3).rl_module(rl_module_spec=spec)


def tiny_vlm(model: Path, **model_config: Any) -> Any:
    """GRPO of the rehearsal's model, whose answers differ in length."""
    from ray.rllib.core.rl_module import RLModuleSpec

    from experiments.tir_agent.rehearsal import ACTIONS, VIEW
    from policies.vlm.rl_module import VLMRLModule

    options = {"model": str(model), "actions": ACTIONS, "max_tokens": 24, **model_config}
    config = _config(2).rl_module(rl_module_spec=RLModuleSpec(module_class=VLMRLModule, model_config=options))
    config.env_config["view"] = VIEW
    return config.training(lr=3e-5, micro_batch_size=2)


def _config(max_steps: int) -> Any:
    from policies.grpo.config import GRPOConfig

    dataset = {"photos": "builtin", "crop_size": 64, "combos": "A"}
    return (
        GRPOConfig()
        .environment("ir_env:ir_env/Restoration-v0", env_config={"dataset": dataset, "toolbox": TOOLS, "max_steps": max_steps})
        .env_runners(num_envs_per_env_runner=ROLLOUTS)
        .training(group_size=4, num_epochs=1, num_minibatches=2, grad_clip=1.0)
        .debugging(seed=3)
    )


def sample(config: Any, rounds: int) -> tuple[dict[str, Any], list[list[Any]]]:
    """The spaces of the module, and rounds of rollouts with advantages drawn at random."""
    from policies.grpo.env_runner import GroupEnvRunner
    from policies.grpo.rollouts import add_column

    config = config.copy()
    config.validate()
    runner = GroupEnvRunner(config=config, worker_index=0)
    rng = np.random.default_rng(0)
    sampled = [runner.sample_round((0, index))[1] for index in range(rounds)]
    for episodes in sampled:
        add_column(episodes, "advantages", rng.normal(size=len(episodes)).astype(np.float32))
        add_column(episodes, "rollout", np.arange(len(episodes)))
    spaces = {"default_policy": (runner.env.single_observation_space, runner.env.single_action_space)}
    runner.stop()
    return spaces, sampled


def learner_group(config: Any, learners: int, spaces: dict[str, Any], fully_shard: bool = False, alone: bool = False) -> Any:
    """So many learners, in processes of their own; one learner is in this, unless it shards, or is to be ``alone``."""
    config = config.copy().learners(num_learners=learners if learners > 1 or fully_shard or alone else 0, num_cpus_per_learner=1)
    config.training(fully_shard=fully_shard).validate()
    return config.build_learner_group(spaces=spaces)


def update(group: Any, episodes: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    return group.update(episodes=list(episodes), timesteps={"num_env_steps_sampled_lifetime": 0}, num_epochs=1, seed=seed)


def updates(group: Any, rounds: Sequence[Sequence[Any]]) -> Updates:
    """Update on round after round."""
    before, losses, gradients = parameters_of(group), [], []
    for seed, episodes in enumerate(rounds):
        told = update(group, episodes, seed)[0]["default_policy"]["total_loss"]
        losses.append(float(told.peek() if hasattr(told, "peek") else told))
        gradients.append(next(iter(group.foreach_learner(gradients_of))).get())
    after = parameters_of(group)
    return Updates(np.array(losses), gradients, after, _furthest(before, after))


def gradients_of(learner: Any) -> dict[str, np.ndarray]:
    """Of a learner; whole ones of the first, if they are sharded."""
    from policies.grpo.distributed import whole

    named = learner.module["default_policy"].named_parameters()
    return {name: np.array(whole(parameter.grad)) for name, parameter in named if parameter.grad is not None}


def parameters_of(group: Any) -> dict[str, np.ndarray]:
    return group.get_weights()["default_policy"]


def _furthest(ones: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> float:
    return max(float(np.abs(np.asarray(others[name]) - np.asarray(value)).max()) for name, value in ones.items())


# -- parts -------------------------------------------------------------------------------------------------------------------------


def measure_equality(console: Console, model: Path) -> dict[str, Any]:
    table = Table("learners", "loss", "gradient", "parameter", "moved by", title=f"largest difference from one learner, {UPDATES} updates")
    told = {}
    for name, config, fully_shard in (("small network, DDP", small_network(), False), ("tiny Qwen3-VL, FSDP2", tiny_vlm(model), True)):
        spaces, rounds = sample(config, UPDATES)
        found = {}
        for learners in (1, 2, 3):
            group = learner_group(config, learners, spaces, fully_shard and learners > 1)
            found[learners] = updates(group, rounds)
            group.shutdown()
        for learners in (2, 3):
            differences = found[learners].differences(found[1])
            told[f"{name}, {learners}"] = {**differences, "moved": found[1].moved}
            table.add_row(f"{name}, {learners}", *(f"{value:.1e}" for value in [*differences.values(), found[1].moved]))
    console.print(table)
    return told


def measure_throughput(console: Console, model: Path) -> dict[str, Any]:
    # learners meet at every layer of every micro-batch where they share parameters, and once per step where they do not
    config = tiny_vlm(model).training(num_minibatches=1, micro_batch_size=ROLLOUTS // 2)
    spaces, [episodes] = sample(config, 1)
    steps, told = sum(map(len, episodes)), {}
    table = Table("learners", "seconds per update", "steps per second", title="throughput, tiny Qwen3-VL, one thread each")
    for name, fully_shard in (("DDP", False), ("FSDP2", True)):
        # also the one in a process of its own
        groups = {number: learner_group(config, number, spaces, fully_shard, alone=True) for number in (1, 2)}
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(TIMED + 1):
            for number, group in groups.items():
                begun = time.perf_counter()
                update(group, episodes, turn)
                seconds[number].append(time.perf_counter() - begun)
        for group in groups.values():
            group.shutdown()
        # the first is warming up
        medians = {number: statistics.median(each[1:]) for number, each in seconds.items()}
        for number, median in medians.items():
            table.add_row(f"{name}, {number}", f"{median:.2f}", f"{steps / median:.1f}")
        told[name] = {"seconds": medians, "ratio": medians[1] / medians[2], "load": os.getloadavg()[0]}
    console.print(table)
    ratios = ", ".join(f"{name} {each['ratio']:.2f}x" for name, each in told.items())
    console.print(f"two learners over one: {ratios}; load of the machine {_load()}")
    return told


def measure_engines(console: Console, model: Path) -> dict[str, Any]:
    import torch

    from experiments.tir_agent.rehearsal import ACTIONS
    from ir_env.actions import ActionTable
    from policies.vlm.engines import CONTINUOUS, GENERATE, make_engine
    from policies.vlm.model import VisionLanguageModel
    from policies.vlm.planner import PolicySettings

    prompter = PolicySettings.read(model).prompter(ActionTable.from_pairs(ACTIONS))
    vlm = VisionLanguageModel.load(model)
    pictures = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8)
    chats = [prompter.messages([picture], ()) for picture in pictures]
    engines = {name: make_engine(name, vlm, 64, 16) for name in (GENERATE, CONTINUOUS)}
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    lengths: dict[str, list[int]] = {name: [] for name in engines}
    for turn in range(TIMED):
        for name, engine in engines.items():
            torch.manual_seed(turn)
            begun = time.perf_counter()
            # so hot that some answers are malformed, and run on to the limit, as those of a policy that begins to learn
            written = engine.answer(chats, range(len(chats)), temperature=2.0)
            seconds[name].append((time.perf_counter() - begun) / int(written.mask.sum()))
            lengths[name] += written.mask.sum(1).tolist()
    table = Table("engine", "tokens per second", "tokens per answer", "longest", title="64 answers, 16 at a time, tiny Qwen3-VL")
    for name, each in seconds.items():
        table.add_row(name, f"{1 / statistics.median(each):.0f}", f"{statistics.mean(lengths[name]):.1f}", str(max(lengths[name])))
    console.print(table)
    ratio = statistics.median(seconds[GENERATE]) / statistics.median(seconds[CONTINUOUS])
    console.print(f"continuous over generate: {ratio:.2f}x; load of the machine {_load()}")
    return {"ratio": ratio, "load": os.getloadavg()[0]}


PARTS: dict[str, Callable[[Console, Path], dict[str, Any]]] = {
    "equality": measure_equality,
    "throughput": measure_throughput,
    "engines": measure_engines,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--address", default="local", help="of a Ray cluster, e.g. auto (default: local, one on this machine)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    return guarded(lambda: measure(options.only, options.address, options.json))


def measure(parts: Sequence[str], address: str, file: Path | None) -> int:
    from experiments.tir_agent.rehearsal import teach
    from tool_actors.threads import limit_threads

    limit_threads(1)
    console, told = Console(), {}
    if set(parts) - {"engines"}:
        start_ray(address=address, **({"num_cpus": CPUS} if address == "local" else {}))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        teach(model)
        for part in parts:
            told[part] = PARTS[part](console, model)
            if file:
                file.write_text(json.dumps(told, indent=2) + "\n")
    return 0


def _load() -> str:
    return f"{os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
