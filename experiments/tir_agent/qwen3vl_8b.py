"""TIR-Agent's second stage at the paper's scale: GRPO with MAR on Qwen3-VL-8B-Instruct, on a Ray cluster of GPUs.

How to run
----------
    python -m experiments.tir_agent.qwen3vl_8b                # the settings beside the paper's, and the memory per GPU; needs nothing
    python -m experiments.tir_agent.rehearsal --out results/rehearsal       # this file's run, with a tiny model on two CPU cores
    uv run ir-env tools fetch agenticir
    python -m experiments.tir_agent.sft --demos results/demos --out results/sft8b --model Qwen/Qwen3-VL-8B-Instruct \\
        --view '{"overview": 0, "glimpses": 0, "whole": 512, "images": "all"}' \\
        --workers 8 --address auto --set fsdp=full_shard --set bf16=true --set gradient_checkpointing=true
    uv run rllib train file experiments/tir_agent/qwen3vl_8b.py --address auto --set model_config.model=results/sft8b/policy \\
        --set env_config.dataset.photos=FOLDER

The policy is shown all images so far, s0 to sk, as in the paper, each whole, its longer side at most 512 pixels: here, in the fine-tuning
above (``--view``, which the policy's folder keeps), and in evaluation. A policy that was fine-tuned with another view is refused.

The code is that of ``experiments/tir_agent/nano.py``; the settings are the paper's, or stand in :data:`DEVIATIONS` with their reason. All
parameters are trained: four GPUs learn, and share weights, gradients and optimiser (FSDP2); four sample, each with the whole model, whose
weights reach them through Ray's object store, once per node; tools and metrics run in the run's own pool on the cluster's other GPUs.
"""

from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.grpo.config import GRPOConfig
from policies.vlm.rl_module import VLMRLModule

IMAGES, ROLLOUTS, SAMPLERS, LEARNERS = 64, 8, 4, 4
MICRO_BATCH, ANSWERS_AT_A_TIME = 8, 32
MAX_STEPS, MAX_TOKENS = 6, 64
VIEW = {"overview": 0, "glimpses": 0, "whole": 512, "images": "all"}
TEXT_TOKENS = 1500
"""Of a prompt: the signatures of the tools are long."""
TRAINING_IMAGES = 4000
GROUPS_PER_SAMPLER = IMAGES // SAMPLERS

name = "tir_agent_qwen3vl_8b"
stop = {"training_iteration": -(-TRAINING_IMAGES // IMAGES)}

pool = {"max_in_flight": 128}

config = (
    GRPOConfig()
    .environment(
        "ir_env:ir_env/Restoration-v0",
        env_config={
            "dataset": {"photos": "builtin", "split": "train", "crop_size": None, "combos": "A,B,C"},
            "toolbox": "agenticir",
            "metrics": ["psnr", "ssim_ycbcr", "lpips", "maniqa", "clipiqa", "musiq"],
            "reward": "delta_psnr",
            "max_steps": MAX_STEPS,
            "view": VIEW,
            "executor": "auto",
        },
    )
    .env_runners(num_env_runners=SAMPLERS, num_gpus_per_env_runner=1, num_envs_per_env_runner=GROUPS_PER_SAMPLER * ROLLOUTS)
    .env_runners(sample_timeout_s=3600)
    .learners(num_learners=LEARNERS, num_gpus_per_learner=1)
    .training(
        group_size=ROLLOUTS,
        rewards="final",
        advantage="mar",
        format_weight=0.1,
        num_epochs=1,
        num_minibatches=1,
        micro_batch_size=MICRO_BATCH,
        lr=5e-6,
        clip_param=0.2,
        grad_clip=1.0,
        fully_shard=True,
        # samplers and learners compute in bfloat16, and not in the same order
        old_logprobs="learner",
    )
    .rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=VLMRLModule,
            model_config={
                "model": "Qwen/Qwen3-VL-8B-Instruct",
                "dtype": "bfloat16",
                "gradient_checkpointing": True,
                "max_tokens": MAX_TOKENS,
                "engine": "continuous",
                "batch": ANSWERS_AT_A_TIME,
            },
        )
    )
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)

PAPER = {
    "model": ("Qwen3-VL-8B-Instruct", lambda: config.rl_module_spec.model_config["model"].partition("/")[2]),
    "images per update": (64, lambda: SAMPLERS * GROUPS_PER_SAMPLER),
    "rollouts per image": (8, lambda: config.group_size),
    "learning rate": (5e-6, lambda: config.lr),
    "GPUs for the model": (8, lambda: SAMPLERS * config.num_gpus_per_env_runner + LEARNERS * config.num_gpus_per_learner),
    "parallel rollouts": (128, lambda: pool["max_in_flight"]),
    "images in the chat": ("all", lambda: config.env_config["view"]["images"]),
    "metrics": (6, lambda: len(config.env_config["metrics"])),
    "training images": (4000, lambda: TRAINING_IMAGES),
    "trained parameters": ("all", lambda: "LoRA" if config.rl_module_spec.model_config.get("lora") else "all"),
}
"""Setting -> what the paper says, and what stands here."""

DEVIATIONS = {
    "parallel rollouts": "the bound is that of tool calls in flight; rollouts that wait for no tool cost no memory of the tools' GPUs",
}


def main() -> None:
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from experiments.tir_agent.gpu_memory import (
        GIB,
        QWEN3_VL_8B,
        Sizes,
        checkpoint_bytes,
        on_meta,
        sampling_bytes,
        training_bytes,
        visual_tokens,
    )
    from ir_env.view import View

    console = Console()
    table = Table("setting", "paper", "here", "why", title="TIR-Agent, second stage")
    for name, (paper, here) in PAPER.items():
        table.add_row(name, str(paper), str(here()), DEVIATIONS.get(name, ""))
    console.print(table)

    whole = Sizes.of(on_meta(QWEN3_VL_8B))
    side = VIEW["whole"]
    # square images are the largest; before the last call there are as many as calls
    tokens = MAX_STEPS * visual_tokens(QWEN3_VL_8B, side, side), TEXT_TOKENS, MAX_TOKENS
    console.print(
        f"{whole.parameters / 1e9:.2f} billion parameters, all trained; at most {tokens[0]} visual tokens and some {tokens[1]} others of "
        "prompt"
    )
    uses = {
        "SFT, all parameters, 8 GPUs (FSDP), 1 sequence each": training_bytes(whole, 1, *tokens, shards=8),
        f"GRPO, each of {LEARNERS} learners, micro-batches of {MICRO_BATCH}": training_bytes(whole, MICRO_BATCH, *tokens, shards=LEARNERS),
        f"GRPO, sampler, {ANSWERS_AT_A_TIME} answers at a time": sampling_bytes(whole, ANSWERS_AT_A_TIME, *tokens),
    }
    memory = Table("GiB per GPU", "in all", "of which", title="memory, estimated")
    for name, parts in uses.items():
        told = ", ".join(f"{part} {size / GIB:.1f}" for part, size in parts.items())
        memory.add_row(name, f"{sum(parts.values()) / GIB:.1f}", told)
    console.print(memory)
    # each observation holds the places of all images, and one more of them is made than calls are asked for
    seen = sum(int(np.prod(space.shape or ())) * np.dtype(space.dtype).itemsize for space in View.of(VIEW).spaces(MAX_STEPS).values())
    rollouts = SAMPLERS * GROUPS_PER_SAMPLER * ROLLOUTS
    console.print(f"host memory for the images of an update's rollouts: at most {rollouts * (MAX_STEPS + 1) * seen / GIB:.0f} GiB")
    console.print(
        f"host memory of the weights on their way to the samplers: {2 * whole.parameters / GIB:.0f} GiB; of the first learner at a "
        f"checkpoint, and of each when resumed: {checkpoint_bytes(whole) / GIB:.0f} GiB"
    )


if __name__ == "__main__":
    main()
