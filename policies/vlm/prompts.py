"""What the model reads: the tasks and tools, the actions so far, pictures of the image; and what it is to write."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from ir_env.actions import MALFORMED, ActionTable
from ir_env.view import View, whole_images
from policies.vlm.parser import CLOSE, OPEN, STOP
from policies.vlm.sheet import sheet
from tool_actors.errors import IrEnvError
from tool_actors.tasks import TASK_OF

WHOLE = View(overview=0, glimpses=0, whole=1024)
"""What a published model is shown that was trained with nothing else: its own processor takes images of any size."""

TASK_MEANING = {
    "denoise": "remove noise",
    "motion_deblur": "undo blur of a moving camera",
    "defocus_deblur": "undo blur of a lens out of focus",
    "derain": "remove rain streaks",
    "dehaze": "remove haze",
    "dejpeg": "remove JPEG compression artefacts",
    "brighten": "brighten a photograph taken in low light",
    "super_resolve": "enlarge a low-resolution photograph four times",
}

INSTRUCTIONS = f"""\
You restore photographs. A photograph may suffer from several degradations at once. At every turn you see the image as it is now and the \
calls made so far. Decide which restoration task comes next and which of its tools does it, and make one call; call {STOP} when no tool \
would improve the image further. Order matters: a tool may remove one degradation and make another harder to remove.

# Tools

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{{signatures}}
</tools>

Return one json object with function name and arguments within {OPEN}{CLOSE} XML tags, and nothing else:
{OPEN}
{{{{"name": <function-name>, "arguments": <args-json-object>}}}}
{CLOSE}"""

Messages = list[dict]
"""A chat as transformers' templates take it; images stand in it as uint8 arrays (H, W, 3)."""


@dataclass(frozen=True)
class Prompter:
    """Writes prompts and answers for one table of actions.

    One path serves sampling, training and evaluation, so that a model is asked everywhere as it was taught:

    >>> pictures = prompter.pictures(prompter.view.look(images))
    >>> chat = prompter.messages(pictures, history)

    Raises:
        IrEnvError: the view is not one that a prompt can show.
    """

    actions: ActionTable
    compact: bool = False
    """Say next to nothing: for small models, which learn form, tasks and tools from examples alone, and read a long prompt in vain."""
    view: View = WHOLE
    """What is shown: whole images, each a picture of its own, or overview and glimpses on one :func:`policies.vlm.sheet.sheet`."""
    spectrum: bool = False
    """Show the power spectrum of the glimpses beside them: for small models."""

    def __post_init__(self):
        view = self.view
        if view.whole and (view.overview or view.glimpses):
            raise IrEnvError(
                "view: a vision-language policy is shown whole images, or overview and glimpses on one sheet; set whole to 0, or overview "
                "and glimpses"
            )
        if view.overview and view.glimpses and view.overview != view.side:
            raise IrEnvError(
                f"view: overview and glimpses stand side by side on one sheet; overview {view.overview} and side {view.side} must be equal"
            )

    @cached_property
    def tools_of(self) -> dict[str, list[str]]:
        """The tools of each task for which there are some."""
        tasks = {action.task for action in self.actions}
        known = [task for task in dict.fromkeys(TASK_OF.values()) if task in tasks]
        return {task: [action.tool for action in self.actions if action.task == task] for task in known}

    @cached_property
    def system(self) -> str:
        """The standing instructions."""
        if self.compact:
            return "Restore."
        signatures = [_signature(task, TASK_MEANING[task], tools) for task, tools in self.tools_of.items()]
        signatures.append(_signature(STOP, "end the restoration", ()))
        return INSTRUCTIONS.format(signatures="\n".join(map(json.dumps, signatures)))

    def pictures(self, seen: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The pictures that stand in the chat, uint8 (h, w, 3) each, without padding.

        Args:
            seen: what :attr:`view` shows, see :meth:`ir_env.view.View.look`.
        """
        return whole_images(seen) if self.view.whole else [sheet(seen, self.spectrum)]

    def messages(self, pictures: Sequence[np.ndarray], history: Sequence[int]) -> Messages:
        """The chat up to the model's turn.

        Args:
            pictures: see :meth:`pictures`; where the view shows all images, those after the first stand behind the calls that made them.
            history: indices of the actions so far, malformed answers among them.
        """
        calls = [self._call(index) for index in history]
        if self.compact:
            text = f"Done: {', '.join(calls)}" if calls else "Done: nothing"
        else:
            text = f"Calls so far: {', then '.join(calls) or 'none'}. Which call comes next?"
        content: list[dict] = [{"type": "image", "image": pictures[0]}]
        for index, picture in zip(self._made(pictures, history), pictures[1:], strict=True):
            content += [{"type": "text", "text": f"After {self._call(index)}:"}, {"type": "image", "image": picture}]
        return [
            {"role": "system", "content": [{"type": "text", "text": self.system}]},
            {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        ]

    def _call(self, index: int) -> str:
        return f"{self.actions[index].task} {self.actions[index].tool}" if self._is_tool(index) else self.actions.name(index)

    def _is_tool(self, index: int) -> bool:
        return 0 <= index < self.actions.stop

    def _made(self, pictures: Sequence[np.ndarray], history: Sequence[int]) -> list[int]:
        """The actions that made the pictures after the first: those of tools, but for enlarging where it was forbidden, which made none."""
        if self.view.images != "all":
            return []
        made: list[int] = []
        tools = [index for index in history if self._is_tool(index)]
        forbidden = len(tools) + 1 - len(pictures)
        for index in tools:
            before, after = (pictures[at].shape[0] if at < len(pictures) else 0 for at in (len(made), len(made) + 1))
            if forbidden > 0 and self.actions[index].task == "super_resolve" and after <= before:
                forbidden -= 1
            else:
                made.append(index)
        return made

    tags: ClassVar[tuple[str, ...]] = (OPEN, CLOSE)
    """What stands around the parts of an answer."""

    def vocabulary(self) -> Iterator[str]:
        """Texts with all the words that prompts and answers are made of."""
        blank = np.zeros((8, 8, 3), np.uint8)
        for action in range(self.actions.n):
            yield self.answer(action)
            for history in ((), (action,), (action, MALFORMED)):
                images = [blank] * (2 if action in history and action != self.actions.stop else 1)
                for message in self.messages(self.pictures(self.view.look(images)), history):
                    yield from (part["text"] for part in message["content"] if part["type"] == "text")

    def answer(self, action: int) -> str:
        """The well-formed answer that means an action."""
        if action == self.actions.stop:
            call: dict = {"name": STOP, "arguments": {}}
        else:
            call = {"name": self.actions[action].task, "arguments": {"tool": self.actions[action].tool}}
        return f"{OPEN}\n{json.dumps(call)}\n{CLOSE}"


def _signature(name: str, meaning: str, tools: Sequence[str]) -> dict:
    properties = {"tool": {"type": "string", "enum": list(tools)}} if tools else {}
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": meaning, "parameters": parameters}}


def same_prompt(pictures: Sequence[np.ndarray], history: Sequence[int]) -> Hashable:
    """Equal for equal prompts of one prompter."""
    return tuple((picture.shape, picture.tobytes()) for picture in pictures), tuple(history)


def distinct(prompts: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Where each different prompt stands first, and which of these each prompt is: rollouts of one image share the reading of it.

    >>> distinct(["a", "b", "a"])
    ([0, 1], [0, 1, 0])
    """
    place: dict[Hashable, int] = {}
    rows = [place.setdefault(prompt, len(place)) for prompt in prompts]
    return [rows.index(index) for index in range(len(place))], rows
