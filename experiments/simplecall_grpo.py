"""Train a SimpleCall-style restoration planner with GRPO, on the photographs of the packages and the default toolbox.

How to run
----------
    uv run rllib train file experiments/simplecall_grpo.py
    uv run rllib train file experiments/simplecall_grpo.py --set advantage=mar --set rewards=final
    uv run rllib evaluate results/simplecall_grpo

The network, the environment and the closing table are those of ``experiments/simplecall_ppo.py``; there is no value function: each of 32
images per iteration is restored 8 times, and a rollout is judged by the others of its image. By default by the environment's own reward;
``advantage=mar`` and ``advantage=gdpo`` judge by the metrics (``policies/grpo/advantages.py``), and TIR-Agent's ablations are
``mar=false``, ``decouple=false`` and ``dynamic_weights=false``.

Results to expect
-----------------
Not measured with the present reward; ``experiments/simplecall_ppo.py`` has what PPO reaches with the same network.
"""

from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.grpo.config import GRPOConfig
from policies.simplecall.rl_module import SimpleCallRLModule

ITERATIONS = 30
LEARNING_RATE = 1e-3
IMAGES = 200
CACHE_BYTES = 2 << 30
"""See ``experiments/simplecall_ppo.py``."""

stop = {"training_iteration": ITERATIONS}

config = (
    GRPOConfig()
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
    .env_runners(num_env_runners=2, num_cpus_per_env_runner=0.9, num_envs_per_env_runner=64)
    .resources(num_cpus_for_main_process=0.2)
    .learners(num_learners=0, num_cpus_per_learner=0)
    .training(
        group_size=8,
        rounds_per_iteration=2,
        rewards="return",
        advantage="grpo",
        num_epochs=4,
        num_minibatches=4,
        lr=LEARNING_RATE,
        clip_param=0.2,
        entropy_coeff=0.01,
        grad_clip=0.5,
    )
    .rl_module(rl_module_spec=RLModuleSpec(module_class=SimpleCallRLModule, model_config={"encoder": "cnn", "hidden": [256, 256]}))
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)
