"""GRPO as an RLlib Algorithm."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from policies.grpo.advantages import AdvantageEstimator, Advantages
from policies.grpo.config import GRPOConfig
from policies.grpo.rollouts import add_column, check_groups, diversity, part_means, rollout_rewards, tool_use, tools_run, valid_share
from policies.grpo.token_policy import TOKEN_MASK
from tool_actors.errors import IrEnvError

logger = logging.getLogger(__name__)

STATE = "grpo"
EMPTY_ITERATIONS = 3
"""After so many iterations in which no runner returned anything the run ends with an error."""


class GRPO(Algorithm):
    """Group-relative policy optimisation (DeepSeekMath, arXiv 2402.03300) on whole groups of multi-turn rollouts.

    An iteration samples rounds of whole groups, turns their rewards into one advantage per rollout, updates the policy on all of them, and
    sends the new weights to the runners. Everything random in it follows from the run's seed and the number of rounds so far, which are in
    the checkpoint together with MAR's running means: a resumed run makes the update that the interrupted one would have made.

    Results under ``grpo/``: ``reward/<metric>`` (batch mean), ``ema/<metric>``, ``weight/<metric>``, ``format_rate``, ``diversity`` (share
    of distinct rollouts in a group), ``zero_spread`` (share of groups without a learning signal), ``tool_use/<tool>`` (calls per rollout),
    ``part/<name>`` (of the reward of whole plans), ``tokens`` (of a rollout's answers);
    under ``learners/default_policy/``, of the last epoch: ``entropy``, ``clip_fraction``, ``ratio``, ``kl_update`` (of the update),
    ``kl_reference``; and ``sampling_gap`` (mean difference between a token's log-probability in sampling and in scoring, before the first
    step, which should be 0).
    """

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig()

    def setup(self, config) -> None:
        self._estimator: AdvantageEstimator | None = None
        self._rounds, self._empty_iterations, self._tools = 0, 0, set()
        super().setup(config)
        seed = self.config.seed
        self._run_seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else int(seed)

    def training_step(self) -> None:
        with self.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
            episodes = self._sample_rounds()
        if not episodes:
            return
        config = self.config
        check_groups(episodes, config.group_size)
        self._add_advantages(episodes)
        seed = int(np.random.SeedSequence([self._run_seed, self._rounds]).generate_state(1)[0]) >> 1
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
            results = self.learner_group.update(
                episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}, num_epochs=config.num_epochs, seed=seed
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        with self.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
            self._send_weights()

    def _send_weights(self) -> None:
        """Give all runners the learner's weights. Without the timeout RLlib drops them, silently, while it still sends the last ones."""
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group, inference_only=True, timeout_seconds=self.config.sample_timeout_s
        )

    def restore_from_path(self, path, *args, **kwargs) -> None:
        super().restore_from_path(path, *args, **kwargs)
        self._send_weights()

    def _sample_rounds(self) -> list[SingleAgentEpisode]:
        """The finished rollouts of all runners, group after group; empty if no runner returned any."""
        group, episodes = self.env_runner_group, []
        for _ in range(self.config.rounds_per_iteration):
            remote = group.num_remote_workers() > 0
            returned = group.foreach_env_runner(
                partial(_sample_round, seed=(self._run_seed, self._rounds)),
                local_env_runner=not remote,
                timeout_seconds=self.config.sample_timeout_s if remote else None,
            )
            self._rounds += 1
            for index, rollouts, _ in sorted(returned, key=lambda one: one[0]):
                if isinstance(rollouts, str):
                    raise IrEnvError(f"env runner {index} failed in a round:\n{rollouts}")
                episodes += rollouts
            if returned:
                self.metrics.aggregate([metrics for *_, metrics in returned], key=ENV_RUNNER_RESULTS)
        self._empty_iterations = 0 if episodes else self._empty_iterations + 1
        if self._empty_iterations >= EMPTY_ITERATIONS:
            raise IrEnvError(
                f"no env runner has returned a round in {EMPTY_ITERATIONS} iterations: they died, or a round takes longer than "
                f"sample_timeout_s={self.config.sample_timeout_s:g} seconds; raise that, or sample with fewer sub-environments"
            )
        if not episodes:
            logger.warning("no env runner returned a round within sample_timeout_s=%g seconds", self.config.sample_timeout_s)
        return episodes

    def _add_advantages(self, episodes: list[SingleAgentEpisode]) -> None:
        config = self.config
        names, rewards = rollout_rewards(episodes, config.rewards)
        if self._estimator is None:
            self._estimator = AdvantageEstimator(config.advantage_options, names)
        if self._estimator.names != tuple(names):
            raise IrEnvError(f"the environment reports the metrics {names}, and the run began with {list(self._estimator.names)}")
        valid = valid_share(episodes)
        shape = (-1, config.group_size)
        beside = [(valid, config.format_weight), (-tools_run(episodes), config.economy_weight)]
        beside = [(values.reshape(shape), weight) for values, weight in beside if weight]
        extra = np.stack([values for values, _ in beside], axis=2) if beside else None
        result = self._estimator(rewards.reshape(*shape, len(names)), extra, [weight for _, weight in beside])
        add_column(episodes, "advantages", result.advantages.reshape(-1).astype(np.float32))
        add_column(episodes, "rollout", np.arange(len(episodes)))
        self._log(episodes, names, result, valid)

    def _log(self, episodes: list[SingleAgentEpisode], names: Sequence[str], result: Advantages, valid: np.ndarray) -> None:
        values: dict[tuple[str, ...], float] = {
            ("format_rate",): valid.mean(),
            ("diversity",): diversity(episodes, self.config.group_size),
            ("zero_spread",): (result.advantages == 0).all(1).mean(),
        }
        for k, name in enumerate(names):
            values["reward", name], values["weight", name] = result.batch_mean[k], result.weights[k]
            if result.running_mean is not None:
                values["ema", name] = result.running_mean[k]
        if TOKEN_MASK in episodes[0].extra_model_outputs:
            values["tokens",] = np.mean([np.sum(episode.get_extra_model_outputs(TOKEN_MASK)) for episode in episodes])
        values |= {("part", name): mean for name, mean in part_means(episodes).items()}
        use = tool_use(episodes)
        self._tools |= set(use)
        values |= {("tool_use", name): use.get(name, 0.0) for name in self._tools}
        for key, value in values.items():
            self.metrics.log_value((STATE, *key), float(value), window=1)

    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict[str, Any]:
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(STATE, components, not_components):
            estimator = self._estimator
            state[STATE] = {
                "seed": self._run_seed,
                "rounds": self._rounds,
                "tools": sorted(self._tools),
                "estimator": estimator and {"names": estimator.names, "mar": estimator.state.get_state()},
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if STATE in state:
            own = state[STATE]
            self._run_seed, self._rounds, self._tools = own["seed"], own["rounds"], set(own["tools"])
            self._estimator = None
            if own["estimator"]:
                self._estimator = AdvantageEstimator(self.config.advantage_options, own["estimator"]["names"])
                self._estimator.state.set_state(own["estimator"]["mar"])


def _sample_round(env_runner, seed: tuple[int, ...]):
    """A runner's round, or the trace of the error that ended it: RLlib would end the runner's process, and the cause with it."""
    try:
        return env_runner.sample_round(seed)
    except Exception:
        return env_runner.worker_index, traceback.format_exc().strip(), None
