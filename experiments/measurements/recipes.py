"""What the recipes of docs/recipes.md take: memory, time and money of GRPO on Qwen3-VL-8B, estimated, with every assumption in one place.

How to run
----------
    uv run --extra vlm python -m experiments.measurements.recipes
    uv run --extra vlm python -m experiments.measurements.recipes --dollars 1.5 --image-s 0.2

Memory is that of :mod:`experiments.tir_agent.gpu_memory`, waiting for tools that of :mod:`experiments.measurements.pool_simulation`; the
arithmetic of the model is counted, at a share of the GPU's peak that is assumed. Nothing here has been measured on such GPUs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from experiments.measurements.pool_simulation import simulate
from experiments.tir_agent.gpu_memory import GIB, HALF, QWEN3_VL_8B, Sizes, on_meta, sampling_bytes, training_bytes, visual_tokens
from tool_actors.extras import need

IMAGES, STEPS, TEXT, ANSWER = 4000, 6, 1500, 64
"""Training images; turns of a rollout at most; tokens of a prompt beside its images, and of an answer."""
LORA = {"r": 64, "lora_alpha": 128}
DISPATCH_S = 0.00023
"""Of a dispatcher per request, see README, Results."""


@dataclass(frozen=True)
class Machine:
    """Of an H100, and what it costs."""

    flops: float = 990e12
    """Peak in bfloat16, per second."""
    share: float = 0.35
    """Of the peak that training and the reading of prompts reach."""
    bandwidth: float = 3.35e12 * 0.6
    """Bytes per second at which weights are read while tokens are written."""
    dollars: float = 2.5
    """Of a GPU for an hour."""


@dataclass(frozen=True)
class Recipe:
    """One row."""

    name: str
    samplers: int
    learners: int
    tools: int
    """GPUs that hold tools; 0: they share the model's."""
    groups: int
    """Images of an update, of which each has :attr:`rollouts` rollouts."""
    rollouts: int = 8
    answers: int = 32
    """Written at a time by a sampler."""
    rows: int = 1
    """Sequences in memory at a time of a learner."""
    lora: bool = False
    apart: bool = False
    """Whether learners that share the weights have GPUs of their own, as those of ``experiments/tir_agent/qwen3vl_8b.py`` do."""

    @property
    def gpus(self) -> int:
        """Learners that share the weights share GPUs with samplers; so does the learner of one GPU."""
        shared = not self.apart and (not self.lora or self.samplers == 1)
        return self.tools + (max(self.samplers, self.learners) if shared else self.samplers + self.learners)


RECIPES = (
    Recipe("one GPU", 1, 1, 0, groups=8, answers=8, lora=True),
    Recipe("eight GPUs, adapter", 7, 1, 0, groups=63, rows=8, lora=True),
    Recipe("eight GPUs, all parameters, four learn", 4, 4, 0, groups=64, rows=8, apart=True),
    Recipe("eight GPUs, all parameters", 8, 8, 0, groups=64),
    Recipe("eight GPUs and a pool of 32", 8, 8, 32, groups=64),
)


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dollars", type=float, default=Machine.dollars, help="of a GPU for an hour")
    parser.add_argument("--share", type=float, default=Machine.share, help="of the peak that training reaches")
    parser.add_argument("--image-s", type=float, default=0.06, help="seconds of a tool for an image, on a GPU")
    options = parser.parse_args(arguments)
    need("transformers")
    machine = Machine(share=options.share, dollars=options.dollars)
    rows = [estimate(recipe, machine, options.image_s) for recipe in RECIPES]
    table = Table(
        "recipe", "GPUs", "learner, GiB", "sampler, GiB", "sample, s", "tools, s", "learn, s", "update, s", "updates", "hours", "$"
    )
    for row in rows:
        memory = [f"{row[name]:.0f}" for name in ("learner_gib", "sampler_gib")]
        seconds = [f"{row[name]:.0f}" for name in ("sample_s", "tools_s", "learn_s", "update_s")]
        table.add_row(
            row["recipe"], str(row["gpus"]), *memory, *seconds, str(row["updates"]), f"{row['hours']:.1f}", f"{row['dollars']:.0f}"
        )
    Console().print(table)
    return rows


def estimate(recipe: Recipe, machine: Machine, image_s: float) -> dict:
    """Memory per GPU in GiB, seconds of an update and of its parts, and what a pass over all images takes.

    Sampling, tools and learning follow one another, as they do in GRPO here and in verl; where learners and samplers share GPUs, the
    weights of the one are put aside while the other works.
    """
    sizes = Sizes.of(on_meta(QWEN3_VL_8B, LORA if recipe.lora else None))
    visual = STEPS * visual_tokens(QWEN3_VL_8B, 512, 512)
    tokens = visual, TEXT, ANSWER * STEPS
    shards = 1 if recipe.lora else recipe.learners
    rollouts = recipe.groups * recipe.rollouts
    length = sum(tokens)
    # forward twice, since activations are recomputed, and backward; of an adapter the frozen weights have no gradient of their own
    training = rollouts * length * sizes.parameters * (6 if recipe.lora else 8) / (machine.flops * machine.share * recipe.learners)
    # the prompt grows by a turn each time, and its beginning is kept
    reading = rollouts * length * sizes.parameters * 2 / (machine.flops * machine.share * recipe.samplers)
    rounds = -(-rollouts // (recipe.samplers * recipe.answers)) * STEPS * ANSWER
    writing = rounds * sizes.parameters * HALF / machine.bandwidth
    instances = recipe.tools or max(recipe.samplers, recipe.learners)
    if instances > 1:
        tools = rollouts * STEPS / simulate(instances, rollouts, steps=STEPS, overhead_s=DISPATCH_S, image_s=image_s).images_per_s
    else:
        tools = rollouts * STEPS * (image_s + 0.02 / 8)
    gpus = recipe.gpus
    update = training + reading + writing + tools
    updates = -(-IMAGES // recipe.groups)
    return {
        "recipe": recipe.name,
        "gpus": gpus,
        "learner_gib": sum(training_bytes(sizes, recipe.rows, *tokens, shards=shards).values()) / GIB,
        "sampler_gib": sum(sampling_bytes(sizes, recipe.answers, *tokens).values()) / GIB,
        "sample_s": reading + writing,
        "tools_s": tools,
        "learn_s": training,
        "update_s": update,
        "updates": updates,
        "hours": update * updates / 3600,
        "dollars": update * updates / 3600 * gpus * machine.dollars,
    }


if __name__ == "__main__":
    main()
