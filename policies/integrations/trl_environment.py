"""TRL's ``environment_factory`` on our episodes (extra ``trl``); docs/trl.md has a training.

>>> trainer = GRPOTrainer(model, environment_factory=make_environment({"dataset": {"combos": "A"}}), train_dataset=rows(64), ...)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from policies.integrations.chat_episode import ChatEpisode
from policies.vlm.prompts import TASK_MEANING, Prompter
from tool_actors.errors import UnknownNameError

ENDED = "The restoration has ended."


class _Restoration:
    """One rollout. TRL takes its public methods for the model's tools; :func:`make_environment` adds one for each task."""

    def __init__(self, chat: ChatEpisode):
        self._chat = chat

    def reset(self, seed: int | None = None, sample: str | None = None, **row: Any) -> list[dict[str, Any]]:
        """Begin the episode of a row; returns what is added to the user's message."""
        self._chat.reset(None if seed is None else int(seed), {"sample": sample} if sample else None)
        return self._shown()

    def stop(self) -> str:
        """End the restoration.

        Returns:
            A word on it.
        """
        if not self._chat.done:
            self._chat.call("stop")
        return ENDED

    def get_reward(self) -> float:
        """The episode's; a rollout that did not stop by itself counts as stopped where it was."""
        self.stop()
        return float(self._chat.episode.total_reward)

    def _call(self, task: str, tool: str) -> list[dict[str, Any]] | str:
        if self._chat.done:
            return ENDED
        self._chat.call(tool, task)
        return ENDED if self._chat.done else self._shown()

    def _shown(self) -> list[dict[str, Any]]:
        from PIL import Image

        return [{**part, "image": Image.fromarray(part["image"])} if part["type"] == "image" else part for part in self._chat.turn()]


def make_environment(process: Mapping[str, Any], model: str = "", view: Mapping[str, Any] | None = None) -> Callable[[], _Restoration]:
    """What ``GRPOTrainer(environment_factory=...)`` takes: makes an environment per rollout, whose tools are the tasks.

    A tool answers with the image that it made and the calls so far; the one that the mask forbids, or that is unknown, with the image as it
    was. Rollouts share tools and cache.

    Args:
        process, model, view: see :meth:`ChatEpisode.make`.
    """
    prompter = ChatEpisode.make(process, model, view).prompter
    methods = {task: _method(task, tools) for task, tools in prompter.tools_of.items()}
    kind = type("Restoration", (_Restoration,), methods)
    return lambda: kind(ChatEpisode.make(process, model, view))


def _method(task: str, tools: list[str]) -> Callable:
    """A method whose signature and docstring tell the model what it may call."""

    def method(self, tool):
        return self._call(task, tool)

    method.__name__ = method.__qualname__ = task
    method.__doc__ = (
        f"{TASK_MEANING[task].capitalize()}.\n\nArgs:\n    tool: which tool does it (choices: {json.dumps(tools)})\n\n"
        "Returns:\n    The image that it made, and the calls so far."
    )
    method.__annotations__ = {"tool": str, "return": list}
    return method


def metric_reward(name: str) -> Callable[..., list[float]]:
    """A metric of the last image as one of TRL's ``reward_funcs``, oriented so that higher is better; a list of them and
    ``multi_objective_aggregation="normalize_then_sum"`` is GDPO.

    Raises:
        UnknownNameError: when rollouts are scored, if their process does not measure it.
    """

    def reward(environments: list[_Restoration], **_: Any) -> list[float]:
        told = [environment._chat.rewards for environment in environments]
        if name not in told[0]:
            raise UnknownNameError("metric", name, told[0], "It must be one of the process's metrics.")
        return [rewards[name] for rewards in told]

    reward.__name__ = name
    return reward


def rows(count: int, prompter: Prompter, first: int = 0) -> list[dict[str, Any]]:
    """A row per group: the standing instructions, and the seed that its rollouts begin from; the environment adds image and question."""
    # TRL's chat template tells the tools itself
    said = prompter.system if prompter.compact else "You restore photographs: call one tool at a time, and stop when none would help."
    prompt = [{"role": "system", "content": said}, {"role": "user", "content": ""}]
    return [{"prompt": prompt, "seed": seed} for seed in range(first, first + count)]
