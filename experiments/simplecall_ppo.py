"""Train a SimpleCall-style restoration planner with PPO, on the photographs of the packages and the default toolbox.

How to run
----------
    uv run rllib train file experiments/simplecall_ppo.py
    uv run rllib train file experiments/simplecall_ppo.py --set env_config.dataset.photos=/path/to/photos --seed 1
    uv run rllib evaluate results/simplecall_ppo

The five photographs of the packages show how it works. For policies that are worth something give it many photographs: the policy that the
project ships learned from 200, on one core in 17 minutes,

    uv run rllib train file experiments/simplecall_ppo.py --set env_config.dataset.photos=FOLDER --set env_config.dataset.split=all \\
        --set env_config.dataset.images=300 --set num_env_runners=0 --set num_cpus_for_main_process=1 --set num_envs_per_env_runner=32 \\
        --stop training_iteration=45 --set "lr=[[0, 0.001], [23040, 0.0001]]"
    python -m experiments.ship results/simplecall_ppo

Deviations from SimpleCall (arXiv 2512.18599), which has no public code: the reward is the weighted increment of PSNR over
RGB, SSIM and PIQE instead of DeQA-Score, and the frozen encoder is a small network, shipped with the project, that learned on other
photographs to tell degradations and to foresee what each tool of the default toolbox gains (``experiments/pretrain_encoder.py`` makes one
for a toolbox of yours; ``--set model_config.encoder=clip`` takes a CLIP tower). The policy begins with the tools whose foreseen gains are
largest, the critic with the largest of these gains, and both learn from there.
"""

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.simplecall.learner import SimpleCallPPOLearner
from policies.simplecall.rl_module import SimpleCallRLModule

ITERATIONS = 32
BATCH = 512
LEARNING_RATE = 1e-3
IMAGES = 200
"""Degraded images to learn from: met again and again, so that what tools and metrics made of them is in the cache."""
CACHE_BYTES = 2 << 30
"""Of each env runner, for the images that tools made."""

stop = {"training_iteration": ITERATIONS}

config = (
    PPOConfig()
    .environment(
        "ir_env:ir_env/Restoration-v0",
        env_config={
            "dataset": {"photos": "builtin", "split": "train", "crop_size": 256, "combos": "A,B,C", "images": IMAGES},
            "toolbox": "default",
            "metrics": ["psnr", "psnry", "ssim_ycbcr", "piqe"],
            "reward": "delta_iqa",
            "max_steps": 6,
            "cache_bytes": CACHE_BYTES,
        },
    )
    .env_runners(
        # two actors; the main process only learns, while they wait, so it asks for little and all three fit on two cores
        num_env_runners=2,
        num_cpus_per_env_runner=0.9,
        num_envs_per_env_runner=16,
        gym_env_vectorize_mode="vector_entry_point",
        sample_timeout_s=600,
    )
    .resources(num_cpus_for_main_process=0.2)
    .learners(num_learners=0, num_cpus_per_learner=0, learner_class=SimpleCallPPOLearner)
    .training(
        train_batch_size_per_learner=BATCH,
        minibatch_size=128,
        num_epochs=4,
        lr=[[0, LEARNING_RATE], [ITERATIONS * BATCH, LEARNING_RATE / 10]],
        gamma=0.95,
        lambda_=0.9,
        clip_param=0.2,
        entropy_coeff=0.003,
        vf_loss_coeff=0.5,
        grad_clip=0.5,
        use_kl_loss=False,
    )
    .rl_module(rl_module_spec=RLModuleSpec(module_class=SimpleCallRLModule, model_config={"encoder": "cnn", "hidden": [256, 256]}))
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)
