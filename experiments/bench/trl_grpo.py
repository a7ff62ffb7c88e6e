"""Our GRPO beside TRL's GRPOTrainer: whether loss, gradients and advantages are the same, and which is faster.

How to run
----------
    uv run --extra bench python -m experiments.bench.trl_grpo --out results/trl_grpo.json
    uv run --extra bench python -m experiments.bench.trl_grpo --parts loss

Both sides get one untrained nano model (Qwen3-VL's architecture) and the same prompts, each with a 64 x 64 image, on one thread.

* ``loss``: TRL's trainer tokenises the prompts, turns random rewards into advantages, scores the completions that it is handed under its
  reference model, and computes its loss; ours does the same by :mod:`policies.grpo` and :class:`policies.vlm.model.VisionLanguageModel`.
  The old log-probabilities are perturbed so that clipping acts. No formula of TRL's is repeated here.
* ``speed``: whole iterations, in turns: 64 completions of at most 24 tokens in groups of 8, a reward that costs nothing, one update.
  TRL generates with transformers; ours runs through RLlib with a local env runner.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
import warnings
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
from ir_env.spaces import observation_space
from policies.grpo.advantages import AdvantageEstimator, AdvantageOptions
from policies.grpo.loss import LossOptions, grpo_loss, token_weights
from policies.vlm.model import VisionLanguageModel
from policies.vlm.planner import PolicySettings
from policies.vlm.prompts import Messages, Prompter
from tool_actors.errors import IrEnvError
from tool_actors.threads import limit_threads
from tool_actors.toolboxes import load_toolbox

SIDE, GROUP, TOKENS, COMPLETIONS = 64, 8, 24, 64
REWARDS, WEIGHTS = ("psnr", "ssim", "musiq"), (1.0, 0.5, 2.0)
BETA = 0.1


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, with commas between them")
    parser.add_argument("--rounds", type=int, default=9, help="of the speed part: iterations of each side; medians are reported")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts takes {', '.join(PARTS)}, not {options.parts}")
    prepare_ray()
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore")
    try:
        import trl
    except ImportError as error:
        raise SystemExit(f"TRL is not installed ({error}): run with `uv run --extra bench`, or `pip install 'ir-env[bench]'`") from error
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    limit_threads(1)
    console, report = Console(), {"trl": trl.__version__}
    with tempfile.TemporaryDirectory() as folder:
        prompter = Prompter(ActionTable(load_toolbox("default")), compact=True, view_size=SIDE)
        VisionLanguageModel.load("nano", prompter).save(folder)
        PolicySettings(compact=True, view_size=SIDE).save(folder)
        for part in parts:
            report[part] = PARTS[part](Path(folder), prompter, options, console)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return report


def photos(count: int) -> np.ndarray:
    """Noise, uint8 (count, SIDE, SIDE, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


def example(chat: Messages) -> dict[str, Any]:
    """A chat as a row of TRL's datasets."""
    from PIL import Image

    parts = [part for message in chat for part in message["content"]]
    words = {message["role"]: "".join(part.get("text", "") for part in message["content"]) for message in chat}
    [image] = [part["image"] for part in parts if part["type"] == "image"]
    return {"prompt": [{"role": role, "content": text} for role, text in words.items()], "image": Image.fromarray(image)}


def make_trainer(model: Any, processor: Any, rewards: Sequence[Callable], examples: list[dict], batch: int, folder: Path, **settings):
    """TRL's trainer with what both sides share; ``settings`` are TRL's, and of the trainer itself where they are callable or a list."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    rest = {name: settings.pop(name) for name in ("rollout_func", "callbacks") if name in settings}
    config = GRPOConfig(
        output_dir=str(folder / "trl"),
        num_generations=GROUP,
        per_device_train_batch_size=batch,
        max_completion_length=TOKENS,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return GRPOTrainer(model, list(rewards), config, Dataset.from_list(examples), processing_class=processor, **rest)


# -- loss, gradients, advantages ---------------------------------------------------------------------------------------------------


def compare_loss(folder: Path, prompter: Prompter, options: argparse.Namespace, console: Console) -> list[dict]:
    """Both losses of the same completions, and both gradients of all parameters."""
    rng, count = np.random.default_rng(1), 4 * GROUP
    # histories of several lengths, so that prompts are padded
    chats = [prompter.messages(photo, list(range(row))) for row, photo in enumerate(photos(count // GROUP)) for _ in range(GROUP)]
    policy, reference = (load(folder) for _ in range(2))
    perturb(policy)
    words = rng.integers(max(policy.barred_tokens + policy.end_tokens) + 1, len(policy.tokenizer), (count, TOKENS))
    case = {
        "chats": chats,
        "completions": [row[:length].tolist() for row, length in zip(words, [TOKENS, *rng.integers(1, TOKENS + 1, count - 1)])],
        "rewards": rng.random((count, len(REWARDS)), np.float32),
        "noise": torch.from_numpy(rng.normal(0, 0.3, (count, TOKENS))).float(),
    }
    rows = []
    for loss_type in ("grpo", "dr_grpo"):
        for beta in (0.0, BETA):
            mode = "grpo" if beta else "gdpo"
            rows.append(_compare(folder, policy, reference, case, loss_type, beta, mode))
    # where the conventions differ: how far apart the two are then
    rows.append(_compare(folder, policy, reference, case, "grpo", BETA, "grpo", use_bias_correction_kl=True))
    barring = load(folder)
    bars, barring.model = barring.barred_tokens, policy.model
    return rows


def load(folder: Path) -> VisionLanguageModel:
    vlm = VisionLanguageModel.load(folder)
    # TRL draws no image token either, but leaves its probability in the softmax of what it scores
    vlm.barred_tokens = []
    return vlm


PARTS = {"loss": compare_loss}
if __name__ == "__main__":
    main()
