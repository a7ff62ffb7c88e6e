"""Restores one image with any policy: the door from Python, and what ``ir-env restore`` calls for each of its files.

>>> from policies import restore
>>> restore("photo.jpg").save("better.jpg")
>>> restore(array).array                          # as the array was: uint8, uint16 or float, grey, with transparency
>>> Restorer("mair", without=["super_resolve"], device="cuda")(image).tools
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ir_env import __version__
from ir_env.actions import MALFORMED
from ir_env.episode import Episode
from ir_env.image_files import Photograph, as_array, photograph_of, write_photograph
from ir_env.metrics import MetricSuite
from ir_env.planner import Planner, observation_of
from ir_env.process import DEFAULT_MAX_STEPS, PHOTO_LOW_RESOLUTION_BELOW, RestorationProcess
from policies.loading import DEFAULT, load_policy
from policies.planners import FixedPlan
from tool_actors.blended import Blended
from tool_actors.devices import Precision, check_precision, choose_device
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.executor import Executor, ImageState, LocalExecutor, Quantize, Request, Scorer
from tool_actors.make_executor import make_executor
from tool_actors.toolbox import Toolbox
from tool_actors.toolboxes import load_toolbox

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["EFFORTS", "NoMetrics", "Restored", "Restorer", "photograph_process", "restore"]

Effort = Literal["fast", "best"]
Watch = Callable[[Episode, list[dict[str, float] | None]], None]
EFFORTS: dict[str, tuple[float, int | None]] = {"fast": (3.0, 2), "best": (0.0, None)}
"""Thrift of a policy that knows it (:class:`policies.simplecall.planner.ObservationPlanner`), and most tools."""
SOFTWARE = f"ir_env {__version__}"
"""What is written into files, by which a result is known."""
TOLD = 5
"""Of the probabilities of a step, how many are told."""


class NoMetrics(MetricSuite):
    """Restoring plans without a reference; nobody reads these zeros."""

    def score(self, images, references):
        return np.zeros((len(images), len(self.metrics)), np.float32)


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored image, and how it came about."""

    source: Photograph
    pixels: np.ndarray
    """RGB (H, W, 3): uint8, or float32 in [0, 1] where the source has more than 8 bits."""
    tools: tuple[str, ...]
    """In the order in which they ran."""
    policy: str
    episode: Episode
    process: RestorationProcess
    seconds: float
    thoughts: list[dict[str, float] | None] = field(default_factory=list)
    """Per step the greatest probabilities, by tool, or None where the policy cannot tell."""
    not_run: list[dict[str, str]] = field(default_factory=list)
    """The tools that were asked for and did not run, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """What a user should know."""

    @property
    def error(self) -> str:
        """The failure of the tool that ended the restoration early; empty if none did."""
        return self.episode.error

    @property
    def plan(self) -> str:
        return " + ".join(self.tools) or "nothing"

    @property
    def history(self) -> str:
        """What is told of it in the file."""
        return f"{self.plan} (policy: {self.policy})"

    @property
    def array(self) -> np.ndarray:
        """As the source was: its type, grey if it was grey, and its transparency."""
        return as_array(self.pixels, self.source)

    @property
    def image(self) -> Image.Image:
        """For Pillow, which holds 8 bits."""
        from PIL import Image

        return Image.fromarray(as_array(self.pixels, self.source, depth=8))

    def save(self, path: str | Path, quality: int | None = None, keep_grey: bool = False) -> list[str]:
        """Write it with the source's metadata; returns what the format cannot hold, see :func:`ir_env.image_files.write_photograph`."""
        return write_photograph(path, self.pixels, self.source, quality, keep_grey, SOFTWARE, self.history)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.array, dtype)


class Restorer:
    """A policy with its tools, loaded once, for any number of images.

    Args:
        policy: see :func:`policies.loading.load_policy`.
        toolbox: for planners that can use any.
        max_steps: most tools per image; by default the training's, or 6.
        seed: for planners that draw.
        device: where tools run, see :func:`tool_actors.devices.choose_device`.
        threads: of torch on a CPU; by default all cores.
        tile: longest side that a tool gets at once, in pixels; 0 for the whole image; by default each tool's own.
        precision: of the networks' arithmetic, ``fp32``, ``fp16`` or ``bf16``, see :func:`tool_actors.devices.check_precision`; by default
            each tool's own.
        strength: 0 to 1, of every tool that does not enlarge, see :class:`tool_actors.blended.Blended`.
        tasks: only tools of these tasks.
        without: no tools of these names or tasks.
        effort: ``fast`` takes few tools, where the policy is sure; ``best`` as many as it was trained to take.
        scale, size: the result is so many times larger, or its longer side has so many pixels; a tool enlarges what is too small.
        executor: ``pool`` or ``pool:NAME``, a running MC-Pool that runs the tools where, and as, it is set to; by default they run here.

    Raises:
        IrEnvError: the policy cannot restore, a tool or task is unknown, or the device is not there.
    """

    def __init__(
        self,
        policy: str | Path | Planner = DEFAULT,
        *,
        toolbox: Any = None,
        max_steps: int | None = None,
        seed: int = 0,
        device: str = "auto",
        threads: int | None = None,
        tile: int | None = None,
        precision: Precision | None = None,
        strength: float = 1.0,
        tasks: Collection[str] = (),
        without: Collection[str] = (),
        effort: Effort | None = None,
        scale: float | None = None,
        size: int | None = None,
        executor: str | None = None,
    ):
        if scale is not None and size is not None:
            raise IrEnvError("a scale and a size say the same thing: give one of them")
        if (scale is not None and not scale > 0) or (size is not None and size < 1):
            raise IrEnvError("scale and size must be greater than 0")
        self.planner = load_policy(policy, seed)
        if self.planner.needs_reference:
            raise IrEnvError(
                f"the policy {self.planner.name!r} looks at the clean image, which a photograph to restore does not have; choose another"
            )
        if effort is not None:
            if effort not in EFFORTS:
                raise UnknownNameError("effort", effort, EFFORTS)
            thrift, most = EFFORTS[effort]
            if hasattr(self.planner, "thrift"):
                self.planner.thrift = thrift  # pyrefly: ignore[missing-attribute]
            max_steps = max_steps or most
        self.scale, self.size, self.tasks, self.without = scale, size, tasks, without
        self.device, self.threads, self.max_steps = choose_device(device), threads or os.cpu_count() or 1, max_steps
        self.executor = executor
        process = photograph_process(self.planner, toolbox, max_steps, device=self.device, threads=self.threads, executor=executor)
        if precision is not None:
            check_precision(precision, self.device)
        if executor is None:
            process.executor.toolbox = _adjusted(process.executor.toolbox, tile, precision, strength)
        elif tile is not None or precision is not None or strength != 1:
            raise IrEnvError("a pool's tools have their own tiles, precision and strength: leave these out, or the pool")
        self._processes = {process.executor.quantize: self._ready(process)}
        self.process = process

    def __call__(
        self,
        image: np.ndarray | Image.Image | str | Path | Photograph,
        name: str = "",
        watch: Watch = lambda episode, thoughts: None,
        like: Restored | None = None,
    ) -> Restored:
        """Restore an image.

        Args:
            image: a path, an image of Pillow, or an array (see :func:`ir_env.image_files.photograph_of`).
            name: for messages; by default the path.
            watch: is called with the episode, and what the policy thought so far, at the beginning and after every step; what it raises
                ends the restoration.
            like: take the tools that this restoration took, and do not ask the policy: frames of an animation would flicker if each had
                tools of its own.
        """
        start = time.perf_counter()
        source = image if isinstance(image, Photograph) else photograph_of(image)
        process = self._process_for(source)
        name = name or (str(image) if isinstance(image, str | Path) else "the image")
        episode = process.start_image(source.pixels, name=name)
        thoughts, notes = [], list(source.notes)
        given = iter([*like.episode.applied, process.actions.stop]) if like else None
        watch(episode, thoughts)
        while not episode.done:
            if given is not None:
                thoughts.append(None)
                process.step([episode], [next(given)])
            else:
                observation = observation_of(process, episode)
                [action] = self.planner.plan_batch([observation])
                thoughts.append(_told(self.planner.probabilities(observation), process))
                process.step([episode], [action])
            watch(episode, thoughts)
        if source.depth > 8 and any(map(_in_8_bits, (state.pixels for state in episode.states[1:]))):
            notes.append("a tool works in 8 bits, so no more than these are left of the image's depth")
        tools = [process.actions.name(index) for index in episode.applied]
        pixels = episode.state.pixels if source.depth > 8 else episode.state.as_uint8()
        pixels, enlarged = self._sized(pixels, source, process, notes)
        not_run = _not_run(episode, process, self.planner)
        seconds = time.perf_counter() - start
        return Restored(source, pixels, (*tools, *enlarged), self.planner.name, episode, process, seconds, thoughts, not_run, notes)

    def first_thoughts(self, image: np.ndarray | Image.Image | str | Path | Photograph) -> dict[str, float] | None:
        """What the policy would do first to an image: the greatest probabilities, by tool; None where it cannot tell. No tool runs."""
        source = image if isinstance(image, Photograph) else photograph_of(image)
        process = self._process_for(source)
        return _told(self.planner.probabilities(observation_of(process, process.start_image(source.pixels))), process)

    def _process_for(self, source: Photograph) -> RestorationProcess:
        """As the policy was trained; but nothing is rounded to 8 bits between tools where the image holds more."""
        quantize: Quantize = "none" if source.depth > 8 else self.process.executor.quantize
        if quantize not in self._processes:
            toolbox = self.process.executor.toolbox
            process = photograph_process(self.planner, toolbox, self.max_steps, quantize, self.device, self.threads, self.executor)
            self._processes[quantize] = self._ready(process)
        return self._processes[quantize]

    def _ready(self, process: RestorationProcess) -> RestorationProcess:
        process.suite = NoMetrics()
        actions = process.actions
        known = {action.tool for action in actions} | {action.task for action in actions}
        for name in (*self.tasks, *self.without):
            if name not in known:
                raise UnknownNameError("task or tool", name, known)
        left_out = {
            index
            for index, action in enumerate(actions)
            if {action.tool, action.task} & set(self.without) or (self.tasks and action.task not in self.tasks)
        }
        if (self.scale or self.size) and not isinstance(self.planner, FixedPlan):
            left_out |= actions.enlarging  # the size is given, and reached at the end
        elif self.scale or self.size:
            actions.low_resolution_below = 1 << 30
        actions.forbidden = frozenset(left_out)
        return process

    def _sized(self, pixels: np.ndarray, source: Photograph, process: RestorationProcess, notes: list[str]) -> tuple[np.ndarray, list[str]]:
        """The pixels in the size that was asked for, and the tool that enlarged them."""
        if not (self.scale or self.size):
            return pixels, []
        import cv2

        height, width = source.pixels.shape[:2]
        factor = self.scale or (self.size or 0) / max(height, width)
        target = max(1, round(width * factor)), max(1, round(height * factor))
        tools = []
        if target[0] > pixels.shape[1] or target[1] > pixels.shape[0]:
            toolbox = process.executor.toolbox
            names = [tool.spec.name for tool in toolbox if tool.spec.scale > 1 and not {tool.spec.name, tool.spec.task} & set(self.without)]
            if not names:
                notes.append("no tool that enlarges is in the toolbox: it is enlarged by interpolation")
            else:
                [result] = process.executor.run([Request(ImageState.from_pixels(pixels, process.executor.quantize), names[0])])
                if result.state is None:
                    raise result.error or IrEnvError(f"{names[0]}: no result")
                pixels, tools = result.state.pixels if source.depth > 8 else result.state.as_uint8(), names[:1]
        if pixels.shape[1::-1] != target:
            smaller = target[0] < pixels.shape[1]
            pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
            pixels = pixels if pixels.dtype == np.uint8 else np.clip(pixels, 0, 1)
        return pixels, tools


def restore(image: np.ndarray | Image.Image | str | Path, policy: str | Path = DEFAULT, **options: Any) -> Restored:
    """Restore an image in one line; the policy and its tools stay loaded for the next.

    Args:
        image: a path, an image of Pillow, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16, or floats in [0, 1].
        policy: see :func:`policies.loading.load_policy`.
        options: of :class:`Restorer`.
    """
    frozen = {key: tuple(value) if isinstance(value, list | set) else value for key, value in options.items()}
    return _restorer(policy, **frozen)(image)


@lru_cache(maxsize=2)
def _restorer(policy, **options) -> Restorer:
    return Restorer(policy, **options)


def photograph_process(
    planner: Planner,
    toolbox: Any = None,
    max_steps: int | None = None,
    quantize: Quantize | None = None,
    device: str = "cpu",
    threads: int | None = None,
    executor: str | None = None,
) -> RestorationProcess:
    """The decision process that the policy was trained in, for whole photographs.

    An image is enlarged below 300 pixels, unless the training's settings say otherwise by themselves: the size of its crops says nothing
    about photographs.

    Args:
        planner: a trained one carries the settings of its training in ``env_config``.
        toolbox: for planners that can use any.
        max_steps: most steps; by default the training's, or 6.
        quantize: by default the training's, or ``uint8``.
        device, threads: of the executor; by default all cores.
        executor: a pool, which has its own, see :func:`tool_actors.make_executor.make_executor`.
    """
    trained = planner.env_config
    settings: dict[str, Any] = {"max_steps": DEFAULT_MAX_STEPS, "low_resolution_below": PHOTO_LOW_RESOLUTION_BELOW}
    settings |= {key: trained[key] for key in ("toolbox", "quantize", *settings) if trained.get(key) is not None}
    chosen = planner.toolbox if toolbox is None else toolbox
    if chosen is not None:
        settings["toolbox"] = chosen
    if max_steps is not None:
        settings["max_steps"] = max_steps
    tools, trained_with = settings.pop("toolbox", "default"), settings.pop("quantize", "uint8")
    if executor is not None:
        pool = make_executor(executor, tools, quantize or trained_with)
        return RestorationProcess(**settings, executor=_ScoresNothing(pool))
    # a photograph is worth all cores, and the last bit that some networks round otherwise with more of them
    threads = threads or os.cpu_count() or 1
    local = LocalExecutor(load_toolbox(tools), quantize or trained_with, cache_bytes=0, device=device, threads=threads)
    return RestorationProcess(**settings, executor=local)


class _ScoresNothing:
    """An executor that sends no image away for :class:`NoMetrics`."""

    def __init__(self, executor: Executor):
        self.toolbox, self.stats, self.quantize = executor.toolbox, executor.stats, executor.quantize
        self.run, self._score = executor.run, executor.score

    def score(self, scorer: Scorer, states: Sequence[ImageState], references: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        if isinstance(scorer, NoMetrics):
            return list(scorer.score(states, references))
        return self._score(scorer, states, references)


def _adjusted(toolbox: Toolbox, tile: int | None, precision: Precision | None, strength: float) -> Toolbox:
    """Tools with tiles of another size, in another precision, or of less strength, as far as each knows of it.

    Tools that must see the whole image have no tiles, those that are no networks neither tiles nor precision, and those that enlarge no
    strength.
    """
    if tile is not None and 0 < tile < 64:
        raise IrEnvError(f"tiles of {tile} pixels are too small: give at least 64, or 0 for the whole image at once")
    if tile is None and precision is None and strength == 1:
        return toolbox
    made = Toolbox(name=toolbox.name)
    made.absent = toolbox.absent
    for tool, described in zip(toolbox, toolbox.references, strict=True):
        changed = tool
        if tile is not None and changed.spec.tile and hasattr(changed, "with_tile"):
            changed = changed.with_tile(tile or 1 << 20)  # larger than any image is the image as a whole
        if precision is not None and hasattr(changed, "with_precision"):
            changed = changed.with_precision(precision)
        if strength != 1 and tool.spec.scale == 1:
            changed = Blended(changed, strength)
        made.add(changed, described if isinstance(described, dict) else None)
    return made


def _told(probabilities: np.ndarray | None, process: RestorationProcess) -> dict[str, float] | None:
    if probabilities is None:
        return None
    order = np.argsort(-probabilities, kind="stable")[:TOLD]
    return {process.actions.name(int(index)): round(float(probabilities[index]), 4) for index in order}


def _in_8_bits(pixels: np.ndarray) -> bool:
    """Whether a float image holds nothing between the levels of 8 bits."""
    levels = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)] * np.float32(255)
    return bool(np.abs(levels - np.rint(levels)).max() < 1e-3)


def _not_run(episode: Episode, process: RestorationProcess, planner: Planner) -> list[dict[str, str]]:
    """The tools that were asked for and did not run, each with the reason."""
    actions = process.actions
    if isinstance(planner, FixedPlan):
        left = [actions.index(tool) for tool in planner.tools]
    else:
        left = [index for index in episode.history if index != actions.stop]
    for index in episode.applied:
        left.remove(index)
    return [{"tool": actions.name(index), "why": _why(index, episode, process)} for index in left]


def _why(index: int, episode: Episode, process: RestorationProcess) -> str:
    actions, longer = process.actions, max(episode.state.shape[:2])
    if index == MALFORMED:
        return "an answer that names no tool"
    if index in actions.forbidden:
        return "it is left out by what was asked for"
    if not episode.mask[index] and longer > max(episode.states[0].shape[:2]):
        return "an image is enlarged once"
    if not episode.mask[index]:
        return f"its longer side, {longer} px, is not below {actions.low_resolution_below}"
    if episode.error:
        return "it failed" if index == episode.history[-1] else "the tool before it failed"
    if episode.truncated:
        return f"after {process.max_steps} steps the restoration ends, see --max-steps"
    return "the policy stopped before it"
