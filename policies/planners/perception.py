"""Perception, the exchangeable part of a planner that decides by tasks: which of them does a degraded image need?

The trained encoder tells, or the true labels, or a vision-language model behind an endpoint (:mod:`policies.planners.vlm_judge`); or a
function of one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from ir_env.degradations import parse_combo
from ir_env.episode import Episode
from ir_env.planner import Observation
from policies.memory import ImageMemory, digest
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS, TASK_OF

__all__ = ["EncoderPerception", "KnownDegradations", "Labels", "Perceive", "tasks_of"]

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


class Labels:
    """The same for many images, whose degradations are told before a planner begins with them, as ``ir-env bench`` does."""

    def __init__(self):
        self._known: ImageMemory[Perceive] = ImageMemory()

    def tell(self, episodes: Sequence[Episode]) -> None:
        """The degradations of fresh episodes, by the pixels of their images."""
        for episode in episodes:
            if not episode.combo:
                raise IrEnvError(f"{episode.sample}: nobody knows its degradations, so no planner can perceive by labels")
            self._known[digest(episode.state.as_uint8())] = KnownDegradations(episode.combo)

    def __call__(self, observation: Observation) -> Collection[str]:
        known = self._known.get(digest(observation.trajectory[0]))
        if known is None:
            raise IrEnvError("perception by labels was not told those of this image: only `ir-env bench` can tell them")
        return known(observation)


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
