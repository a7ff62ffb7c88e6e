"""SkyRL's ``BaseTextEnv`` on our episodes (extra ``skyrl``); docs/verl.md says how to register it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput, ConversationType

from policies.integrations.chat_episode import ChatEpisode
from policies.remote import to_openai


class RestorationTextEnv(BaseTextEnv):
    """One rollout: the model's text is read as a call, and answered with what the tool made of the image, as OpenAI's message parts.

    Args:
        env_config: ``process`` and, if wanted, ``model`` and ``view``, see :meth:`ChatEpisode.make`.
        extras: of the dataset's row; its ``seed``, or its ``sample``, is where the episode begins, so that a group's rollouts begin alike.
    """

    def __init__(self, env_config: Mapping[str, Any], extras: Mapping[str, Any] | None = None):
        super().__init__()
        told = {name: env_config[name] for name in ("model", "view") if env_config.get(name)}
        self._chat = ChatEpisode.make(env_config.get("process") or {}, **told)
        self._extras = dict(extras or {})
        self.max_turns = self._chat.process.max_steps

    def init(self, prompt: ConversationType) -> tuple[ConversationType, dict[str, Any]]:
        """Begin the episode; its own opening takes the place of the dataset's prompt."""
        sample = self._extras.get("sample")
        self._chat.reset(self._extras.get("seed"), {"sample": sample} if sample else None)
        return to_openai(self._chat.opening()), self._chat.info

    def step(self, action: str) -> BaseTextEnvStepOutput:
        outcome = self._chat.answer(action)
        self.turns += 1
        messages = [] if self._chat.done else to_openai([{"role": "user", "content": self._chat.turn()}])
        return BaseTextEnvStepOutput(observations=messages, reward=outcome.reward, done=self._chat.done, metadata=self._chat.info)

    def get_metrics(self) -> dict[str, Any]:
        """Metrics of the last image, oriented so that higher is better, and the number of turns."""
        return {**self._chat.rewards, "turns": self.turns}
