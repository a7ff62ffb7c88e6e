"""TIR-Agent's second stage at nano scale: GRPO with the multi-dimensional adaptive reward, on two CPU cores.

How to run
----------
    python -m experiments.tir_agent --photos FOLDER --out results/tir_agent     # all stages, this one included
    uv run rllib train file experiments/tir_agent/nano.py --set model_config.model=results/tir_agent/sft/policy
    uv run rllib evaluate results/tir_agent_nano

``model`` is the folder that supervised fine-tuning left (``experiments/tir_agent/sft.py``). The settings are those of
``experiments/tir_agent/qwen3vl_8b.py`` but for the sizes, and a learning rate that suits a small model trained from nothing. TIR-Agent's
ablations are ``--set mar=false``, ``--set decouple=false`` and ``--set dynamic_weights=false``.

Three metrics are the reward, two with the clean image and one without. MAR weighs them nearly alike, and the one without is won most
easily: PIQE has half a weight, with which no metric pays for another. Rewards are divided by their deviation over the batch, since by its
group's own a group of rollouts that hardly differ is as loud as any. 16 images make an update's batch, for with 8 the larger learning rate
that lets the policy move at all led it astray. Results to expect: those of ``experiments/tir_agent/__main__.py``; an iteration takes some
25 seconds on one core.
"""

from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.grpo.config import GRPOConfig
from policies.vlm.rl_module import VLMRLModule

ITERATIONS = 60

name = "tir_agent_nano"
stop = {"training_iteration": ITERATIONS}

config = (
    GRPOConfig()
    .environment(
        "ir_env:ir_env/Restoration-v0",
        env_config={
            "dataset": {"photos": "builtin", "split": "train", "crop_size": 256, "combos": "random:1:2:3"},
            "toolbox": "default",
            "metrics": ["psnr", "ssim_ycbcr", "piqe"],
            "reward": "delta_iqa",
            "max_steps": 6,
        },
    )
    # 16 images, each restored 8 times; sampling and learning take turns on the same cores
    .env_runners(num_env_runners=0, num_envs_per_env_runner=128)
    .resources(num_cpus_for_main_process=2)
    .learners(num_learners=0)
    .training(
        group_size=8,
        rewards="final",
        advantage="mar",
        scale_rewards="batch",
        metric_weights={"piqe": 0.5},
        format_weight=0.5,
        economy_weight=0.05,
        num_epochs=1,
        num_minibatches=2,
        micro_batch_size=64,
        # by environment steps, of which an iteration has some 350
        lr=[[0, 3e-5], [2000, 3e-4], [14_000, 3e-4], [24_000, 1e-4]],
        clip_param=0.2,
        grad_clip=1.0,
    )
    .rl_module(
        rl_module_spec=RLModuleSpec(
            module_class=VLMRLModule, model_config={"model": "results/tir_agent/sft/policy", "max_tokens": 24, "batch": 64}
        )
    )
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)
