"""What the model reads: the tasks and tools, the actions so far, the current image; and what it is to write."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ir_env.actions import ActionTable
from ir_env.observation import view
from policies.vlm.parser import CLOSE, OPEN, STOP
from policies.vlm.spectrum import with_spectrum
from tool_actors.tasks import TASK_OF

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
    """Writes prompts and answers for one table of actions."""

    actions: ActionTable
    compact: bool = False
    """Say next to nothing: for small models, which learn form, tasks and tools from examples alone, and read a long prompt in vain."""
    view_size: int | None = None
    """The model sees a square of so many native pixels, as :func:`ir_env.observation.view` cuts it; None: all of the image."""
    spectrum: bool = False
    """Show the power spectrum beside the pixels, see :func:`policies.vlm.spectrum.with_spectrum`: for small models."""

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

    def messages(self, image: np.ndarray, history: Sequence[int]) -> Messages:
        """The chat up to the model's turn.

        Args:
            image: uint8 (H, W, 3), the current image.
            history: indices of the actions so far, malformed answers among them.
        """
        tools = range(self.actions.stop)
        calls = [f"{self.actions[i].task} {self.actions[i].tool}" if i in tools else self.actions.name(i) for i in history]
        if self.compact:
            text = f"Done: {', '.join(calls)}" if calls else "Done: nothing"
        else:
            text = f"Calls so far: {', then '.join(calls) or 'none'}. Which call comes next?"
        shown = image if self.view_size is None else view(image, self.view_size)
        if self.spectrum:
            shown = with_spectrum(shown)
        return [
            {"role": "system", "content": [{"type": "text", "text": self.system}]},
            {"role": "user", "content": [{"type": "image", "image": shown}, {"type": "text", "text": text}]},
        ]

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


def distinct(prompts: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """Where each different prompt stands first, and which of these each prompt is: rollouts of one image share the reading of it.

    >>> distinct(["a", "b", "a"])
    ([0, 1], [0, 1, 0])
    """
    place: dict[Hashable, int] = {}
    rows = [place.setdefault(prompt, len(place)) for prompt in prompts]
    return [rows.index(index) for index in range(len(place))], rows
