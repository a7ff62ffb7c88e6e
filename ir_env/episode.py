"""One image on its way: what an episode holds, and what a step tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from tool_actors.executor import ImageState, Result

__all__ = ["Episode", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What one step did; as it is by default, what a reset did."""

    reward: float = 0.0
    tool: str = ""
    """Name of the tool that was asked for, ``stop`` or ``malformed``; empty at a reset."""
    invalid: bool = False
    """The action was forbidden or malformed: nothing ran."""
    seconds: float = 0.0
    """Running time of the tool."""
    terminated: bool = False
    truncated: bool = False
    error: str = ""
    """The tool's failure, which ended the episode."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What the reward of a whole plan is made of, by name."""


@dataclass
class Episode:
    """One image on its way."""

    sample: str
    """Identifier of the sample, or the name of the user's image."""
    combo: str
    """The degradations, joined by ``+``; empty if unknown."""
    reference: np.ndarray | None
    """uint8 (H, W, 3), clean; None if there is none."""
    states: list[ImageState]
    """The degraded image, then the state after each step."""
    scores: list[np.ndarray]
    """Metric vector (K,) of each state, in the metrics' own orientation."""
    mask: np.ndarray
    """int8 (n,): which actions are allowed now."""
    undefined: int = 0
    """Metrics that have no value on the current image, and count as their worst in :attr:`scores`."""
    history: list[int] = field(default_factory=list)
    """Indices of the actions taken, forbidden and malformed ones too."""
    applied: list[int] = field(default_factory=list)
    """Indices of the actions that made :attr:`states`, one less than these."""
    seconds: list[float] = field(default_factory=list)
    """Running time of the tool of each step."""
    total_reward: float = 0.0
    executions: int = 0
    """Tools run for this image so far: those taken, and those tried and not taken."""
    tried: dict[tuple[int, ...], Result] = field(default_factory=dict)
    """By actions in order, what was tried from the current image on: it is not run again when it is then taken."""
    terminated: bool = False
    truncated: bool = False
    error: str = ""
    """The tool's failure, if one ended the episode."""

    @property
    def state(self) -> ImageState:
        return self.states[-1]

    @property
    def done(self) -> bool:
        return self.terminated or self.truncated

    def fork(self) -> Episode:
        """The same episode up to here, to go on with in another way; images are shared, they are never written to."""
        own = {name: list(getattr(self, name)) for name in ("states", "scores", "history", "applied", "seconds")}
        return replace(self, **own, tried=dict(self.tried))
