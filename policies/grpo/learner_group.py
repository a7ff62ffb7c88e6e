"""RLlib's group of learners, which share whole rollouts and perhaps the parameters."""

from __future__ import annotations

from typing import Any

import ray
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.single_agent_episode import SingleAgentEpisode

from policies.grpo.rollouts import share_out


class RolloutLearnerGroup(LearnerGroup):
    """Gives each learner whole rollouts, where RLlib's cuts them; and has all learners take part where their state is asked for.

    RLlib asks the first learner alone, which holds a part of it where the parameters are sharded: they are gathered before.
    """

    def update(self, *, episodes: list[SingleAgentEpisode], **kwargs) -> list[dict[str, Any]]:
        if len(self) < 2:
            return super().update(episodes=episodes, **kwargs)
        # as many references as learners: RLlib gives each learner one, and cuts none
        shares = [ray.put(share) for share in share_out(episodes, len(self))]
        return super().update(episodes_refs=shares, rollouts=len(episodes), **kwargs)

    def get_state(self, components=None, *, not_components=None, **kwargs) -> dict[str, Any]:
        learner = self._get_subcomponents("learner", components), self._get_subcomponents("learner", not_components)
        if self._check_component("learner", components, not_components):
            self._gather(components=learner[0], not_components=learner[1], **kwargs)
        return super().get_state(components, not_components=not_components, **kwargs)

    def save_to_path(self, path=None, *, state=None, **kwargs) -> str:
        if state is None:
            self._gather()
        return super().save_to_path(path, state=state, **kwargs)

    def _gather(self, **asked) -> None:
        if self.is_remote and self.config.fully_shard:
            self._get_results(self.foreach_learner(lambda learner: learner.gather_state(**asked)))
