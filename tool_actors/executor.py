"""Runs tools on image states: in order, one result per request, identical work once.

>>> executor = LocalExecutor(load_toolbox("classical"))
>>> state = ImageState.from_pixels(photo)                      # uint8 (H, W, 3)
>>> [result] = executor.run([Request(state, "nlm.strong")])
>>> result.state.pixels
"""

from __future__ import annotations

import hashlib
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import numpy as np

from tool_actors.cache import ByteLRU
from tool_actors.errors import IrEnvError, ToolFailure
from tool_actors.threads import torch_threads
from tool_actors.toolbox import Tool, Toolbox

__all__ = [
    "Executor",
    "ExecutorStats",
    "ImageState",
    "LocalExecutor",
    "Quantize",
    "Request",
    "Result",
    "Scorer",
    "check_pixels",
    "run_tool",
]

Quantize = Literal["uint8", "none"]
CACHED_SCORES, SCORE_OVERHEAD = 16 << 20, 512
"""Bytes of cached scores, and what one takes beside its numbers."""
MIN_TILE = 128
MAX_BATCH_PIXELS = 4 * 1024 * 1024
"""A batch is cut into parts of at most this many pixels, so that memory does not grow with the number of rollouts."""


@dataclass(frozen=True, eq=False)
class ImageState:
    """An image between steps, with the history that made it.

    Two states with the same ``key`` have the same pixels, so results are shared by key, and no image is hashed twice.
    """

    pixels: np.ndarray
    """uint8 (H, W, 3), or float32 (H, W, 3) in [0, 1] under ``quantize="none"``. Never written to."""
    root: str
    """Hash of the image at the start of the chain."""
    path: tuple[str, ...] = ()
    """Fingerprints of the tools applied since, in order."""

    @classmethod
    def from_pixels(cls, pixels: np.ndarray, quantize: Quantize = "uint8") -> ImageState:
        pixels = check_pixels(pixels)
        if quantize == "none" and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.float32) / 255.0
        elif quantize == "uint8" and pixels.dtype != np.uint8:
            pixels = _to_uint8(pixels)
        pixels = np.ascontiguousarray(pixels)
        digest = hashlib.blake2b(pixels.data, digest_size=16)
        digest.update(f"{pixels.shape}{pixels.dtype}".encode())
        return cls(pixels, digest.hexdigest())

    @property
    def key(self) -> tuple[str, ...]:
        return (self.root, *self.path)

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.pixels.shape

    def as_uint8(self) -> np.ndarray:
        """The pixels as uint8 (H, W, 3)."""
        return self.pixels if self.pixels.dtype == np.uint8 else _to_uint8(self.pixels)


@dataclass(frozen=True, eq=False)
class Request:
    """One tool on one state."""

    state: ImageState
    tool: str


@dataclass(frozen=True, eq=False)
class Result:
    """What a request gave: a new state, or an error."""

    state: ImageState | None
    error: Exception | None = None
    """The tool's :class:`ToolFailure`, or what kept a pool from running it."""
    seconds: float = 0.0
    """What the tool took for this image, its share of its batch; a shared or cached result keeps the time of its one execution."""
    cached: bool = False
    """True if no tool ran for this request: the result was in the cache, or an identical request of the same call made it."""


@dataclass
class ExecutorStats:
    """Counters since the executor was made."""

    requests: int = 0
    """Requests answered."""
    executions: int = 0
    """Images that a tool really ran on."""
    calls: float = 0
    """Calls of :func:`run_tool`, each on images of one shape; of a call that was shared with other callers, this one's share."""
    hits: int = 0
    """Requests answered from the cache or by an identical request of the same call."""
    failures: int = 0
    """Requests whose tool failed."""
    seconds: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    """Running time by tool."""


class Scorer(Protocol):
    """A fixed list of image-quality metrics, such as :class:`ir_env.metrics.MetricSuite`; picklable."""

    device: str

    @property
    def names(self) -> tuple[str, ...]:
        """Which metrics, in the order of the vector; two scorers of equal names give equal vectors."""
        ...

    def score(self, images: Sequence[np.ndarray], references: Sequence[np.ndarray | None]) -> np.ndarray:
        """float32 (N, K)."""


class Executor(Protocol):
    """Runs tools and metrics on states: in order, one answer each."""

    toolbox: Toolbox
    stats: ExecutorStats
    quantize: Quantize

    def run(self, requests: Sequence[Request]) -> list[Result]: ...

    def score(self, scorer: Scorer, states: Sequence[ImageState], references: Sequence[np.ndarray | None]) -> list[np.ndarray]: ...


class LocalExecutor:
    """Runs tools in this process.

    Identical requests of one call run once; requests for one tool and one shape run in one call of :func:`run_tool`; results are cached by
    the hash of the input image, the fingerprints of the tools applied so far and the quantize mode.

    Args:
        toolbox: the tools that requests may name.
        quantize: ``"uint8"`` rounds every state, ``"none"`` keeps float32 between steps (docs/design.md, Images).
        cache_bytes: bound of the prefix cache; 0 turns it off.
        device: where tools run.
        threads: of torch for one image on a CPU. More than one is faster for big images, but may change the last bits (see
            :func:`run_tool`), so results may differ from those of a pool.
    """

    def __init__(self, toolbox: Toolbox, quantize: Quantize = "uint8", cache_bytes: int = 128 << 20, device: str = "cpu", threads: int = 1):
        if quantize not in ("uint8", "none"):
            raise IrEnvError(f"quantize must be 'uint8' or 'none', not {quantize!r}")
        import torch  # noqa: F401  here, so that no tool's running time holds it

        self.toolbox = toolbox
        self.quantize: Quantize = quantize
        self.device = device
        self.threads = threads
        self.stats = ExecutorStats()
        self._cache = ByteLRU(cache_bytes)
        self._scores = ByteLRU(min(CACHED_SCORES, cache_bytes))

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Answer requests, in order.

        A tool's own exception comes back in :attr:`Result.error`; it never takes other requests down.

        Raises:
            UnknownToolError: a request names a tool that the toolbox does not hold (nothing is run then).
        """
        tools = [self.toolbox[request.tool] for request in requests]
        found: dict[int, Result] = {}
        pending: dict[tuple, list[int]] = {}
        for index, (request, tool) in enumerate(zip(requests, tools, strict=True)):
            if not tool.spec.deterministic:
                pending[("once", index)] = [index]
                continue
            key = (*request.state.key, tool.spec.fingerprint)
            hit = self._cache.get(key)
            if hit is not None:
                found[index] = replace(hit, cached=True)
            else:
                pending.setdefault(key, []).append(index)

        batches: dict[tuple, list[tuple]] = defaultdict(list)
        for key, indices in pending.items():
            first = requests[indices[0]]
            batches[(first.tool, first.state.shape)].append(key)
        for (name, shape), keys in batches.items():
            per_call = max(1, MAX_BATCH_PIXELS // (shape[0] * shape[1]))
            for start in range(0, len(keys), per_call):
                part = keys[start : start + per_call]
                states = [requests[pending[key][0]].state for key in part]
                for key, result in zip(part, self._run_batch(self.toolbox[name], states), strict=True):
                    for position, index in enumerate(pending[key]):
                        found[index] = result if position == 0 else replace(result, cached=True)
                    if result.state is not None and key[0] != "once":
                        self._cache.put(key, result, result.state.pixels.nbytes)

        results = [found[index] for index in range(len(requests))]
        self.stats.requests += len(requests)
        self.stats.hits += sum(result.cached for result in results)
        self.stats.failures += sum(result.error is not None for result in results)
        return results

    def score(self, scorer: Scorer, states: Sequence[ImageState], references: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        """Metric vectors (K,) of states; a state that was scored before is looked up, and identical ones are scored once."""
        marks = {id(reference): _mark(reference) for reference in references}
        keys = [(scorer.names, state.key, marks[id(reference)]) for state, reference in zip(states, references, strict=True)]
        found: dict[tuple, np.ndarray] = {}
        missing: dict[tuple, int] = {}
        for index, key in enumerate(keys):
            if key in found or key in missing:
                continue
            hit = self._scores.get(key)
            if hit is not None:
                found[key] = hit
            else:
                missing[key] = index
        if missing:
            chosen = list(missing.values())
            vectors = scorer.score([states[i].pixels for i in chosen], [references[i] for i in chosen])
            for index, vector in zip(chosen, vectors, strict=True):
                found[keys[index]] = vector
                self._scores.put(keys[index], vector, vector.nbytes + SCORE_OVERHEAD)
        return [found[key] for key in keys]

    def _run_batch(self, tool: Tool, states: list[ImageState]) -> list[Result]:
        start = time.perf_counter()
        outputs = run_tool(tool, [state.pixels for state in states], self.quantize, self.device, self.threads)
        seconds = time.perf_counter() - start
        self.stats.calls += 1
        self.stats.executions += len(states)
        self.stats.seconds[tool.spec.name] += seconds
        share = seconds / len(states)
        results = []
        for state, output in zip(states, outputs, strict=True):
            if isinstance(output, ToolFailure):
                results.append(Result(None, output, share))
                continue
            step = tool.spec.fingerprint if tool.spec.deterministic else uuid.uuid4().hex
            results.append(Result(ImageState(output, state.root, (*state.path, step)), None, share))
        return results


def run_tool(
    tool: Tool, images: list[np.ndarray], quantize: Quantize = "uint8", device: str = "cpu", threads: int = 1
) -> list[np.ndarray | ToolFailure]:
    """Run one tool on images of one shape: on a CPU image by image and with one thread of torch, on another device as one batch.

    How a convolution or a matrix product rounds may depend on how many images go through it at once, and on how many threads share it, on
    some processors and not on others. Image by image in one thread, a result cannot depend on either. That costs little: on one core, 16
    single images of 64 or 128 pixels take the project's convolutional networks 0.9 to 1.4 times as long as a batch of 16, and its curve
    networks 1.5 to 2.1 times, which is at most 0.8 ms more per image; more cores are used by more instances of a pool. A tool whose spec is
    ``batch_invariant`` gets its batches on a CPU, too. A GPU needs batches to be fast, so there a value may differ in its last bits, and
    a state by one level now and then.

    If a batch raises, its images are tried one by one, so that only those that fail are answered with a failure. If memory runs out, the
    batch is halved, and for a single image the tile, down to 128 pixels.

    Returns:
        Per image the new pixels, or a :class:`ToolFailure` that names tool, shape and cause.
    """
    if device != "cpu":
        return _run_together(tool, images, quantize, device)
    parts = [images] if tool.spec.batch_invariant else [[image] for image in images]
    with torch_threads(threads):
        return [output for part in parts for output in _run_together(tool, part, quantize, device)]


def _run_together(tool: Tool, images: list[np.ndarray], quantize: Quantize, device: str) -> list[np.ndarray | ToolFailure]:
    import torch

    shape = images[0].shape
    stacked = np.stack(images)
    try:
        with torch.inference_mode():
            batch = torch.from_numpy(stacked).to(device).permute(0, 3, 1, 2).float()
            if stacked.dtype == np.uint8:
                batch.div_(255.0)  # in place, here and below: of 48 megapixels each copy takes 576 MB
            output = tool(batch)
            del batch
            expected = (len(images), 3, shape[0] * tool.spec.scale, shape[1] * tool.spec.scale)
            if tuple(output.shape) != expected:
                raise ValueError(f"it returned shape {tuple(output.shape)} where {expected} was due")
            finite = torch.isfinite(output).flatten(1).all(1).cpu().numpy()
            output = output.clamp(0, 1)
            if quantize == "uint8":
                output = output.mul_(255.0).round_().to(torch.uint8)
            pixels = output.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    except Exception as error:
        full = _out_of_memory(error)
        if full and device != "cpu":
            torch.get_device_module(device).empty_cache()
        if len(images) > 1:
            size = -(-len(images) // 2) if full else 1
            parts = [images[start : start + size] for start in range(0, len(images), size)]
            return [output for part in parts for output in _run_together(tool, part, quantize, device)]
        smaller = min(tool.spec.tile or 0, max(shape[:2])) // 2
        if full and smaller >= MIN_TILE and hasattr(tool, "with_tile"):
            return _run_together(tool.with_tile(smaller), images, quantize, device)
        advice = ". Even tiles do not help: use a smaller image, or an instance with more memory" if full else ""
        failure = ToolFailure(tool.spec.name, shape, f"{type(error).__name__}: {error}{advice}")
        failure.__cause__ = error
        return [failure]
    return [
        pixels[i].copy() if finite[i] else ToolFailure(tool.spec.name, shape, "it returned NaN or infinity") for i in range(len(images))
    ]


def _mark(reference: np.ndarray | None) -> bytes:
    """Tells references apart by their pixels; none is no pixels."""
    if reference is None:
        return b""
    return hashlib.blake2b(np.ascontiguousarray(reference).data, digest_size=16, person=str(reference.shape).encode()[:16]).digest()


def _out_of_memory(error: Exception) -> bool:
    import torch

    told = str(error) if isinstance(error, RuntimeError) else ""
    # of a CPU's allocator, and of MPS, neither of which has a class of its own
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in told or "backend out of memory" in told


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """The array, if it can be a state; raises :class:`IrEnvError` that says what is wrong with it otherwise."""
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3:
        found = getattr(pixels, "shape", type(pixels).__name__)
        raise IrEnvError(f"an image must be an array of shape (H, W, 3), RGB; this is {found}")
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype not in (np.float32, np.float64):
        raise IrEnvError(f"an image must be uint8, or float in [0, 1]; this is {pixels.dtype}")
    if not np.isfinite(pixels).all() or pixels.min() < -1e-6 or pixels.max() > 1 + 1e-6:
        raise IrEnvError(f"a float image must be finite and in [0, 1]; this one spans {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.float32, copy=False)


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(pixels * 255.0), 0, 255).astype(np.uint8)
