"""OPERA's planning optimisation at the paper's scale: GRPO on VisualQuality-R1 (Qwen2.5-VL-7B), on a Ray cluster of GPUs.

How to run
----------
    python -m experiments.opera.planner_qwen                    # the settings beside the paper's; needs nothing
    uv run ir-env tools fetch opera
    uv run rllib train file experiments/opera/planner_qwen.py --address auto --set env_config.dataset.photos=FOLDER

The code is that of ``experiments/opera/planner_nano.py``. The judge is a local language model (``env_config.judge_options``), or with
``--set env_config.judge=policies.opera.judges:endpoint_judge`` one behind an OpenAI-compatible endpoint.
"""

from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.grpo.config import GRPOConfig
from policies.opera.vlm import PLAN_TOKENS
from policies.opera.vlm_rl_module import VLMPlanRLModule

BATCH, GROUP, SAMPLERS = 32, 8, 4
EPOCHS, TRAINING_IMAGES = 15, 16_000
LORA = {"r": 64, "lora_alpha": 128}

name = "opera_qwen"
stop = {"training_iteration": EPOCHS * TRAINING_IMAGES // BATCH}

pool = {"max_in_flight": 128}

config = (
    GRPOConfig()
    .environment(
        "ir_env:ir_env/RestorationPlan-v0",
        env_config={
            "dataset": {"photos": "builtin", "split": "train", "crop_size": None, "combos": "opera:1:3:5", "images": TRAINING_IMAGES},
            "toolbox": "opera",
            "metrics": ["psnry", "ssim_ycbcr", "lpips", "clipiqa", "musiq"],
            "reward": "opera",
            "judge": "policies.opera.judges:local_judge",
            "judge_options": {"model": "FreedomIntelligence/openPangu-Embedded-7B", "max_tokens": 2000, "device": "cuda"},
            "max_plan": 6,
            "view": {"overview": 0, "glimpses": 0, "whole": 1024},
            "executor": "auto",
        },
    )
    .env_runners(num_env_runners=SAMPLERS, num_gpus_per_env_runner=1, num_envs_per_env_runner=BATCH * GROUP // SAMPLERS)
    .env_runners(sample_timeout_s=3600)
    .learners(num_learners=1, num_gpus_per_learner=1)
    .training(
        group_size=GROUP,
        rewards="return",
        advantage="grpo",
        num_epochs=1,
        num_minibatches=1,
        micro_batch_size=4,
        lr=1e-6,
        clip_param=0.2,
        kl_coeff=0.0,
        entropy_coeff=0.0,
        grad_clip=1.0,
    )
    .rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=VLMPlanRLModule,
            model_config={
                "model": "TianheWu/VisualQuality-R1-7B",
                "lora": LORA,
                "dtype": "bfloat16",
                "gradient_checkpointing": True,
                "max_tokens": PLAN_TOKENS,
                "batch": 32,
            },
        )
    )
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)

PAPER = {
    "model": ("VisualQuality-R1-7B", lambda: config.rl_module_spec.model_config["model"].partition("/")[2]),
    "images per update": (32, lambda: config.num_env_runners * config.num_envs_per_env_runner // config.group_size),
    "rollouts per image": (8, lambda: config.group_size),
    "learning rate": (1e-6, lambda: config.lr),
    "longest answer (tokens)": (800, lambda: config.rl_module_spec.model_config["max_tokens"]),
    "epochs": (15, lambda: EPOCHS),
    "training images": (16_000, lambda: TRAINING_IMAGES),
    "metrics": (5, lambda: len(config.env_config["metrics"])),
    "judge": ("openPangu-Embedded-7B", lambda: config.env_config["judge_options"]["model"].partition("/")[2]),
    "trained parameters": ("all", lambda: f"LoRA, rank {LORA['r']}"),
}
"""Setting -> what the paper, or its released code, says, and what stands here."""


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("setting", "paper", "here", title="OPERA, planning optimisation")
    for name, (paper, here) in PAPER.items():
        table.add_row(name, str(paper), str(here()))
    Console().print(table)


if __name__ == "__main__":
    main()
