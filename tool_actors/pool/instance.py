"""The actor that runs tools and metrics: one process, one batch at a time; on a GPU two, each on a stream of its own."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tool_actors.executor import Quantize, Scorer, run_tool
from tool_actors.pool.config import Placement
from tool_actors.pool.messages import Outcome, Pair, Pixels, Service
from tool_actors.pool.pixels import PixelsLost, fetch
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

    def run(self, tool: str, images: Sequence[Pixels], quantize: Quantize) -> list[Outcome]:
        """One tool on images of one shape."""
        found = fetch(images)
        there = [each for each in found if not isinstance(each, PixelsLost)]
        start = time.perf_counter()
        with own_stream(self.device):
            outputs = iter(run_tool(self.toolbox[tool], there, quantize, self.device) if there else ())
        share = (time.perf_counter() - start) / max(len(there), 1)
        answers = [each if isinstance(each, PixelsLost) else next(outputs) for each in found]
        return [_failed(each, share) if isinstance(each, Exception) else _done(each, share) for each in answers]

    def run_apart(self, tool: str, images: Sequence[Pixels], quantize: Quantize) -> list:
        """The outcomes without their pixels; and, image by image, the pixels, each for an object of its own."""
        outcomes = self.run(tool, images, quantize)
        return [[outcome._replace(value=None) for outcome in outcomes], *(outcome.value for outcome in outcomes)]

    def score(self, service: Service, scorer: Scorer, pairs: Sequence[Pair]) -> list[Outcome]:
        """Metric vectors of pairs of one shape."""
        found = fetch([each for pair in pairs for each in pair])
        pairs = [Pair(*pair) for pair in zip(found[::2], found[1::2], strict=True)]
        lost = {index: each for index, pair in enumerate(pairs) for each in pair if isinstance(each, PixelsLost)}
        scored = iter(self._score(service, scorer, [pair for index, pair in enumerate(pairs) if index not in lost]))
        return [_failed(lost[index], 0.0) if index in lost else next(scored) for index in range(len(pairs))]

    def _score(self, service: Service, scorer: Scorer, pairs: Sequence[Pair]) -> list[Outcome]:
        if not pairs:
            return []
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
            return [outcome for pair in pairs for outcome in self._score(service, scorer, [pair])]
        share = (time.perf_counter() - start) / len(pairs)
        return [_done(vector, share) for vector in vectors]


@contextlib.contextmanager
def own_stream(device: str) -> Iterator[None]:
    """On a GPU, work on a stream of its own: one batch is copied while another computes."""
    if device == "cpu":
        yield
        return
    import torch

    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield


def _done(value: np.ndarray, seconds: float) -> Outcome:
    return Outcome(value, seconds=seconds, size=value.nbytes)


def _failed(error: Exception, seconds: float) -> Outcome:
    return Outcome(error=error, seconds=seconds)
