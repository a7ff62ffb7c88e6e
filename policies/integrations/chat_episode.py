"""An episode as a chat that goes on: what engines with several turns train on.

The policies of this project are asked anew at each step, with the calls so far in the prompt. Engines keep one growing chat instead: the
model's call, then what the tool made of the image, and so on. Prompts, pictures and the reading of answers are the same for both.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import TYPE_CHECKING, Any

from ir_env.actions import MALFORMED
from ir_env.episode import Outcome
from ir_env.process import RestorationProcess
from ir_env.tool_episode import ToolEpisode
from ir_env.view import View
from policies.vlm.parser import parse
from policies.vlm.planner import PolicySettings
from policies.vlm.prompts import Messages, Prompter
from tool_actors.errors import IrEnvError
from tool_actors.executor import LocalExecutor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ChatEpisode", "pil_images", "without_images"]


class ChatEpisode(ToolEpisode):
    """A :class:`ToolEpisode` that writes the chat and reads answers.

    >>> episode = ChatEpisode.make({"dataset": {"combos": "A"}})
    >>> episode.reset(seed=0)
    >>> chat = episode.opening()
    >>> outcome = episode.answer('<tool_call>{"name": "derain", "arguments": {"tool": "rain.heavy"}}</tool_call>')
    >>> parts = episode.turn()

    Args:
        process, lock: see :class:`ToolEpisode`.
        prompter: writes the messages. Its view must show the current image alone: the chat holds those before.

    Raises:
        IrEnvError: the view shows all images.
    """

    def __init__(self, process: RestorationProcess, prompter: Prompter, lock: AbstractContextManager | None = None):
        super().__init__(process, lock)
        if prompter.view.images == "all":
            raise IrEnvError("view: the chat holds the images before the current one itself; leave images at 'current'")
        self.prompter = prompter

    @classmethod
    def make(cls, process: Mapping[str, Any], model: str = "", view: Mapping[str, Any] | None = None) -> ChatEpisode:
        """An episode from settings; those of equal settings in this Python process share their tools and cache.

        Args:
            process: arguments of :class:`ir_env.process.RestorationProcess`.
            model: name or folder of the model, which may say how it is asked (:class:`policies.vlm.planner.PolicySettings`).
            view: what it is shown, see :class:`ir_env.view.View`; by default what suits the model.
        """
        shared, lock = _shared(json.dumps(dict(process), sort_keys=True))
        settings = PolicySettings.of(model, View.of(view) if view else None)
        return cls(shared, settings.prompter(shared.actions), lock)

    def opening(self) -> Messages:
        """The standing instructions and the turn that is the model's next; images in it are uint8 (H, W, 3)."""
        pictures = self.prompter.pictures(self.prompter.view.look([self.image]))
        return self.prompter.messages(pictures, self.episode.history)

    def turn(self) -> list[dict[str, Any]]:
        """What the model is shown next, as parts of one message: the image as it is now, and the calls so far."""
        return self.opening()[-1]["content"]

    def answer(self, text: str) -> Outcome:
        """Take the action that a model's answer names; one that names none is malformed."""
        action = parse(text, self.actions).action
        return self.take(MALFORMED if action is None else action)


@cache
def _shared(settings: str) -> tuple[RestorationProcess, AbstractContextManager | None]:
    """One process for all episodes, and what they hold while tools run; in a pool they run side by side."""
    process = RestorationProcess(**json.loads(settings))
    return process, threading.Lock() if isinstance(process.executor, LocalExecutor) else None


def pil_images(parts: Sequence[Mapping[str, Any]]) -> list[Image]:
    """The images among the parts of a message, as Pillow's."""
    from PIL import Image

    return [Image.fromarray(part["image"]) for part in parts if part["type"] == "image"]


def without_images(messages: Messages) -> Messages:
    """The same messages with places for images, as engines take them that are given the images beside."""
    bare = [[{"type": "image"} if part["type"] == "image" else part for part in message["content"]] for message in messages]
    return [{**message, "content": parts} for message, parts in zip(messages, bare, strict=True)]
