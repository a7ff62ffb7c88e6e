"""The actor that runs tools and metrics: one process, one batch at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from tool_actors.errors import ToolFailure
from tool_actors.executor import Quantize, Scorer, run_tool
from tool_actors.pool.config import Placement
from tool_actors.pool.messages import Outcome, Pair, Service
from tool_actors.threads import limit_threads
from tool_actors.toolboxes import load_toolbox


class ToolInstance:
    """Holds the tools of one placement.

    Args:
        toolbox: see :func:`tool_actors.toolboxes.load_toolbox`; only the placement's part of it is loaded.
        placement: which tools, and on which device.
    """

    def __init__(self, toolbox: Any, placement: Placement):
        limit_threads(max(1, int(placement.num_cpus)))
        self.toolbox = load_toolbox(toolbox, placement.holds)
        self.device = placement.device
        self._scorers: dict[Service, Scorer] = {}
        # what a tool's first call loads and allocates is not for a caller to wait for
        blank = [np.zeros((32, 32, 3), np.uint8)]
        for tool in self.toolbox:
            if placement.warm_up:
                run_tool(tool, blank, "uint8", self.device)

    def describe(self) -> tuple[list, int]:
        """The specs of the tools that are there, and this process."""
        return [tool.spec for tool in self.toolbox], os.getpid()

    def run(self, tool: str, images: Sequence[np.ndarray], quantize: Quantize) -> list[Outcome]:
        """One tool on images of one shape."""
        start = time.perf_counter()
        outputs = run_tool(self.toolbox[tool], list(images), quantize, self.device)
        share = (time.perf_counter() - start) / len(images)
        return [_failed(each, share) if isinstance(each, ToolFailure) else _done(each, share) for each in outputs]

    def score(self, service: Service, scorer: Scorer, pairs: Sequence[Pair]) -> list[Outcome]:
        """Metric vectors of pairs of one shape."""
        if service not in self._scorers:
            # the first one stays, with the metrics' weights that it loads
            scorer.device = self.device
            self._scorers[service] = scorer
        start = time.perf_counter()
        try:
            vectors = self._scorers[service].score(*zip(*pairs, strict=True))
        except Exception as error:
            if len(pairs) == 1:
                return [_failed(error, time.perf_counter() - start)]
            return [outcome for pair in pairs for outcome in self.score(service, scorer, [pair])]
        share = (time.perf_counter() - start) / len(pairs)
        return [_done(vector, share) for vector in vectors]


def _done(value: np.ndarray, seconds: float) -> Outcome:
    return Outcome(value, seconds=seconds, size=value.nbytes)


def _failed(error: Exception, seconds: float) -> Outcome:
    return Outcome(error=error, seconds=seconds)
