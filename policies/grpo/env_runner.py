"""Rollouts in whole groups.

RLlib's own sampling returns the first n episodes to finish: short ones are favoured, groups lose members, and the members of a group
drift apart. A round here resets every sub-environment, and runs each to the end of exactly one episode.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.metrics import (
    ENV_RESET_TIMER,
    ENV_STEP_TIMER,
    ENV_TO_MODULE_CONNECTOR,
    MODULE_TO_ENV_CONNECTOR,
    RLMODULE_INFERENCE_TIMER,
    WEIGHTS_SEQ_NO,
)
from ray.rllib.utils.spaces.space_utils import unbatch


def seed_process(seed: int) -> None:
    """Seed every generator that a policy may draw from in this process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class GroupEnvRunner(SingleAgentEnvRunner):
    """An env runner whose ``sample`` returns one episode of every sub-environment, in their order.

    Everything random in a round (samples, actions) follows from its seed, so that a run that is killed and resumed, on any number of
    processes, draws what it would have drawn. The members of a group reset with the same seed.

    A vector environment with the attributes ``group_size`` and ``autoreset`` has them set: the sub-environments of a group then share
    their samples, and those that have ended wait, without a tool call, for the others of their round.
    """

    _round_seed: tuple[int, ...] | None = None
    _rounds = 0

    def make_env(self):
        super().make_env()
        for name, value in (("group_size", self.config.group_size), ("autoreset", False)):
            if hasattr(self.env.unwrapped, name):
                setattr(self.env.unwrapped, name, value)

    def sample_round(self, seed: tuple[int, ...]):
        """One round whose chance follows from ``seed`` and the index of this runner: (index, episodes, metrics)."""
        self._round_seed = seed
        try:
            episodes = self.sample(num_episodes=self.num_envs)
        finally:
            self._round_seed = None
        return self.worker_index, episodes, self.get_metrics()

    def set_state(self, state) -> None:
        # RLlib's keeps its weights if those that come are older, as they are when a checkpoint is restored in a running process
        if COMPONENT_RL_MODULE in state:
            self._weights_seq_no = 0
        super().set_state(state)

    def _sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool,
        random_actions: bool = False,
        force_reset: bool = False,
    ) -> list[SingleAgentEpisode]:
        episodes: list[SingleAgentEpisode] = []
        # evaluation may ask for more than a round holds; whole rounds are returned
        while not episodes or len(episodes) < (num_episodes or 0) or sum(map(len, episodes)) < (num_timesteps or 0):
            episodes += self._run_round(explore, random_actions)
        return episodes

    def _run_round(self, explore: bool, random_actions: bool) -> list[SingleAgentEpisode]:
        seed, self._rounds = self._round_seed or (self._seed or 0, self._rounds), self._rounds + 1
        env_seeds = self._begin_round(np.random.SeedSequence([*seed, self.worker_index or 0]))
        self._ongoing_episodes, self._shared_data = [None] * self.num_envs, {}
        for index in range(self.num_envs):
            self._new_episode(index)
        episodes = self._ongoing_episodes
        with self.metrics.log_time(ENV_RESET_TIMER):
            observations, infos = self.env.reset(seed=env_seeds)
        for index, observation in enumerate(unbatch(observations)):
            episodes[index].add_env_reset(observation=observation, infos=infos[index])
        for index in range(self.num_envs):
            self._make_on_episode_callback("on_episode_start", index, episodes)

        steps, live = 0, list(range(self.num_envs))
        while live:
            outputs = self._act([episodes[index] for index in live], explore, random_actions)
            actions = outputs.pop(Columns.ACTIONS)
            for_env = np.asarray(outputs.pop(Columns.ACTIONS_FOR_ENV, actions))
            # those that have ended need some legal action, which they ignore
            everyone = np.repeat(for_env[:1], self.num_envs, axis=0)
            everyone[live] = for_env
            # not RLlib's _try_env_step, which replaces the error by an empty one
            with self.metrics.log_time(ENV_STEP_TIMER):
                observations, rewards, terminated, truncated, infos = self.env.step(everyone)
            observations, actions = unbatch(observations), unbatch(actions)
            for row, index in enumerate(live):
                episodes[index].add_env_step(
                    observation=observations[index],
                    action=actions[row],
                    reward=rewards[index],
                    infos=infos[index],
                    terminated=terminated[index],
                    truncated=truncated[index],
                    extra_model_outputs={**{key: value[row] for key, value in outputs.items()}, WEIGHTS_SEQ_NO: self._weights_seq_no},
                )
                self._make_on_episode_callback("on_episode_step", index, episodes)
            steps += len(live)
            for index in live:
                if episodes[index].is_done:
                    self._make_on_episode_callback("on_episode_end", index, episodes)
            live = [index for index in live if not episodes[index].is_done]

        finished = [episode.to_numpy() for episode in episodes]
        self._done_episodes_for_metrics.extend(finished)
        self._log_env_steps(metric=self._metrics_num_env_steps_sampled, num_steps=steps)
        self._increase_sampled_metrics(steps, len(finished))
        return finished

    def _begin_round(self, sequence: np.random.SeedSequence) -> list[int]:
        """Seed this process; returns a seed per sub-environment, the same for the members of a group."""
        group_size = self.config.group_size
        process, *groups = (int(word) >> 1 for word in sequence.generate_state(1 + self.num_envs // group_size))
        seed_process(process)
        self.env.single_action_space.seed(process)
        return [seed for seed in groups for _ in range(group_size)]

    def _act(self, episodes: list[SingleAgentEpisode], explore: bool, random_actions: bool) -> dict:
        """Actions of the episodes that go on, and what else the module returns, a list per column."""
        if random_actions:
            return {Columns.ACTIONS: np.stack([self.env.single_action_space.sample() for _ in episodes])}
        connect = {"explore": explore, "rl_module": self.module, "shared_data": self._shared_data, "metrics": self.metrics}
        batch = self._env_to_module(episodes=episodes, batch={}, metrics_prefix_key=(ENV_TO_MODULE_CONNECTOR,), **connect)
        forward = self.module.forward_exploration if explore else self.module.forward_inference
        with self.metrics.log_time(RLMODULE_INFERENCE_TIMER):
            output = forward(batch)
        return self._module_to_env(episodes=episodes, batch=output, metrics_prefix_key=(MODULE_TO_ENV_CONNECTOR,), **connect)
