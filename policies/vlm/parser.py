"""From the text that a model wrote to an action, strictly: the text is parsed as JSON and compared, never evaluated.

A well-formed answer is one call in Qwen's form and nothing else; white space and the order of keys do not matter:

    <tool_call>
    {"name": "denoise", "arguments": {"tool": "tv.denoise"}}
    </tool_call>

The name is a task, the tool one of that task's tools. ``{"name": "stop", "arguments": {}}`` ends the restoration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ir_env.actions import ActionTable

OPEN, CLOSE = "<tool_call>", "</tool_call>"
STOP = "stop"
MAX_CHARACTERS = 2000
"""No call is nearly as long; what is longer is not looked at."""

REASONS = (
    "not text",
    "too long",
    "no tool call",
    "several tool calls",
    "text outside the tool call",
    "not JSON",
    "not a name with arguments",
    "unknown task",
    "unknown tool",
    "tool of another task",
)
"""All the ways in which an answer can be malformed."""


@dataclass(frozen=True)
class Answer:
    """What an answer means: an action, or why it means none."""

    action: int | None
    reason: str = ""
    """One of :data:`REASONS`; empty for a well-formed answer."""

    @property
    def well_formed(self) -> bool:
        return self.action is not None


class _Malformed(Exception):
    pass


def parse(text: object, actions: ActionTable) -> Answer:
    """The action that an answer names. Never raises, whatever the text is."""
    try:
        return Answer(_parse(text, actions))
    except _Malformed as malformed:
        return Answer(None, str(malformed))


def _parse(text: object, actions: ActionTable) -> int:
    if not isinstance(text, str):
        raise _Malformed("not text")
    if len(text) > MAX_CHARACTERS:
        raise _Malformed("too long")
    if text.count(OPEN) > 1 or text.count(CLOSE) > 1:
        raise _Malformed("several tool calls")
    if OPEN not in text or CLOSE not in text:
        raise _Malformed("no tool call")
    stripped = text.strip()
    if not stripped.startswith(OPEN) or not stripped.endswith(CLOSE):
        raise _Malformed("text outside the tool call")
    try:
        call = json.loads(stripped[len(OPEN) : -len(CLOSE)], object_pairs_hook=_no_key_twice)
    except (ValueError, RecursionError):  # deep nesting is a RecursionError
        raise _Malformed("not JSON") from None
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"} or not isinstance(call["arguments"], dict):
        raise _Malformed("not a name with arguments")
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str):
        raise _Malformed("not a name with arguments")
    if name == STOP and not arguments:
        return actions.stop
    if name == STOP or arguments.keys() != {"tool"}:
        raise _Malformed("not a name with arguments")
    if name not in {action.task for action in actions}:
        raise _Malformed("unknown task")
    for index, action in enumerate(actions):
        if action.tool == arguments["tool"]:
            if action.task != name:
                raise _Malformed("tool of another task")
            return index
    raise _Malformed("unknown tool")


def _no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of a key that stands twice, readers disagree which counts."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key stands twice")
    return made
