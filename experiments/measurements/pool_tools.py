"""Tools for measuring a pool: they cost what they say, or tell what was done with them."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from tool_actors.toolbox import Tool, ToolSpec


class Identity(Tool):
    """Returns its input: what is left is the cost of calling."""

    def __init__(self, name: str = "bench.identity"):
        self.spec = ToolSpec(name, "denoise", fingerprint=name)

    def __call__(self, images):
        return images


class Sleeping(Tool):
    """Sleeps as a batch on a GPU would take: a start, and a share per image, with a spread that the images decide.

    Args:
        name: `family.variant`.
        start_s: per batch.
        image_s: per image.
        spread: sigma of the log-normal factor on an image's share.
    """

    def __init__(self, name: str, start_s: float, image_s: float, spread: float = 0.3):
        self.spec = ToolSpec(name, "denoise", fingerprint=f"{name}{start_s}{image_s}{spread}")
        self.start_s, self.image_s, self.spread = start_s, image_s, spread

    def __call__(self, images):
        time.sleep(self.seconds([float(each.double().mean()) for each in images]))
        return 1 - images

    def seconds(self, means: list[float]) -> float:
        factors = [np.random.default_rng(int(mean * 2**40)).lognormal(0.0, self.spread) for mean in means]
        return self.start_s + self.image_s * sum(factors)


class Counted(Tool):
    """A tool that writes a line for every image it begins to work on, so that executions that never ended are counted, too."""

    def __init__(self, tool: Tool, folder: Path):
        self.tool, self.folder = tool, folder
        self.spec = replace(tool.spec, fingerprint=f"counted {tool.spec.fingerprint}")

    def __call__(self, images):
        # the blank image that an instance warms up with is nobody's request
        hashes = [hashlib.blake2b(each.numpy().tobytes(), digest_size=8).hexdigest() for each in images.contiguous() if each.any()]
        with open(self.folder / f"{os.getpid()}.log", "a") as file:
            file.writelines(f"{self.spec.name} {each}\n" for each in hashes)
        return self.tool(images)


def executions(folder: Path) -> dict[str, int]:
    """How often each (tool, image) was begun, from the lines of :class:`Counted`."""
    counts: dict[str, int] = {}
    for path in folder.glob("*.log"):
        for line in path.read_text().splitlines():
            counts[line] = counts.get(line, 0) + 1
    return counts
