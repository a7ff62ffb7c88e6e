"""What goes between OpenEnv's client and server."""

from __future__ import annotations

import base64
import io

import numpy as np
from openenv.core.env_server.types import Action, Observation, State
from PIL import Image
from pydantic import Field


class RestorationAction(Action):
    """Call a tool."""

    tool: str = Field(description="name of a tool of the observation's `tools`, or `stop`")


class RestorationObservation(Observation):
    """The image as it is now, and what may be called; ``reward`` and ``done`` are those of the call."""

    image: str = Field(description="the current image, PNG in base64")
    tools: dict[str, str] = Field(description="tools that may be called now -> the task of each")
    calls: list[str] = Field(default_factory=list, description="calls so far: tools, `stop`, `malformed`")
    metrics: dict[str, float] = Field(default_factory=dict, description="quality of the image, in the metrics' own units and orientation")
    sample: str = Field(default="", description="the sample, which reset(sample=...) replays")
    combo: str = Field(default="", description="its degradations, joined by +")
    invalid: bool = Field(default=False, description="the call was malformed or forbidden: nothing ran")
    truncated: bool = Field(default=False, description="the episode ended because it was too long")
    error: str = Field(default="", description="the tool's failure, which ended the episode")

    @property
    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3), RGB."""
        with Image.open(io.BytesIO(base64.b64decode(self.image))) as opened:
            return np.array(opened.convert("RGB"))


class RestorationState(State):
    """Of a session."""

    sample: str = ""
    total_reward: float = 0.0


def as_png(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()
