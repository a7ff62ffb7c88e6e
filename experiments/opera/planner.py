"""Train OPERA's planner at the embedded scale: a small autoregressive network writes the whole plan, and GRPO judges it by the result.

How to run
----------
    python -m experiments.opera.clone --photos FOLDER --out results/opera_start.safetensors      # optional: a start
    uv run rllib train file experiments/opera/planner.py --set env_config.dataset.photos=FOLDER --set env_config.dataset.split=all \\
        --set model_config.start=results/opera_start.safetensors
    uv run rllib evaluate results/opera_planner
    python -m experiments.opera.table --photos OTHER --out results/opera_table --row planning=results/opera_planner \
        --row before=before:results/opera_planner --row MAIR=mair --oracles --pair planning,before --pair planning,MAIR

The paper's settings are kept: 32 images an iteration, each planned 8 times, the product Rq · Rd · Rf · Rc as the reward, the 145 ordered
combinations of up to three degradations in the ratio 1 : 3 : 5, no divergence from the start, clipping at 0.2. The planner has no
language, so that Rf is 1 unless its plan is empty, and Rc is 1; ``experiments/opera/planner_nano.py`` writes text.

Deviations from the paper: the network instead of a 7B vision-language model; the learning rate; four epochs a batch; the metrics that
need no download in the place of LPIPS, CLIP-IQA and MUSIQ; a fixed number of images, so that tools run once for each beginning of a plan;
the start, which imitates a policy that looks again after every tool.

Results to expect
-----------------
README has the table of three seeds, from that start: +1.63 before, +1.67 after, on 160 whole test photographs, of which little is told from
chance; and by the reward of that table, under its combinations, ``--set env_config.reward=delta_iqa --set
env_config.dataset.combos=A,B,C --stop training_iteration=26 --set "lr=[[0, 0.0005], [6656, 0.00005]]"``, +1.75, which is (+0.12, +0.05 to
+0.18). From a poorer start (+1.23) GRPO added +0.10, from none (45 iterations at twice the rate) it took the planner from +0.38 to +1.08.
Some 10 minutes per seed on one core.
"""

from ray.rllib.core.rl_module import RLModuleSpec

from experiments.training.callbacks import RestorationCallbacks
from policies.grpo.config import GRPOConfig
from policies.opera.rl_module import PlanRLModule

ITERATIONS = 35
ROLLOUTS = 256
IMAGES = 160
CACHE_BYTES = 2 << 30
"""See ``experiments/simplecall_ppo.py``."""
LEARNING_RATE = 5e-4

name = "opera_planner"
stop = {"training_iteration": ITERATIONS}

config = (
    GRPOConfig()
    .environment(
        "ir_env:ir_env/RestorationPlan-v0",
        env_config={
            "dataset": {"photos": "builtin", "split": "train", "crop_size": 256, "combos": "opera:1:3:5", "images": IMAGES},
            "toolbox": "default",
            "metrics": ["psnr", "psnry", "ssim_ycbcr", "piqe"],
            "reward": "opera",
            "max_plan": 6,
            "cache_bytes": CACHE_BYTES,
        },
    )
    .env_runners(num_env_runners=0, num_envs_per_env_runner=128)
    .resources(num_cpus_for_main_process=2)
    .learners(num_learners=0)
    .training(
        group_size=8,
        rounds_per_iteration=2,
        rewards="return",
        advantage="grpo",
        num_epochs=4,
        num_minibatches=4,
        lr=[[0, LEARNING_RATE], [ITERATIONS * ROLLOUTS, LEARNING_RATE / 10]],
        clip_param=0.2,
        entropy_coeff=0.003,
        grad_clip=0.5,
    )
    .rl_module(rl_module_spec=RLModuleSpec(module_class=PlanRLModule, model_config={"encoder": "cnn", "hidden": 256}))
    .callbacks(RestorationCallbacks)
    .debugging(seed=0)
)
