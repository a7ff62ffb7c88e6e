"""What each tool gains on each degradation, and what it costs: the matrix behind `ir-env tools check`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from ir_env.datasets import Photos, load_photos
from ir_env.degradations import Combo, degrade, parse_combo, seed_for
from ir_env.degradations.recipe import Scene
from ir_env.metrics import MetricSuite
from tool_actors.errors import IrEnvError, ToolFailure
from tool_actors.executor import run_tool
from tool_actors.tasks import DEGRADATIONS, TASK_OF
from tool_actors.toolbox import Toolbox

__all__ = ["GainMatrix", "measure"]

BATCH = 16
BAND = 6.0
"""dB at which the heat-map's colours saturate."""


@dataclass(frozen=True)
class GainMatrix:
    """Mean PSNR gain (dB, RGB) of each tool on each degradation, over doing nothing."""

    tools: list[str]
    tasks: list[str]
    degradations: list[str]
    gain: list[list[float]]
    """tools x degradations; NaN where the tool failed."""
    ms_per_megapixel: list[float]
    """Milliseconds per million input pixels, mean over the degradations."""
    note: str

    def best(self, task: str) -> str:
        """The tool of a task with the largest gain on the degradation that it undoes."""
        column = self.degradations.index(_undone_by(task))
        rows = [row for row, other in enumerate(self.tasks) if other == task]
        return self.tools[max(rows, key=lambda row: self.gain[row][column])]

    def harm(self, tool: str) -> tuple[float, str]:
        """The least gain of a tool on a degradation that is not its own, and that degradation."""
        row = self.tools.index(tool)
        own = _undone_by(self.tasks[row])
        return min((gain, name) for gain, name in zip(self.gain[row], self.degradations, strict=True) if name != own)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def render(self):
        """A rich table; the best tool of each degradation is bold, harm of more than 0.5 dB red."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        table = Table(caption=escape(self.note), caption_justify="left", box=SIMPLE_HEAD, padding=(0, 0, 0, 1))
        table.add_column("tool", no_wrap=True)
        for name in self.degradations:
            table.add_column(name.replace("_", "\n"), justify="right")
        table.add_column("ms/MP", justify="right")
        best = np.nanargmax(np.array(self.gain), axis=0)
        for row, tool in enumerate(self.tools):
            cells = []
            for column, gain in enumerate(self.gain[row]):
                style = "bold" if best[column] == row else "red" if gain <= -0.5 else ""
                cells.append(f"[{style}]{gain:+.2f}[/]" if style else f"{gain:+.2f}")
            table.add_row(escape(tool), *cells, f"{self.ms_per_megapixel[row]:.0f}")
        return table

    def picture(self, path: Path) -> None:
        """The heat-map: green gains, red harms."""
        from matplotlib.figure import Figure

        height = 1.6 + 0.26 * len(self.tools)
        figure = Figure(figsize=(8.5, height), layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(np.array(self.gain), cmap="RdYlGn", vmin=-BAND, vmax=BAND, aspect="auto")
        axes.set_xticks(range(len(self.degradations)), [name.replace("_", "\n") for name in self.degradations], fontsize=8)
        axes.set_yticks(range(len(self.tools)), self.tools, fontsize=8)
        axes.xaxis.tick_top()
        for row, gains in enumerate(self.gain):
            for column, gain in enumerate(gains):
                axes.text(column, row, f"{gain:+.1f}", ha="center", va="center", fontsize=7)
        figure.colorbar(shown, label="PSNR gain, dB", fraction=0.03)
        figure.savefig(path, dpi=150)


def _undone_by(task: str) -> str:
    """Its degradation; empty for the task of all-in-one networks, which undo all."""
    return next((degradation for degradation, undoes in TASK_OF.items() if undoes == task), "")


def measure(
    toolbox: Toolbox,
    photos: str = "builtin",
    *,
    degradations: Sequence[str] = DEGRADATIONS,
    count: int = 24,
    side: int = 128,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> GainMatrix:
    """Run every tool on every degradation.

    Args:
        toolbox: the tools.
        photos: ``"builtin"`` or a folder of clean photographs.
        degradations: degradations, or combinations of them, for the columns.
        count: crops per degradation, spread over the photographs.
        side: of the crops, in pixels.
        seed: of crops and degradations.
        progress: called after each (tool, degradation).

    A tool that enlarges is given a reduced image, degraded, and doing nothing is bicubic interpolation.
    """
    suite = MetricSuite(["psnr"])
    gains = np.full((len(toolbox), len(degradations)), np.nan)
    seconds, pixels = np.zeros(len(toolbox)), np.zeros(len(toolbox))
    collection = load_photos(photos)
    small = {name: min(collection.load(name).shape[:2]) for name in collection.names}
    if not any(least >= side for least in small.values()):
        raise IrEnvError(f"{photos}: no photograph is {side} pixels in both directions")
    for column, combo in enumerate(degradations):
        scales = {tool.spec.scale for tool in toolbox}
        sets = {scale: _crops(collection, small, parse_combo(combo), count, side, seed, scale, suite) for scale in scales}
        for row, tool in enumerate(toolbox):
            degraded, clean, baseline = sets[tool.spec.scale]
            start = time.perf_counter()
            outputs = _run(tool, degraded)
            seconds[row] += time.perf_counter() - start
            pixels[row] += sum(image.shape[0] * image.shape[1] for image in degraded)
            done = [index for index, output in enumerate(outputs) if not isinstance(output, ToolFailure)]
            if done:
                scores = suite.score([outputs[index] for index in done], [clean[index] for index in done])[:, 0]
                gains[row, column] = float((scores - baseline[done]).mean())
            progress()
    return GainMatrix(
        tools=toolbox.names,
        tasks=[tool.spec.task for tool in toolbox],
        degradations=list(degradations),
        gain=gains.round(3).tolist(),
        ms_per_megapixel=(1e9 * seconds / pixels).round(1).tolist(),
        note=f"{count} crops of {side} px, {Path(photos).name}, seed {seed}; mean gain of PSNR over RGB, in dB, over doing nothing; "
        "tools that enlarge get the reduced image, against bicubic.",
    )


def _crops(collection: Photos, small: dict[str, int], combo: Combo, count: int, side: int, seed: int, scale: int, suite: MetricSuite):
    """Degraded images, clean ones, and the PSNR of doing nothing, for tools of one scale."""
    names = [name for name in collection.names if small[name] >= side]
    side -= side % scale
    reduced = {"low_resolution": {"scale": 1 / scale}}
    rng = np.random.default_rng([seed, len(names)])
    degraded, clean = [], []
    for index in range(count):
        name = names[index * len(names) // count] if count <= len(names) else names[index % len(names)]
        photo = collection.load(name)
        top, left = (int(rng.integers(extent - side + 1)) for extent in photo.shape[:2])
        crop = np.ascontiguousarray(photo[top : top + side, left : left + side])
        source, scene = crop, Scene(name, photo.shape[:2], (top, left, side, side))
        if scale > 1 and "low_resolution" not in combo:
            source, scene = degrade(crop, "low_resolution", 0, severity=reduced).image, Scene(name)
        severity = reduced if scale > 1 else None
        degraded.append(degrade(source, combo, seed_for(f"{name}:{index}", combo, seed), severity=severity, scene=scene).image)
        clean.append(crop)
    enlarged = [image if scale == 1 else cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC) for image in degraded]
    return degraded, clean, suite.score(enlarged, clean)[:, 0]


def _run(tool, images: list[np.ndarray]) -> list:
    outputs = []
    for start in range(0, len(images), BATCH):
        outputs.extend(run_tool(tool, images[start : start + BATCH]))
    return outputs
