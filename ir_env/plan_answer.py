"""A whole plan as one answer: as text, parsed strictly, or as indices.

The text form is OPERA's (table 14):

    <think>…</think><degradation>['rain', 'noise']</degradation><answer>['noise.gaussian25', 'rain.light']</answer>

The index form is a vector of ``8 + max_plan`` integers: which of :data:`tool_actors.tasks.DEGRADATIONS` are there (0 or 1 each), then the
plan as indices of actions, ended by the index of stop; what stands behind it is not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from ir_env.actions import ActionTable
from tool_actors.tasks import DEGRADATIONS

__all__ = ["MAX_CHARACTERS", "REASONS", "PlanAnswer", "parse_plan", "plan_space", "read_plan", "to_indices", "write_plan"]

MAX_CHARACTERS = 16_000
"""The paper's answers end after 800 tokens; what is longer than this is not looked at."""
PARTS = ("think", "degradation", "answer")
REASONS = (
    "not text",
    "too long",
    "not one think, degradation and answer, in this order",
    "text outside the parts",
    "not a list of quoted names",
    "unknown degradation",
    "degradation named twice",
    "empty plan",
    "plan too long",
    "unknown tool",
    "not indices",
)
"""All the ways in which an answer can be malformed."""
_NAME = r"'[\w.\-+]+'|\"[\w.\-+]+\""
_LIST = re.compile(rf"\[\s*(?:(?:{_NAME})\s*(?:,\s*(?:{_NAME})\s*)*)?\]")


@dataclass(frozen=True)
class PlanAnswer:
    """What a policy answered: a plan, which degradations it sees, and why; or why its answer means none."""

    plan: tuple[int, ...] = ()
    """Indices of actions, without stop."""
    degradations: tuple[str, ...] = ()
    think: str | None = None
    """The reasoning; None in the index form, which has none."""
    reason: str = ""
    """One of :data:`REASONS`; empty for a well-formed answer."""

    @property
    def well_formed(self) -> bool:
        return not self.reason


class _Malformed(Exception):
    pass


def parse_plan(text: object, actions: ActionTable, max_plan: int) -> PlanAnswer:
    """The plan that a text means. Never evaluates anything, and never raises, whatever the text is.

    Args:
        text: of a model.
        actions: repeats and tools for degradations that are not there are allowed.
        max_plan: the most tools.
    """
    try:
        return _parse(text, actions, max_plan)
    except _Malformed as malformed:
        return PlanAnswer(reason=str(malformed))


def _parse(text: object, actions: ActionTable, max_plan: int) -> PlanAnswer:
    if not isinstance(text, str):
        raise _Malformed("not text")
    if len(text) > MAX_CHARACTERS:
        raise _Malformed("too long")
    tags = [tag for part in PARTS for tag in (f"<{part}>", f"</{part}>")]
    places = [text.find(tag) for tag in tags]
    if any(text.count(tag) != 1 for tag in tags) or places != sorted(places):
        raise _Malformed("not one think, degradation and answer, in this order")
    contents, outside, at = [], [], 0
    for opened, closed, tag, end in zip(places[::2], places[1::2], tags[::2], tags[1::2], strict=True):
        outside.append(text[at:opened])
        contents.append(text[opened + len(tag) : closed])
        at = closed + len(end)
    if any(part.strip() for part in (*outside, text[at:])):
        raise _Malformed("text outside the parts")
    think, degradations, tools = contents[0].strip(), _names(contents[1]), _names(contents[2])
    if any(name not in DEGRADATIONS for name in degradations):
        raise _Malformed("unknown degradation")
    if len(set(degradations)) < len(degradations):
        raise _Malformed("degradation named twice")
    known = {action.tool: index for index, action in enumerate(actions)}
    if any(tool not in known for tool in tools):
        raise _Malformed("unknown tool")
    return PlanAnswer(_checked([known[tool] for tool in tools], max_plan), tuple(degradations), think)


def _names(text: str) -> list[str]:
    if not _LIST.fullmatch(text.strip()):
        raise _Malformed("not a list of quoted names")
    return [name[1:-1] for name in re.findall(_NAME, text)]


def _checked(plan: Sequence[int], max_plan: int) -> tuple[int, ...]:
    if not plan:
        raise _Malformed("empty plan")
    if len(plan) > max_plan:
        raise _Malformed("plan too long")
    return tuple(plan)


def write_plan(answer: PlanAnswer, actions: ActionTable) -> str:
    """The text of a well-formed answer."""
    told = answer.think or "", list(answer.degradations), [actions[index].tool for index in answer.plan]
    return "".join(f"<{part}>{content}</{part}>" for part, content in zip(PARTS, told, strict=True))


def plan_space(actions: ActionTable, max_plan: int) -> gymnasium.spaces.MultiDiscrete:
    """Of the index form."""
    return gymnasium.spaces.MultiDiscrete([2] * len(DEGRADATIONS) + [actions.n] * max_plan)


def to_indices(answer: PlanAnswer, actions: ActionTable, max_plan: int) -> np.ndarray:
    """int64 (8 + max_plan,): the index form of an answer, filled up with stop."""
    present = [int(name in answer.degradations) for name in DEGRADATIONS]
    return np.array([*present, *answer.plan, *[actions.stop] * (max_plan - len(answer.plan))], np.int64)


def read_plan(action: Any, actions: ActionTable, max_plan: int) -> PlanAnswer:
    """What an action means, text or indices; never raises."""
    if isinstance(action, str):
        return parse_plan(action, actions, max_plan)
    try:
        values = np.asarray(action)
        if values.shape != (len(DEGRADATIONS) + max_plan,) or not np.issubdtype(values.dtype, np.integer):
            raise _Malformed("not indices")
        present, plan = values[: len(DEGRADATIONS)], values[len(DEGRADATIONS) :]
        stops = np.flatnonzero(plan == actions.stop)
        plan = plan[: stops[0]] if len(stops) else plan
        if not np.isin(present, (0, 1)).all() or (plan < 0).any() or (plan > actions.stop).any():
            raise _Malformed("not indices")
        degradations = tuple(name for name, there in zip(DEGRADATIONS, present, strict=True) if there)
        return PlanAnswer(_checked([int(index) for index in plan], max_plan), degradations)
    except _Malformed as malformed:
        return PlanAnswer(reason=str(malformed))
    except Exception:  # whatever numpy makes of an object that is no array
        return PlanAnswer(reason="not indices")
