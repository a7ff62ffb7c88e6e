"""Train OPERA's planner as a small vision-language model that writes the answer of table 14, on two CPU cores.

How to run
----------
    python -m experiments.opera.sft --demos results/demos --model results/nano --terse 0.25 --out results/opera_sft   # the form
    uv run rllib train file experiments/opera/planner_nano.py --set model_config.model=results/opera_sft/policy
    uv run rllib evaluate results/opera_nano

The reward has all four parts; the judge of the consistency is that by rules (``env_config.judge``), and ``--set env_config.judge=none``
is the ablation of table 10. ``experiments/opera/planner_qwen.py`` has the paper's model and judge.

Results to expect
-----------------
``experiments/opera/ablations.py`` has a small training with and without the judge. A training of this file's size has not been measured.
"""

from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.grpo.config import GRPOConfig
from policies.opera.vlm_rl_module import VLMPlanRLModule

ITERATIONS = 60

name = "opera_nano"
stop = {"training_iteration": ITERATIONS}

config = (
    GRPOConfig()
    .environment(
        "ir_env:ir_env/RestorationPlan-v0",
        env_config={
            "dataset": {"photos": "builtin", "split": "train", "crop_size": 256, "combos": "opera:1:3:5", "images": 240},
            "toolbox": "default",
            "metrics": ["psnr", "ssim_ycbcr", "piqe"],
            "reward": "opera",
            "judge": "rules",
            "max_plan": 6,
            "cache_bytes": 1_500_000_000,
        },
    )
    .env_runners(num_env_runners=0, num_envs_per_env_runner=64)
    .resources(num_cpus_for_main_process=2)
    .learners(num_learners=0)
    .training(
        group_size=8,
        rewards="return",
        advantage="grpo",
        num_epochs=1,
        num_minibatches=2,
        micro_batch_size=64,
        lr=1e-4,
        clip_param=0.2,
        grad_clip=1.0,
    )
    .rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=VLMPlanRLModule, model_config={"model": "results/opera_sft/policy", "max_tokens": 80, "batch": 64}
        )
    )
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)
