#!/usr/bin/env bash
# TIR-Agent's second stage in verl: GRPO with MAR on Qwen3-VL-8B-Instruct, all parameters, with FSDP2 and vLLM on 8 GPUs.
#
# How to run: in verl's environment, where `pip install ir-env[metrics]` has been called too, on a node with 8 GPUs, beside one or more nodes
# that hold the tools (docs/verl.md):
#
#     ray start --head                                            # and `ray start --address=HEAD:6379` on the nodes of the tools
#     ir-env pool start --name tools --toolbox agenticir          # on the cluster; see `ir-env pool start --help` for placements
#     MODEL=results/sft8b/policy IR_ENV_PHOTOS=FOLDER bash experiments/engines/verl_qwen3vl_8b.sh
#
# The paper's numbers: 64 images, 8 rollouts of each, learning rate 5e-6, 4,000 images, 8 GPUs for the model; tool calls in flight are bounded
# by the pool (128). Clip, length and parallelism are ours: the paper gives none.
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${MODEL:=Qwen/Qwen3-VL-8B-Instruct}" "${IR_ENV_PHOTOS:?a folder of photographs}" "${OUT:=results/verl_qwen3vl_8b}" "${GPUS:=8}"
export IR_ENV_PHOTOS VERL_USE_EXTERNAL_MODULES=policies.integrations.verl_mar
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

[ -f "$OUT/train.parquet" ] || python -m policies.integrations.verl_rows --count 4000 --out "$OUT/train.parquet"
[ -f "$OUT/heldout.parquet" ] || python -m policies.integrations.verl_rows --count 128 --first 1000000 --out "$OUT/heldout.parquet"

# the trainer of this name, since main_ppo_sync of verl 0.8 hands no metrics to the advantage
exec python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=gdpo \
    '+algorithm.gdpo_reward_keys=[psnr,ssim_ycbcr,lpips,maniqa,clipiqa,musiq,format]' \
    algorithm.use_kl_in_reward=False \
    data.train_files="$OUT/train.parquet" data.val_files="$OUT/heldout.parquet" \
    data.train_batch_size=64 data.max_prompt_length=2048 data.max_response_length=4096 data.return_raw_chat=True \
    actor_rollout_ref.model.path="$MODEL" \
    actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.optim.lr=5e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.actor.clip_ratio=0.2 \
    actor_rollout_ref.actor.grad_clip=1.0 \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean \
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.mode=async \
    actor_rollout_ref.rollout.n=8 \
    actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=1 \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.6 \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8 \
    actor_rollout_ref.rollout.calculate_log_probs=True \
    actor_rollout_ref.rollout.agent.default_agent_loop=ir_env \
    actor_rollout_ref.rollout.agent.agent_loop_config_path="$PWD/experiments/engines/verl_agent_loop.yaml" \
    trainer.n_gpus_per_node="$GPUS" trainer.nnodes=1 \
    trainer.total_epochs=1 trainer.save_freq=10 trainer.test_freq=10 \
    trainer.logger='["console","tensorboard"]' trainer.project_name=ir_env trainer.experiment_name=verl_qwen3vl_8b \
    trainer.default_local_dir="$OUT/checkpoints" \
    "$@"
