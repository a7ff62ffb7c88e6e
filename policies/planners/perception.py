"""Perception, the exchangeable part of a planner that decides by tasks: which of them does a degraded image need?

The trained encoder tells, or the true labels, or a vision-language model behind an endpoint; or a function of one's own.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection

import numpy as np

from ir_env.degradations import parse_combo
from ir_env.planner import Observation
from ir_env.view import reduced
from policies.memory import ImageMemory, digest
from policies.remote import ChatEndpoint
from tool_actors.tasks import DEGRADATIONS, TASK_OF

__all__ = ["EncoderPerception", "KnownDegradations", "Perceive", "VLMPerception", "parse_degradations", "tasks_of"]

logger = logging.getLogger(__name__)

Perceive = Callable[[Observation], Collection[str]]
"""From what a planner sees to the tasks that the degraded image, ``observation.trajectory[0]``, needs."""


def tasks_of(degradations: Collection[str], observation: Observation) -> set[str]:
    """What undoes the degradations that are seen; whether an image is low-resolution is told by its size alone, as in AgenticIR."""
    enlarging = {observation.actions[i].task for i in np.flatnonzero(observation.action_mask[:-1])} & {"super_resolve"}
    return {TASK_OF[name] for name in set(degradations) - {"low_resolution"}} | enlarging


class KnownDegradations:
    """Perception that cannot err: the degradations are told.

    Args:
        combo: of the sample, e.g. ``"rain+haze"``.
    """

    def __init__(self, combo: str):
        self.tasks = tuple(TASK_OF[degradation] for degradation in parse_combo(combo))

    def __call__(self, observation: Observation) -> Collection[str]:
        return self.tasks


class EncoderPerception:
    """Perception by the encoder that comes with the SimpleCall-style policy; whether an image is small is seen from its size.

    Args:
        share: least probability with which a degradation counts as there.
    """

    def __init__(self, share: float = 0.5):
        from policies.simplecall.encoders import SmallCNN

        self.share = share
        self._encoder = SmallCNN().eval()
        self._told: ImageMemory[dict[str, float]] = ImageMemory()

    def __call__(self, observation: Observation) -> Collection[str]:
        shares = self.probabilities(observation.trajectory[0])
        return tasks_of([name for name, share in shares.items() if share >= self.share], observation)

    def probabilities(self, image: np.ndarray) -> dict[str, float]:
        """With which probability each degradation is there."""
        import torch

        key = digest(image)
        if key not in self._told:
            shown = self._encoder.view.look([image])
            with torch.no_grad():
                present, _ = self._encoder.told(self._encoder({name: torch.from_numpy(each)[None] for name, each in shown.items()}))
            self._told[key] = dict(zip(DEGRADATIONS, present[0].sigmoid().tolist(), strict=True))
        return self._told[key]


QUESTION = f"""\
Which of these degradations does the photograph suffer from: {", ".join(name for name in DEGRADATIONS if name != "low_resolution")}? \
Answer with a JSON list of their names, such as ["rain", "noise"], and nothing else; with [] if there is none."""


class VLMPerception:
    """Perception by a vision-language model behind an endpoint, asked once per image.

    What it answers is parsed strictly: where it is no list of names, nothing is perceived, and the log says so. :attr:`counts` holds
    ``answers``, and ``malformed`` ones.

    Args:
        endpoint: of the model.
        longest: side in pixels to which a larger photograph is reduced.
    """

    def __init__(self, endpoint: ChatEndpoint, longest: int = 1024):
        self.endpoint, self.longest = endpoint, longest
        self.counts: Counter[str] = Counter()
        self._seen: ImageMemory[tuple[str, ...]] = ImageMemory()

    def __call__(self, observation: Observation) -> Collection[str]:
        key = digest(observation.trajectory[0])
        if key not in self._seen:
            self._seen[key] = self._ask(observation.trajectory[0])
        return tasks_of(self._seen[key], observation)

    def _ask(self, image: np.ndarray) -> tuple[str, ...]:
        content = [{"type": "image", "image": reduced(image, self.longest)}, {"type": "text", "text": QUESTION}]
        answer = self.endpoint.ask([{"role": "user", "content": content}])
        seen = parse_degradations(answer)
        self.counts["answers"] += 1
        if seen is None:
            self.counts["malformed"] += 1
            logger.warning("%r names no list of degradations: %.80r; nothing is perceived", self.endpoint.model, answer)
        return seen or ()


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
