"""One image on its way: what an episode holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from tool_actors.executor import ImageState


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
    history: list[int] = field(default_factory=list)
    """Indices of the actions taken, forbidden and malformed ones too."""
    applied: list[int] = field(default_factory=list)
    """Indices of the actions that made :attr:`states`, one less than these."""
    seconds: list[float] = field(default_factory=list)
    """Running time of the tool of each step."""
    total_reward: float = 0.0
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
        return replace(self, **own)
