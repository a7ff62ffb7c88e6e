"""TIR-Agent, first stage: a vision-language model learns to call restoration tools from demonstrations, perturbed for exploration.

How to run
----------
    python -m experiments.tir_agent.demos --photos FOLDER --out results/demos
    python -m experiments.tir_agent.sft --demos results/demos --out results/sft                             # nano, on two CPU cores
    python -m experiments.tir_agent.sft --demos results/demos --out results/sft8b --model Qwen/Qwen3-VL-8B-Instruct
    python -m experiments.tir_agent.sft --demos results/demos --out results/sft8b --model FOLDER --workers 8 --set fsdp=full_shard
    python -m experiments.tir_agent.sft --demos results/demos --out results/lora --model FOLDER --lora r=16,lora_alpha=32
    python -m experiments.tir_agent.sft --demos results/demos --out results/all --model FOLDER \\
        --view '{"overview": 0, "glimpses": 0, "whole": 512, "images": "all"}'

The demonstrations of the training photographs are perturbed (EDP, ``policies/vlm/edp.py``) and run again, so that every step has the
pictures that the model will see there: those of ``--view``, which is kept with the policy. ``nano`` is shown overview, glimpses and
spectrum; a published model the whole current image through its own processor, or with ``"images": "all"``, as in the paper, the degraded
one and that after each call. Each step is one example; the loss is that of the answer alone. The settings of a published model are the
paper's (3 epochs, learning rate 1e-5 with a cosine schedule, one example at a time, accumulated over 4); those of ``nano``, which starts
from nothing, are its own. ``--set`` changes any field of transformers' ``TrainingArguments``. ``--workers 8`` shares the examples among as
many workers of Ray Train, one GPU each where there are some (``--address`` for a cluster whose machines share the folders); with
``--set fsdp=full_shard`` they share the weights, too.

``--out`` then holds the policy (``policy/``; ``VLMPlanner.load`` reads it), ``edp.json`` (the distribution of tools before and after), and
``report.json``: on held-out photographs the share of well-formed answers, the gain beside the demonstrator's, and the diversity of 8
rollouts. An interrupted run goes on from its last checkpoint.

Results to expect
-----------------
Those of ``experiments/tir_agent/__main__.py``, of which this is a stage; README has the fine-tuned policy's row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.resumable import keep_settings, make_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from policies.vlm.edp import Demonstration
    from policies.vlm.model import VisionLanguageModel
    from policies.vlm.planner import PolicySettings
    from policies.vlm.prompts import Prompter

CHUNK = 64
RECIPES = {
    "paper": {"epochs": 3.0, "lr": 1e-5, "batch": 1, "accumulation": 4, "warmup": 0.0},
    "nano": {"epochs": 2.0, "lr": 1e-3, "batch": 32, "accumulation": 1, "warmup": 0.05},
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = build_parser().parse_args(arguments)

    from datasets import disable_progress_bars

    from experiments.tir_agent.demos import load_demonstrations
    from experiments.tir_agent.held_out import evaluate, evaluate_demonstrator, rollout_diversity
    from ir_env.actions import ActionTable
    from ir_env.evaluation import save_json
    from ir_env.view import View
    from policies.vlm.model import VisionLanguageModel
    from policies.vlm.planner import PolicySettings, VLMPlanner
    from tool_actors.threads import limit_threads
    from tool_actors.toolboxes import load_toolbox

    disable_progress_bars()
    settings = PolicySettings.of(options.model, View.of(options.view) if options.view else None)
    untaught = settings.compact and settings.toolbox is None
    for name, value in RECIPES["nano" if untaught else "paper"].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    demos, made_with = load_demonstrations(options.demos)
    after = ("out", "processes", "heldout", "diversity_images", "rollouts", "save_steps", "address")
    keep_settings(options.out, {key: value for key, value in vars(options).items() if key not in after})
    toolbox = load_toolbox(made_with["toolbox"])
    policy = replace(settings, toolbox=toolbox.references).after(made_with["combos"])
    prompter = policy.prompter(ActionTable(toolbox))
    options.out = options.out.resolve()

    demonstrations = perturbed(demos["train"], prompter, options)
    jobs = [
        {"demos": str(options.demos), "policy": policy, "demonstrations": demonstrations[at : at + CHUNK]}
        for at in range(0, len(demonstrations), CHUNK)
    ]
    examples = make_rows(replay, jobs, example_features(), options.out / "examples", options.processes, "running trajectories")
    print(f"{len(demonstrations)} trajectories, {len(examples)} examples", flush=True)
    start = time.monotonic()
    if options.workers:
        train_on_workers(options, policy)
    else:
        limit_threads(multiprocessing.cpu_count() if options.threads is None else options.threads)
        train(options, policy)
    seconds = time.monotonic() - start

    vlm = VisionLanguageModel.load(options.out / "policy")
    rows = demos["heldout"].select(range(min(options.heldout, len(demos["heldout"]))))
    row = evaluate("SFT", VLMPlanner(vlm, policy), rows, made_with)
    report = {"examples": len(examples), "seconds": round(seconds), **row.as_dict()}
    report["demonstrator"] = evaluate_demonstrator("demonstrator", rows, made_with).as_dict()
    if options.diversity_images:
        sampled = VLMPlanner(vlm, policy, temperature=1.0, seed=options.seed)
        few = rows.select(range(min(options.diversity_images, len(rows))))
        report["diversity"] = rollout_diversity(sampled, few, made_with, options.rollouts)
    save_json(report, options.out / "report.json")
    teacher = report["demonstrator"]
    print(
        f"{options.out / 'policy'}: {report['well_formed']:.1%} well-formed answers; gain {report['gain']:+.3f} per held-out image with "
        f"{report['tools']:.2f} tools, the demonstrator's {teacher['gain']:+.3f} with {teacher['tools']:.2f} tools of "
        f"{teacher['executions']:.2f} run"
    )
    return report


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demos", type=Path, required=True, help="folder that experiments.tir_agent.demos wrote")
    parser.add_argument("--out", type=Path, default=Path("results/tir_agent_sft"))
    parser.add_argument("--model", default="nano", help="nano, or a vision-language model by name or folder")
    parser.add_argument("--view", type=json.loads, help="what the model is shown, see ir_env/view.py; by default what it was trained with")
    parser.add_argument("--lora", help="train an adapter only, e.g. r=16,lora_alpha=32")
    parser.add_argument("--alpha-order", type=float, default=0.3, help="EDP: share of trajectories that are added in another order")
    parser.add_argument("--alpha-tool", type=float, default=0.4, help="EDP: weight of uniform tools")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--steps", type=int, default=-1, help="stop after so many updates instead")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--batch", type=int, help="examples at a time, per device")
    parser.add_argument("--accumulation", type=int, help="batches per update")
    parser.add_argument("--warmup", type=float, help="share of the updates")
    parser.add_argument("--save-steps", type=int, default=200, help="updates between checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field of TrainingArguments, e.g. bf16=true")
    parser.add_argument("--heldout", type=int, default=128, help="held-out images of the report")
    parser.add_argument("--diversity-images", type=int, default=24, help="held-out images that are restored --rollouts times")
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="of this process; by default one per core")
    parser.add_argument("--workers", type=int, default=0, help="train on so many workers of Ray Train")
    parser.add_argument("--address", default="local", help="of a Ray cluster, with --workers")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    return parser


# -- examples ----------------------------------------------------------------------------------------------------------------------


def perturbed(rows: Dataset, prompter: Prompter, options: argparse.Namespace) -> list[Demonstration]:
    """The demonstrations after EDP; notes the distribution of tools before and after in ``edp.json``."""
    from policies.vlm.edp import perturb, tool_distribution
    from policies.vlm.exploration import tool_entropy

    before = [
        (row, tuple(zip(tasks, tools, strict=True))) for row, (tasks, tools) in enumerate(zip(rows["tasks"], rows["tools"], strict=True))
    ]
    after = perturb(before, prompter.tools_of, options.alpha_order, options.alpha_tool, options.seed)
    told = {}
    for name, demonstrations in (("before", before), ("after", after)):
        trajectories = [trajectory for _, trajectory in demonstrations]
        shares = tool_distribution(trajectories, prompter.tools_of)
        told[name] = {"trajectories": len(trajectories), "tools": shares, "entropy": tool_entropy(trajectories)}
    (options.out / "edp.json").write_text(json.dumps(told, indent=2) + "\n")
    return after


def example_features():
    """One example: the pictures that the model is shown, the tools so far, and the text of its answer."""
    from datasets import Features, Image, List, Value

    return Features({"pictures": List(Image()), "history": List(Value("string")), "text": Value("string")})


def replay(job: dict[str, Any]) -> list[dict]:
    """Run the trajectories of a piece on their images; the examples of each, in order. A trajectory ends where a tool fails."""
    import numpy as np
    from PIL import Image

    from experiments.tir_agent.demos import load_demonstrations
    from ir_env.actions import ActionTable
    from tool_actors.executor import ImageState, LocalExecutor
    from tool_actors.plans import run_plans
    from tool_actors.toolboxes import load_toolbox

    rows, policy = load_demonstrations(job["demos"])[0]["train"], job["policy"]
    toolbox = load_toolbox(policy.toolbox)
    executor, prompter = LocalExecutor(toolbox), policy.prompter(ActionTable(toolbox))
    plans = [[tool for _, tool in trajectory] for _, trajectory in job["demonstrations"]]
    starts = [ImageState.from_pixels(np.asarray(rows[row]["degraded"])) for row, _ in job["demonstrations"]]
    ran = run_plans(executor, list(zip(starts, plans, strict=True)))
    examples = []
    for start, plan, results in zip(starts, plans, ran, strict=True):
        images = [state.as_uint8() for state in (start, *(each.state for each in results if each.state is not None))]
        for step in range(len(images)):
            pictures = prompter.pictures(policy.view.look(images[: step + 1]))
            text = prompter.answer(prompter.actions.index([*plan, "stop"][step]))
            examples.append({"pictures": list(map(Image.fromarray, pictures)), "history": plan[:step], "text": text})
    return examples


class Collator:
    """Examples as a batch: prompts padded on the left, answers on the right, labels on the answers alone."""

    def __init__(self, vlm: VisionLanguageModel, prompter: Prompter):
        self.vlm, self.prompter = vlm, prompter

    def __call__(self, examples: Sequence[dict]) -> dict[str, Any]:
        import numpy as np
        import torch

        index = self.prompter.actions.index
        chats = [self.prompter.messages(list(map(np.asarray, each["pictures"])), list(map(index, each["history"]))) for each in examples]
        prompts = self.vlm.encode(chats, device="cpu")
        tokens, mask = self.vlm.encode_answers([each["text"] for each in examples], device="cpu")
        labels = torch.cat([torch.full_like(prompts["input_ids"], -100), tokens.masked_fill(~mask, -100)], dim=1)
        return {**self.vlm.join(prompts, tokens, mask), "labels": labels}


# -- training ----------------------------------------------------------------------------------------------------------------------


def train_on_workers(options: argparse.Namespace, policy: PolicySettings) -> None:
    """:func:`train` on workers of Ray Train, which give transformers' Trainer its place among the others."""
    from experiments.cli.common import prepare_ray

    prepare_ray()
    import ray
    import torch
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address=options.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        TorchTrainer(
            lambda settings: train(argparse.Namespace(**settings["options"]), settings["policy"]),
            train_loop_config={"options": vars(options), "policy": policy},
            scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(name="workers", storage_path=str(options.out)),
        ).fit()
    finally:
        ray.shutdown()


def train(options: argparse.Namespace, policy: PolicySettings) -> None:
    """Fine-tune on the examples that are there, going on from the last checkpoint if there is one, and write the policy."""
    import torch
    from transformers import PrinterCallback, Trainer, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    from experiments.resumable import load_rows
    from ir_env.actions import ActionTable
    from policies.vlm.model import VisionLanguageModel
    from tool_actors.errors import IrEnvError
    from tool_actors.toolboxes import load_toolbox

    prompter = policy.prompter(ActionTable(load_toolbox(policy.toolbox or "default")))
    lora = parse_lora(options.lora) if options.lora else None
    vlm = VisionLanguageModel.load(options.model, prompter, lora, seed=options.seed)
    folder = options.out / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(options.out / "tensorboard")
    fields: dict[str, Any] = {
        "num_train_epochs": options.epochs,
        "max_steps": options.steps,
        "learning_rate": options.lr,
        "lr_scheduler_type": "cosine",
        "warmup_steps": options.warmup,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": options.accumulation,
        "save_steps": options.save_steps,
        "save_total_limit": 2,
        "logging_steps": 20,
        "report_to": ["tensorboard"],
        "seed": options.seed,
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
    }
    try:
        settings = TrainingArguments(output_dir=str(folder), **{**fields, **parse_fields(options.set)})
    except (TypeError, ValueError) as error:
        raise IrEnvError(f"--set {' '.join(options.set)}: {error}") from error
    examples = load_rows(options.out / "examples")
    trainer = Trainer(vlm.model, settings, Collator(vlm, prompter), examples, callbacks=[_progress()])
    if trainer.is_world_process_zero():
        print(vlm.describe(), flush=True)
    trainer.remove_callback(PrinterCallback)
    last = get_last_checkpoint(str(folder))
    if last:
        print(f"going on from {last}", flush=True)
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(options.out / "policy"))  # gathers what the workers share
    if trainer.is_world_process_zero():
        vlm.processor.save_pretrained(options.out / "policy")
        policy.save(options.out / "policy")


def _progress():
    """A bar with the loss and the time left; a line of each where the output is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    from transformers import TrainerCallback

    class ShowProgress(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            console = Console()
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self.task = self.bar.add_task("training", total=state.max_steps, completed=state.global_step)
            self.bar.start()

        def on_step_end(self, args, state, control, **kwargs):
            self.bar.update(self.task, completed=state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                text = f"step {state.global_step}/{state.max_steps}  loss {float(logs['loss']):.4f}"
                self.bar.update(self.task, description=text)
                if state.global_step % (5 * args.logging_steps) == 0:
                    self.bar.console.print(text, highlight=False)

        def on_train_end(self, args, state, control, **kwargs):
            self.bar.stop()

    return ShowProgress()


def parse_fields(texts: Sequence[str]) -> dict[str, Any]:
    """``["bf16=true"]`` -> ``{"bf16": True}``; values are YAML."""
    import yaml

    from tool_actors.errors import IrEnvError

    fields = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise IrEnvError(f"{text!r}: write FIELD=VALUE")
        fields[name.strip()] = yaml.safe_load(value)
    return fields


def parse_lora(text: str) -> dict[str, Any]:
    """``"r=16,lora_alpha=32"`` -> the settings of peft's ``LoraConfig``."""
    return parse_fields(text.split(","))


if __name__ == "__main__":
    main()
