"""A vision-language model in DepictQA's place: it perceives, tells how severe a degradation is, and compares two images."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ir_env.planner import Observation, Tried
from ir_env.view import reduced
from policies.memory import ImageMemory, digest
from policies.planners.agenticir import LEVELS
from policies.planners.perception import tasks_of
from policies.remote import ChatEndpoint
from tool_actors.tasks import DEGRADATIONS, TASK_OF

__all__ = ["VLMJudge", "parse_choice", "parse_degradations"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

PERCEIVE = f"""\
Which of these degradations does the photograph suffer from: {", ".join(name for name in DEGRADATIONS if name != "low_resolution")}? \
Answer with a JSON list of their names, such as ["rain", "noise"], and nothing else; with [] if there is none."""
SEVERITY = f"""\
How severe is the {{}} in the photograph? Answer with one of {", ".join(LEVELS)}, and nothing else."""
SIDES = ("former", "latter", "neither")
COMPARE = f"""\
These are two photographs of one scene. Which has the better quality, the former or the latter? Answer with one of {", ".join(SIDES)}, and \
nothing else."""
MEDIUM = 2
"""The least of :data:`LEVELS` at which a task has failed."""


class VLMJudge:
    """What AgenticIR asks DepictQA, asked of any vision-language model behind an endpoint, once per question and image.

    Its three methods take the places of an ``AgenticIRPlanner``'s ``perceive``, ``severity`` and ``compare``; :meth:`perceive` that of any
    planner's. Answers are parsed strictly: where one says nothing that was asked for, or does not come, nothing is perceived, the level is
    the middle one, with which a task has failed, and the former image stays. :attr:`counts` holds the ``answers``, and how many were
    ``malformed``.

    Args:
        endpoint: of the model.
        longest: side in pixels to which a larger photograph is reduced.
    """

    def __init__(self, endpoint: ChatEndpoint, longest: int = 1024):
        self.endpoint, self.longest = endpoint, longest
        self.counts: Counter[str] = Counter()
        self._told: ImageMemory[Any] = ImageMemory()

    def perceive(self, observation: Observation) -> Collection[str]:
        """The tasks that undo what it sees; whether an image is small is seen from its size."""
        return tasks_of(self._ask(PERCEIVE, [observation.trajectory[0]], parse_degradations) or (), observation)

    def severity(self, image: np.ndarray, task: str) -> int:
        """The level of what a task undoes, after super-resolution of blur: an index of :data:`LEVELS`."""
        undone = next((name.replace("_", " ") for name in TASK_OF if TASK_OF[name] == task), task)
        question = SEVERITY.format("blur" if task == "super_resolve" else undone)
        level = self._ask(question, [image], partial(parse_choice, choices=LEVELS))
        return MEDIUM if level is None else LEVELS.index(level)

    def latter_is_better(self, former: Tried, latter: Tried) -> bool:
        return self._ask(COMPARE, [former.image, latter.image], partial(parse_choice, choices=SIDES)) == "latter"

    def _ask(self, question: str, images: Sequence[np.ndarray], read: Callable[[str], T | None]) -> T | None:
        """What an answer says; None if it is malformed, and if none came, which is not remembered."""
        key = (question, *map(digest, images))
        if key not in self._told:
            pictures = [{"type": "image", "image": reduced(image, self.longest)} for image in images]
            [answer] = self.endpoint.ask_all([[{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}]])
            if answer is None:
                return None
            self._told[key] = told = read(answer)
            self.counts["answers"] += 1
            if told is None:
                self.counts["malformed"] += 1
                logger.warning("%r was asked %r, and says %.80r", self.endpoint.model, question, answer)
        return self._told[key]


def parse_degradations(text: object) -> tuple[str, ...] | None:
    """The degradations that a JSON list names; None if the text is anything else.

    >>> parse_degradations('["rain", "noise"]')
    ('rain', 'noise')
    """
    try:
        names = json.loads(text) if isinstance(text, str) and len(text) < 1000 else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(names, list) or any(name not in DEGRADATIONS for name in names) or len(set(names)) < len(names):
        return None
    return tuple(names)


def parse_choice(text: str, choices: Sequence[str]) -> str | None:
    """That of the choices which the text is, whatever its case, quotes and full stop; None if it is anything else.

    >>> parse_choice("Very low.", LEVELS)
    'very low'
    """
    told = text.strip(" \n\"'.").lower()
    return told if told in choices else None
