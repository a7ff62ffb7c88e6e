"""The settings of GRPO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module import RLModuleSpec

from policies.grpo.advantages import AdvantageOptions
from policies.grpo.loss import NORMALISATIONS
from policies.grpo.rollouts import REWARDS
from tool_actors.errors import IrEnvError, UnknownNameError

OLD_LOGPROBS = ("sampler", "learner")


class GRPOConfig(AlgorithmConfig):
    """Settings of :class:`policies.grpo.algorithm.GRPO`; see :meth:`training`.

    >>> config = GRPOConfig().environment("ir_env:ir_env/Restoration-v0").env_runners(num_envs_per_env_runner=16).training(group_size=8)
    """

    def __init__(self, algo_class=None):
        from policies.grpo.algorithm import GRPO
        from policies.grpo.env_runner import GroupEnvRunner

        super().__init__(algo_class=algo_class or GRPO)
        self.group_size = 8
        self.rounds_per_iteration = 1
        self.rewards = "final"
        self.metric_weights: dict[str, float] = {}
        self.format_weight, self.economy_weight = 0.0, 0.0
        self.advantage = "mar"
        self.mar, self.decouple, self.dynamic_weights = True, True, True
        self.mar_clip, self.mar_beta, self.mar_floor = 0.2, 0.1, 1e-3
        self.std_epsilon, self.scale_rewards = 1e-4, "group"
        self.normalise_batch: bool | None = None
        self.clip_param = 0.2
        self.clip_param_high: float | None = None
        self.kl_coeff, self.entropy_coeff = 0.0, 0.0
        self.loss_normalisation = "grpo"
        self.max_rollout_tokens: int | None = None
        self.num_epochs, self.num_minibatches = 1, 1
        self.micro_batch_size: int | None = None
        self.old_logprobs = "sampler"
        self.fully_shard = False
        # an AlgorithmConfig's
        self.lr = 5e-6
        self.env_runner_cls = GroupEnvRunner
        self.batch_mode = "complete_episodes"
        self.gym_env_vectorize_mode = "vector_entry_point"
        self.num_env_runners = 0
        self.num_envs_per_env_runner = 16
        self.sample_timeout_s = 600.0
        # a value head has no part in the loss, nor an encoder that is run once per update
        self.torch_ddp_kwargs = {"find_unused_parameters": True}
        # tokens are indices: RLlib would shift them by the space's lower bound
        self.normalize_actions, self.clip_actions = False, False

    def training(
        self,
        *,
        group_size: int = NotProvided,
        rounds_per_iteration: int = NotProvided,
        rewards: str = NotProvided,
        metric_weights: Mapping[str, float] = NotProvided,
        format_weight: float = NotProvided,
        economy_weight: float = NotProvided,
        advantage: str = NotProvided,
        mar: bool = NotProvided,
        decouple: bool = NotProvided,
        dynamic_weights: bool = NotProvided,
        mar_clip: float = NotProvided,
        mar_beta: float = NotProvided,
        mar_floor: float = NotProvided,
        std_epsilon: float = NotProvided,
        scale_rewards: str = NotProvided,
        normalise_batch: bool | None = NotProvided,
        clip_param: float = NotProvided,
        clip_param_high: float | None = NotProvided,
        kl_coeff: float = NotProvided,
        entropy_coeff: float = NotProvided,
        loss_normalisation: str = NotProvided,
        max_rollout_tokens: int | None = NotProvided,
        num_epochs: int = NotProvided,
        num_minibatches: int = NotProvided,
        micro_batch_size: int | None = NotProvided,
        old_logprobs: str = NotProvided,
        fully_shard: bool = NotProvided,
        **kwargs: Any,
    ) -> GRPOConfig:
        """Set what GRPO adds to RLlib's settings (``lr``, ``grad_clip``, ... are RLlib's).

        An iteration samples ``num_env_runners (or 1) * num_envs_per_env_runner * rounds_per_iteration`` rollouts and updates on all.

        Args:
            group_size: G, rollouts of one degraded image (TIR-Agent: 8); the environment is told.
            rounds_per_iteration: rounds that every runner samples before an update.
            rewards: ``final``, ``gain`` or ``return``, see :func:`policies.grpo.rollouts.rollout_rewards`. The first two give the same
                advantages but for MAR's weights: MAR divides by running means, which those of gains, near zero, do not bear well.
            metric_weights: weight per metric; 1 where it says nothing. ``mar`` multiplies its own weights by them.
            format_weight: weight of one more reward, the share of a rollout's steps that were valid.
            economy_weight: weight of one more reward, minus the number of tools that were run. Metrics do not mind a tool that changes
                next to nothing.
            advantage: ``grpo``, ``mar`` or ``gdpo``, see :class:`policies.grpo.advantages.AdvantageOptions`.
            mar: False is TIR-Agent's ablation "w/o MAR".
            decouple: False is its ablation "w/o decouple".
            dynamic_weights: False is its ablation "w/o w".
            mar_clip: ε of its equation 5.
            mar_beta: β of its equation 6.
            mar_floor: the least running mean that a deviation is divided by.
            std_epsilon: added to standard deviations.
            scale_rewards: what the rewards of a group are divided by: the deviation of their ``group``, that of the whole ``batch``, or
                ``none``, as Dr. GRPO does.
            normalise_batch: normalise advantages over the batch, too; by default for ``gdpo`` alone.
            clip_param: the ratio is clipped below at 1 - this,
            clip_param_high: and above at 1 + this; by default the same number.
            kl_coeff: weight of the divergence from the module's reference policy.
            entropy_coeff: weight of the entropy bonus.
            loss_normalisation: ``grpo`` or ``dr_grpo``, see :func:`policies.grpo.loss.token_weights`.
            max_rollout_tokens: the most tokens a rollout can have (steps times tokens per action); ``dr_grpo`` divides by it.
            num_epochs: passes over the batch.
            num_minibatches: optimiser steps per pass, on equal numbers of whole rollouts.
            micro_batch_size: rows (steps of rollouts) in a learner's memory at a time; changes no gradient. None takes a minibatch whole.
            old_logprobs: of the ratio's denominator: ``sampler``, as they were drawn; or ``learner``, recomputed before the first step,
                for samplers that compute otherwise. Either way ``sampling_gap`` tells how far the two are apart.
            fully_shard: learners share parameters, gradients and optimiser (FSDP2) instead of having copies (DDP); for modules that
                implement :meth:`policies.grpo.token_policy.TokenPolicy.shard`. Neither changes the update, nor does ``num_learners``.
        """
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        super().training(**kwargs)
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    @property
    def advantage_options(self) -> AdvantageOptions:
        return AdvantageOptions(
            mode=self.advantage,
            mar=self.mar,
            decouple=self.decouple,
            dynamic_weights=self.dynamic_weights,
            clip=self.mar_clip,
            beta=self.mar_beta,
            floor=self.mar_floor,
            std_epsilon=self.std_epsilon,
            scale_rewards=self.scale_rewards,
            normalise_batch=self.normalise_batch,
            weights=dict(self.metric_weights),
        )

    def validate(self) -> None:
        super().validate()
        if self.group_size < 2 or self.num_envs_per_env_runner % self.group_size:
            raise IrEnvError(
                f"a runner's num_envs_per_env_runner ({self.num_envs_per_env_runner}) must hold whole groups of group_size "
                f"({self.group_size}), and a group has at least 2 rollouts"
            )
        rollouts = max(1, self.num_env_runners) * self.num_envs_per_env_runner
        if self.num_learners > rollouts:
            raise IrEnvError(f"{self.num_learners} learners cannot share {rollouts} rollouts: lower num_learners, or sample more")
        if self.fully_shard and self.num_learners < 1:
            raise IrEnvError("fully_shard needs learners in processes of their own: set num_learners to 1 or more")
        if self.old_logprobs not in OLD_LOGPROBS:
            raise UnknownNameError("old_logprobs", self.old_logprobs, OLD_LOGPROBS)
        for name in ("rounds_per_iteration", "num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise IrEnvError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise IrEnvError(f"micro_batch_size must be None or at least 1, not {self.micro_batch_size}")
        if self.rewards not in REWARDS:
            raise UnknownNameError("kind of reward", self.rewards, REWARDS)
        if self.loss_normalisation not in NORMALISATIONS:
            raise UnknownNameError("loss normalisation", self.loss_normalisation, NORMALISATIONS)
        if self.loss_normalisation == "dr_grpo" and not self.max_rollout_tokens:
            raise IrEnvError("loss_normalisation='dr_grpo' needs max_rollout_tokens: max_steps times the tokens of an action")
        _ = self.advantage_options  # it checks what it is made of
        if self.env_config.get("group_size", self.group_size) != self.group_size:
            theirs = self.env_config["group_size"]
            raise IrEnvError(f"env_config and GRPO differ in group_size, {theirs} and {self.group_size}: leave it out of env_config")

    def build_learner_group(self, *, env=None, spaces=None, rl_module_spec=None, placement_group=None):
        from policies.grpo.learner_group import RolloutLearnerGroup

        spec = rl_module_spec or self.get_multi_rl_module_spec(env=env, spaces=spaces)
        return RolloutLearnerGroup(config=self.copy(), module_spec=spec, placement_group=placement_group)

    def get_default_learner_class(self):
        from policies.grpo.learner import GRPOTorchLearner

        return GRPOTorchLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        from policies.simplecall.rl_module import SimpleCallRLModule

        return RLModuleSpec(module_class=SimpleCallRLModule)
