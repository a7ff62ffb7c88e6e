"""Our GRPO beside TRL's GRPOTrainer: whether losses, gradients and advantages are the same, and how fast both are.

How to run
----------
    uv run --extra bench python -m experiments.measurements.trl_grpo --out results/trl_grpo.json
    uv run --extra bench python -m experiments.measurements.trl_grpo --parts loss

Both sides get one untrained nano model (Qwen3-VL's architecture), the same prompts with a 64 x 64 image each, and one thread.

* ``loss``: TRL's trainer tokenises the prompts, turns rewards into advantages, scores the completions that it is handed under its reference
  model, and computes its loss; ours does so by ``policies.grpo`` and ``VisionLanguageModel``. The policy is moved away from the reference,
  and the old log-probabilities from the policy, so that divergence and clipping act. No formula of TRL's is repeated here.
* ``speed``: iterations in turns, each of 64 completions of at most 24 tokens in groups of 8, a reward that costs nothing, and one update.
  TRL generates with transformers; ours runs through RLlib with its local env runner.

Where the two differ by convention
----------------------------------
* TRL multiplies the divergence by the ratio, unless ``use_bias_correction_kl=False``; we never do (nor does DeepSeekMath's equation 4).
* TRL bars image tokens in sampling and leaves them in the softmax when it scores; we bar them in both, so that both give one number.
* TRL's old log-probabilities are, with one update per batch, the current ones, and the ratio is exactly 1; ours are those of sampling.
* TRL averages ``grpo`` over completions, we over rollouts, however many turns they have: the same for one turn. The constant of ``dr_grpo``
  is ``max_completion_length`` there and ``max_rollout_tokens`` here. TRL's default, ``dapo``, we do not have.
* TRL's entropy bonus is the mean over all tokens of a batch; ours has the weights of the loss.
* TRL adds rewards up in float32: a group of equal rewards can get an advantage, since what rounding leaves is divided by 1e-4. Ours is 0.
* By default TRL steps with AdamW at a rate that falls to 0, in bfloat16 and with activations recomputed; ours with Adam at a constant rate.
  Precision and recomputation are set alike here.

Results to expect
-----------------
TRL 1.16.0, two cores shared with other work. Losses differ by at most 2e-8, the gradient of any parameter by 1.4e-6 of its norm,
advantages by 6e-7. With TRL's own conventions gradients differ by 13 % (divergence) and 7 % (image tokens, which an untrained model finds
likely), and a group of equal rewards gets an advantage of up to 0.002. Ours takes 0.55 of TRL's time (medians of 5; 82 rollouts and 1.3
updates a second, TRL 45 and 0.7): the members of a group share the computation of their prompt. Before they did, both took as long.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from rich.console import Console
from rich.table import Table

from experiments.cli.common import prepare_ray
from ir_env.actions import ActionTable
from ir_env.view import View
from policies.grpo.advantages import AdvantageEstimator, AdvantageOptions
from policies.grpo.loss import LossOptions, grpo_loss, mean_statistics, token_weights
from policies.vlm.model import VisionLanguageModel
from policies.vlm.planner import PolicySettings
from policies.vlm.prompts import Messages, Prompter
from tool_actors.threads import limit_threads
from tool_actors.toolboxes import load_toolbox

SIDE, GROUP, TOKENS = 64, 8, 24
VIEW = View(overview=SIDE, glimpses=0)
COMPLETIONS = 64
"""Of an iteration."""
PHOTOS = 32
WARM_UP = 2
"""Iterations of each side that are not counted."""
REWARDS = {"psnr": 1.0, "ssim": 0.5, "musiq": 2.0}
"""Names and weights of the rewards whose advantages are compared."""
BETA = 0.1
DRAWS = 20
LOSS_LIMIT, ADVANTAGE_LIMIT = 1e-5, 1e-6


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, with commas between them")
    parser.add_argument("--rounds", type=int, default=9, help="of the speed part: iterations of each side; their median counts")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts takes {','.join(PARTS)}, not {options.parts}")
    prepare_ray()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore")
    from transformers.utils import logging as transformers_logging

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        import trl
    except ImportError as error:
        raise SystemExit(f"TRL is not installed ({error}): run with `uv run --extra bench`") from error
    limit_threads(1)
    console, report = Console(), {"trl": trl.__version__}
    with tempfile.TemporaryDirectory() as folder:
        prompter = Prompter(ActionTable(load_toolbox("default")), compact=True, view=VIEW)
        VisionLanguageModel.load("nano", prompter).save(folder)
        PolicySettings(compact=True, view=VIEW).save(folder)
        for part in parts:
            report |= PARTS[part](Path(folder), prompter, options, console)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


def make_trainer(folder: Path, model: Any, processor: Any, rewards: Sequence[Callable], rows: list[dict], batch: int, **settings):
    """TRL's trainer; the settings are TRL's."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    apart = {name: settings.pop(name) for name in ("rollout_func", "callbacks") if name in settings}
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        num_generations=GROUP,
        max_completion_length=TOKENS,
        per_device_train_batch_size=batch,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return GRPOTrainer(model, list(rewards), config, Dataset.from_list(rows), processing_class=processor, **apart)


def trl_row(chat: Messages) -> dict[str, Any]:
    """A chat as TRL's datasets hold it."""
    from PIL import Image

    [image] = [part["image"] for message in chat for part in message["content"] if part["type"] == "image"]
    prompt = [{"role": message["role"], "content": "".join(part.get("text", "") for part in message["content"])} for message in chat]
    return {"prompt": prompt, "image": Image.fromarray(image)}


def noise_photos() -> np.ndarray:
    """uint8 (PHOTOS, SIDE, SIDE, 3)."""
    return np.random.default_rng(0).integers(0, 256, (PHOTOS, SIDE, SIDE, 3), np.uint8)


# -- loss, gradients and advantages ------------------------------------------------------------------------------------------------


def compare_loss(folder: Path, prompter: Prompter, options: argparse.Namespace, console: Console) -> dict:
    """Both losses of the same completions, both gradients of all parameters, both advantages of the same rewards."""
    case = Case(folder, prompter)
    losses = [case.loss(loss_type, beta) for loss_type in ("grpo", "dr_grpo") for beta in (0.0, BETA)]
    _print(console, f"loss and, relative to its norm, any parameter's gradient; wanted <= {LOSS_LIMIT:g}", losses)
    advantages = [case.advantages(*names) for names in (("gdpo", "normalize_then_sum"), ("grpo", "sum_then_normalize"))]
    advantages.append(case.advantages("grpo", "sum_then_normalize", scale="none"))
    _print(console, f"advantages of {DRAWS} batches; wanted <= {ADVANTAGE_LIMIT:g}", advantages)
    apart = [
        {"TRL": "weighs the divergence by the ratio", **case.loss("grpo", BETA, use_bias_correction_kl=True)},
        {"TRL": "scores with the image tokens it cannot draw", **case.loss("grpo", BETA, barred=True)},
        {"TRL": "rounds equal rewards to an advantage", **case.advantages("grpo", "sum_then_normalize", equal=True)},
    ]
    columns = ("TRL", "difference", "gradient, worst")
    _print(console, "conventions that differ", [{name: row.get(name, "") for name in columns} for row in apart])
    return {"loss": losses, "advantages": advantages, "conventions": apart}


class Case:
    """What both sides are given."""

    def __init__(self, folder: Path, prompter: Prompter, groups: int = 4):
        rng, self.count = np.random.default_rng(1), groups * GROUP
        self.folder = folder
        self.policy, self.reference = (VisionLanguageModel.load(folder) for _ in range(2))
        self.barred = self.policy.barred_tokens
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        # histories of several lengths, so that prompts are padded
        images = noise_photos()[:groups]
        self.chats = [prompter.messages([image], range(steps)) for steps, image in enumerate(images) for _ in range(GROUP)]
        words = rng.integers(max(self.barred + self.policy.end_tokens) + 1, len(self.policy.tokenizer), (self.count, TOKENS))
        self.completions = [row[:length].tolist() for row, length in zip(words, rng.integers(1, TOKENS + 1, self.count), strict=True)]
        self.rewards = rng.random((DRAWS, self.count, len(REWARDS)), np.float32)
        self.noise = torch.from_numpy(rng.normal(0, 0.3, (self.count, TOKENS))).float()

    def trl(self, **settings):
        """TRL's trainer, which takes the completions and rewards of this case, and does the rest itself."""

        def rewarder(name: str):
            def reward(**columns):
                return columns[name]

            reward.__name__ = name
            return reward

        def rollouts(prompts, trainer):
            tokens, _, _ = trainer._tokenize_prompts(prompts)
            return {"prompt_ids": tokens, "completion_ids": self.completions, "logprobs": None}

        model, rows = copy.deepcopy(self.policy.model), [trl_row(self.chats[0])]
        settings |= {"rollout_func": rollouts, "reward_weights": list(REWARDS.values())}
        return make_trainer(self.folder, model, self.policy.processor, list(map(rewarder, REWARDS)), rows, self.count, **settings)

    def rows(self, rewards: np.ndarray) -> list[dict]:
        """TRL's rows, each with the rewards of its completion."""
        return [trl_row(chat) | dict(zip(REWARDS, row.tolist(), strict=True)) for chat, row in zip(self.chats, rewards, strict=True)]

    def loss(self, loss_type: str, beta: float, barred: bool = False, use_bias_correction_kl: bool = False) -> dict:
        """Both sides' loss and gradients.

        Args:
            loss_type: ``grpo`` or ``dr_grpo``.
            beta: weight of the divergence from the reference.
            barred: leave our barred tokens out of the softmax, as in training.
            use_bias_correction_kl: TRL's.
        """
        trainer = self.trl(loss_type=loss_type, beta=beta, use_bias_correction_kl=use_bias_correction_kl)
        batch = trainer._generate_and_score_completions(self.rows(self.rewards[0]))
        prompts = self.policy.encode(self.chats)
        if not (torch.equal(batch["prompt_ids"], prompts["input_ids"]) and torch.equal(batch["pixel_values"], prompts["pixel_values"])):
            raise AssertionError("the two sides read different prompts")
        tokens, mask = batch["completion_ids"], batch["completion_mask"]
        self.policy.barred_tokens = self.reference.barred_tokens = self.barred if barred else []
        with torch.no_grad():
            reference = self.reference.logprobs(prompts, tokens, mask) if beta else None
        logp, entropy = self.policy.score(prompts, tokens, mask)
        batch["old_per_token_logps"] = old = logp.detach() + self.noise[:, : tokens.shape[1]]

        theirs = trainer.compute_loss(trainer.model, batch)
        theirs.backward()
        weights = token_weights(mask, torch.arange(self.count), loss_type, TOKENS)
        ours, sums = grpo_loss(logp, old, batch["advantages"], weights, LossOptions(kl_coeff=beta), entropy, reference)
        self.policy.model.zero_grad()
        ours.backward()
        expected = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
        gaps = [
            float((parameter.grad - expected[name]).norm() / expected[name].norm())
            for name, parameter in self.policy.model.named_parameters()
        ]
        return {
            "loss": loss_type,
            "beta": beta,
            "TRL's": float(theirs),
            "ours": float(ours),
            "difference": abs(float(theirs) - float(ours)),
            "gradient, worst": max(gaps),
            "clipped": mean_statistics(sums)["clip_fraction"],
        }

    def advantages(self, mode: str, aggregation: str, scale: str = "group", equal: bool = False) -> dict:
        """The largest difference of the advantages of all draws of rewards.

        Args:
            mode: ours.
            aggregation: TRL's name for it.
            scale: of the rewards of a group, as both name it.
            equal: all rollouts of a group have the rewards of its first.
        """
        trainer = self.trl(multi_objective_aggregation=aggregation, scale_rewards=scale)
        estimator = AdvantageEstimator(AdvantageOptions(mode, weights=REWARDS, scale_rewards=scale), list(REWARDS))
        gap = 0.0
        for rewards in self.rewards:
            if equal:
                rewards = np.repeat(rewards[::GROUP], GROUP, axis=0)
            theirs = trainer._generate_and_score_completions(self.rows(rewards))["advantages"].reshape(-1, GROUP)
            ours = estimator(rewards.reshape(-1, GROUP, len(REWARDS))).advantages
            gap = max(gap, float(np.abs(ours - theirs.double().numpy()).max()))
        return {"ours": mode, "TRL's": aggregation, "divided by": scale, "difference": gap}


# -- speed -------------------------------------------------------------------------------------------------------------------------


class PromptEnv(gymnasium.vector.VectorEnv):
    """Shows a photograph, and rewards whatever is answered at random: episodes of one step that cost nothing."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs: int, actions: int):
        from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete

        self.num_envs, self.photos = num_envs, noise_photos()
        self.single_observation_space = Dict(
            {**VIEW.spaces(1), "history": MultiDiscrete([actions + 1]), "step": Box(0.0, 1.0, (1,), np.float32)}
        )
        self.single_action_space = Discrete(actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: Any = None, options=None):
        self.shown = self.photos[[each % len(self.photos) for each in seed]]
        return self._observation(0), {}

    def step(self, actions):
        ends = np.ones(self.num_envs, bool)
        return self._observation(1), np.random.random(self.num_envs), ends, ~ends, {}

    def _observation(self, step: int) -> dict[str, np.ndarray]:
        zeros = np.zeros((self.num_envs, 1), np.int64)
        size = np.full((self.num_envs, 2), SIDE, np.float32)
        return {"size": size, "overview": self.shown, "history": zeros, "step": (zeros + step).astype(np.float32)}


def log_tokens(episode, metrics_logger, **kwargs) -> None:
    """That both sides write as many."""
    metrics_logger.log_value("tokens", float(np.sum(episode.get_extra_model_outputs("token_mask"))), window=COMPLETIONS)


def make_algorithm(folder: Path, prompter: Prompter):
    """Ours."""
    from ray import tune
    from ray.rllib.core.rl_module import RLModuleSpec

    from policies.grpo.config import GRPOConfig
    from policies.vlm.rl_module import VLMRLModule

    tune.register_env("prompts", lambda arguments: PromptEnv(**arguments))
    pairs = [[action.task, action.tool] for action in prompter.actions]
    model = {"model": str(folder), "actions": pairs, "max_tokens": TOKENS, "batch": COMPLETIONS}
    config = (
        GRPOConfig()
        .environment("prompts", env_config={"actions": prompter.actions.n})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=COMPLETIONS)
        .learners(num_learners=0)
        .training(group_size=GROUP, rewards="return", advantage="grpo", lr=1e-6, grad_clip=1.0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=VLMRLModule, model_config=model))
        .callbacks(on_episode_end=log_tokens)
        .debugging(seed=0)
    )
    return config.build_algo()


def compare_speed(folder: Path, prompter: Prompter, options: argparse.Namespace, console: Console) -> dict:
    """Both sides take turns at every iteration, so that a busy moment of the machine meets both."""
    import ray.rllib
    from transformers import PrinterCallback, TrainerCallback

    # its warnings are about its own calls to itself; importing it sets the level
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    algorithm = make_algorithm(folder, prompter)
    theirs, ours = Stopwatch(), Stopwatch()
    algorithm._sample_rounds = ours.of("rollouts", algorithm._sample_rounds)
    train = ours.of("iteration", algorithm.train)
    results = []

    class Turns(TrainerCallback):
        def on_train_begin(self, *arguments, **kwargs):
            theirs.start("iteration")

        def on_step_end(self, *arguments, **kwargs):
            theirs.stop("iteration")
            results.append(train())
            theirs.start("iteration")

    def reward(completions, **columns):
        return np.random.random(len(completions)).tolist()

    vlm = VisionLanguageModel.load(folder)
    trainer = make_trainer(
        folder,
        vlm.model,
        vlm.processor,
        [reward],
        [trl_row(prompter.messages([image], ())) for image in noise_photos()],
        COMPLETIONS,
        max_steps=options.rounds + WARM_UP,
        loss_type="grpo",
        # as ours: nothing that stands for an image
        generation_kwargs={"suppress_tokens": vlm.barred_tokens},
        callbacks=[Turns()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer._prepare_inputs = theirs.of("rollouts", trainer._prepare_inputs)
    try:
        trainer.train()
    finally:
        algorithm.stop()
        ray.shutdown()
    rows: list[dict[str, Any]] = [
        {"side": "TRL", **theirs.row(), "tokens": trainer.state.log_history[-1]["completions/mean_length"]},
        {"side": "ours", **ours.row(), "tokens": float(np.mean([result["env_runners"]["tokens"] for result in results]))},
    ]
    _print(console, f"iterations of {COMPLETIONS} completions and an update, medians of {options.rounds}", rows)
    ratios = {clock: rows[0][clock] / rows[1][clock] for clock in ("seconds", "CPU seconds")}
    console.print("TRL's time over ours: " + ", ".join(f"{ratio:.2f} in {clock}" for clock, ratio in ratios.items()))
    return {"speed": rows, "ratio": ratios}


class Stopwatch:
    """Wall-clock and CPU seconds of what one side does."""

    def __init__(self):
        self._started: dict[str, np.ndarray] = {}
        self._taken: dict[str, list[np.ndarray]] = defaultdict(list)

    def start(self, part: str) -> None:
        self._started[part] = np.array([time.perf_counter(), time.process_time()])

    def stop(self, part: str) -> None:
        self._taken[part].append(np.array([time.perf_counter(), time.process_time()]) - self._started[part])

    def of(self, part: str, function: Callable) -> Callable:
        """The function, timed."""

        def timed(*arguments, **kwargs):
            self.start(part)
            result = function(*arguments, **kwargs)
            self.stop(part)
            return result

        return timed

    def row(self) -> dict[str, float]:
        rollouts, iteration = (np.array(self._taken[part])[WARM_UP:] for part in ("rollouts", "iteration"))
        seconds, cpu = np.median(iteration, axis=0)
        return {
            "rollouts / s": float(COMPLETIONS / seconds),
            "updates / s": float(1 / seconds),
            "seconds": float(seconds),
            "of them sampling": float(np.median(rollouts[:, 0])),
            "CPU seconds": float(cpu),
        }


def _print(console: Console, title: str, rows: list[dict]) -> None:
    table = Table(title=title)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


PARTS = {"loss": compare_loss, "speed": compare_speed}

if __name__ == "__main__":
    main()
