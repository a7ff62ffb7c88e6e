"""TRL's GRPOTrainer on our episodes: the nano policy that comes with the project goes on learning, on a CPU.

How to run
----------
    uv run --extra trl python -m experiments.engines.trl_nano --steps 4 --photos FOLDER

Each rollout is a chat: the model calls a tool, sees the image that it made, and calls the next. The reward is the environment's own, the
gain in PSNR. For a Qwen3-VL of the hub leave out :data:`TEMPLATE` and :data:`PARSED`, which TRL has for it; the rest is the same.

Results to expect
-----------------
This shows that engine and episodes fit, and teaches nothing: the nano policy has learned one call per prompt, not chats that go on, and
four updates of 16 rollouts are few. Each rollout calls 1.8 tools on average, and none of the calls fails.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.cli.common import guarded
from policies.vlm.shipped import SHIPPED
from tool_actors.extras import need
from tool_actors.threads import limit_threads

GROUP, GROUPS = 4, 4
TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + ('user' if message.role == 'tool' else message.role) + '\\n' }}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}{%- for part in message.content or [] -%}
{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>\\n' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""The nano policy's chat, with calls and what tools answer; it has learned its tools, so none are described."""
PARSED = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How transformers reads the calls off an answer, in Qwen's form."""


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="updates")
    parser.add_argument("--photos", default="builtin", help="folder of photographs (default: those that come with the packages)")
    parser.add_argument("--model", default=str(SHIPPED), help="folder of a nano policy")
    parser.add_argument("--out", type=Path, help="write what was logged here, as JSON")
    options = parser.parse_args(arguments)
    need("trl", "transformers", "datasets")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.simplefilter("ignore")
    limit_threads(1)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(options.model, options.photos, options.steps, folder)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
    kept = ("reward", "reward_std", "tools/call_frequency", "tools/failure_frequency", "completions/mean_length", "grad_norm", "loss")
    log = [{name: entry[name] for name in kept if name in entry} for entry in trainer.state.log_history if "reward" in entry]
    for step, entry in enumerate(log, start=1):
        console.print(f"update {step}: {', '.join(f'{name} {value:.3g}' for name, value in entry.items())}", soft_wrap=True)
    rollouts = options.steps * GROUP * GROUPS
    console.print(f"{rollouts} rollouts and {options.steps} updates in {seconds:.0f} s, one thread")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(log, indent=2) + "\n")
    return log


def make_trainer(model: str, photos: str, steps: int, folder: str) -> Any:
    """TRL's trainer with a nano policy and an environment for each rollout."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from policies.integrations.chat_episode import ChatEpisode
    from policies.integrations.trl_environment import make_environment, rows
    from policies.vlm.model import VisionLanguageModel

    process = {
        "dataset": {"photos": photos, "combos": "A"},
        "metrics": ["psnr", "ssim_ycbcr"],
        "reward": "delta_psnr",
        "max_steps": 3,
    }
    vlm = VisionLanguageModel.load(model)
    vlm.processor.chat_template = vlm.tokenizer.chat_template = TEMPLATE
    vlm.tokenizer.response_template = PARSED
    config = GRPOConfig(
        output_dir=folder,
        max_steps=steps,
        num_generations=GROUP,
        per_device_train_batch_size=GROUP * GROUPS,
        max_completion_length=384,
        max_tool_calling_iterations=process["max_steps"],
        generation_kwargs={"suppress_tokens": vlm.barred_tokens},
        learning_rate=1e-5,
        loss_type="grpo",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    prompter = ChatEpisode.make(process, model).prompter
    data = Dataset.from_list(rows(steps * GROUPS, prompter))
    return GRPOTrainer(
        vlm.model, args=config, train_dataset=data, processing_class=vlm.processor, environment_factory=make_environment(process, model)
    )


if __name__ == "__main__":
    raise SystemExit(guarded(lambda: 0 if main() else 1))
