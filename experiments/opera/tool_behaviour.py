"""What learning together does to each tool by itself (OPERA, arXiv 2605.22104, appendix I, table 12).

How to run
----------
    python -m experiments.opera.tool_behaviour --photos FOLDER --toolbox results/cotrained/toolbox/toolbox.yaml --out results/behaviour

Misuse: each tool on clean images, which it should leave as they are. Single degradation: each tool on images with the degradation that it
was made for, which it should not have forgotten. Told are means over tools and images for the toolbox as it was (``--before``) and as it
is, their difference with its interval by photograph, the paper's numbers, and the tools one by one.

A tool that enlarges is judged on clean images after reduction to their size. LPIPS is among the metrics where its weights are; gmsd, which
needs none, is told in any case. Tools whose weights are the same in both toolboxes, such as classical ones, are left out.

Results to expect
-----------------
The tools of README's table, 40 clean images and 20 per degradation of BSDS500's validation set: misuse PSNR 28.6 before and 30.4 after
(paper, on Y: 40.8 and 48.1), SSIM .83 and .93; single degradation 29.0 and 28.3 dB (paper, on Y: 28.6 and 28.5). The same halfway back
(``experiments/opera/interpolate.py``): misuse 29.1, SSIM .87; single degradation 28.9 dB. Some four minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from tool_actors.errors import IrEnvError

PAPER = {
    "misuse": {"psnr": (40.80, 48.11), "ssim": (0.938, 0.990), "lpips": (0.084, 0.011)},
    "single": {"psnr": (28.62, 28.50), "ssim": (0.767, 0.739), "lpips": (0.282, 0.317)},
}
"""Table 12, pretrained and trained."""
METRICS = ("psnr", "psnry", "ssim_ycbcr", "gmsd")
PAPER_COLUMN = {"psnry": "psnr", "ssim_ycbcr": "ssim", "lpips": "lpips"}
"""Our metric -> the paper's."""
CROP = 256


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs that no tool learned from")
    parser.add_argument("--toolbox", required=True, help="the tools that learned together")
    parser.add_argument("--before", default="default", help="the tools as they were")
    parser.add_argument("--out", type=Path, default=Path("results/tool_behaviour"))
    parser.add_argument("--clean", type=int, default=100, help="clean images per tool")
    parser.add_argument("--single", type=int, default=20, help="images with its degradation per tool")
    parser.add_argument("--crop", type=int, default=CROP, help="side of the images in pixels")
    parser.add_argument("--tools", nargs="*", help="only these")
    parser.add_argument("--seed", type=int, default=30_000)
    options = parser.parse_args(arguments)

    from ir_env.datasets import load_photos
    from ir_env.evaluation import save_json
    from tool_actors.threads import limit_threads
    from tool_actors.toolboxes import load_toolbox

    limit_threads(1)
    console = Console()
    before, after = load_toolbox(options.before), load_toolbox(options.toolbox)
    names = [
        name
        for name in after.names
        if name in before and before[name].spec.fingerprint != after[name].spec.fingerprint and (not options.tools or name in options.tools)
    ]
    if not names:
        raise IrEnvError(f"no tool of {options.toolbox} has other weights than that of the same name in {options.before}")
    metrics = _with_lpips(console)
    photos, told = load_photos(options.photos), {}
    with console.status("measuring") as status:
        for kind, count in (("misuse", options.clean), ("single", options.single)):
            told[kind] = {}
            for name in names:
                status.update(f"{kind}: {name}")
                images, references, shown = _images(kind, before[name], photos, count, options)
                told[kind][name] = {"photographs": shown} | {
                    when: _scores(toolbox[name], images, references, metrics) for when, toolbox in (("before", before), ("after", after))
                }
    summary = {kind: summarise(rows, metrics) for kind, rows in told.items()}
    for kind, title in (("misuse", "(a) Misuse: clean images"), ("single", "(b) Single degradation")):
        _show(kind, title, summary[kind], told[kind], metrics, console)
    options.out.mkdir(parents=True, exist_ok=True)
    save_json({"summary": summary, "tools": told}, options.out / "tool_behaviour.json")
    return 0


def summarise(rows: dict[str, dict], metrics: Sequence[str]) -> dict[str, Any]:
    """By metric: means over tools and images before and after, their difference, its interval by photograph, and p."""
    from ir_env.evaluation import bootstrap, sign_flips

    photographs = [photo for row in rows.values() for photo in row["photographs"]]
    told = {}
    for metric in metrics:
        first, last = (np.array([value for row in rows.values() for value in row[when][metric]]) for when in ("before", "after"))
        told[metric] = {
            "before": float(first.mean()),
            "after": float(last.mean()),
            "difference": float((last - first).mean()),
            "interval": bootstrap(last - first, photographs),
            "p": sign_flips(last - first, photographs),
        }
    return told


def _images(kind: str, tool, photos, count: int, options: argparse.Namespace) -> tuple[list, list, list[str]]:
    """Images (uint8), their references, and the photograph of each; the same for every tool where they are clean."""
    from experiments.opera.crops import recipe_of
    from experiments.train_tools import draw
    from ir_env.degradations import degrade
    from ir_env.degradations.recipe import Scene

    rng = np.random.default_rng(options.seed)
    images, references, shown = [], [], []
    for index in range(count):
        name = photos.names[index % len(photos)]
        photo = photos.load(name)
        side = min(options.crop, *photo.shape[:2]) // 8 * 8
        top, left = (int(rng.integers(length - side + 1)) for length in photo.shape[:2])
        clean = np.ascontiguousarray(photo[top : top + side, left : left + side])
        image = clean
        if kind == "single":
            recipe = recipe_of(tool)
            severity = {part: {key: draw(value, rng) for key, value in ranges.items()} for part, ranges in recipe.severity.items()}
            scene = Scene(name, photo.shape[:2], (top, left, side, side))
            image = degrade(clean, recipe.combo, int(rng.integers(2**48)), severity=severity, scene=scene).image
        images.append(image)
        references.append(clean)
        shown.append(name)
    return images, references, shown


def _scores(tool, images: Sequence[np.ndarray], references: Sequence[np.ndarray], metrics: Sequence[str]) -> dict[str, list[float]]:
    from ir_env.metrics import MetricSuite
    from tool_actors.errors import ToolFailure
    from tool_actors.executor import run_tool

    outputs = []
    for image in images:
        [output] = run_tool(tool, [image])
        if isinstance(output, ToolFailure):
            raise output
        outputs.append(output)
    suite = MetricSuite(metrics)
    vectors = [suite.defined(vector) for vector in suite.score(outputs, references)]
    return {name: [float(value) for value in values] for name, values in zip(suite.names, np.array(vectors).T, strict=True)}


def _with_lpips(console: Console) -> tuple[str, ...]:
    from ir_env.metrics import MetricSuite, MetricWeightsMissing
    from tool_actors.extras import MissingExtraError

    probe = np.zeros((64, 64, 3), np.uint8)
    try:
        MetricSuite(["lpips"]).score([probe], [probe])
    except (MetricWeightsMissing, MissingExtraError) as error:
        console.print(f"LPIPS is left out: {error}", soft_wrap=True)
        return METRICS
    return (*METRICS, "lpips")


def _show(kind: str, title: str, summary: dict, rows: dict[str, dict], metrics: Sequence[str], console: Console) -> None:
    table = RichTable("metric", "before", "after", "difference", "95 %", "p", "paper: before", "after", "difference", title=title)
    tell: Callable[[str], int] = lambda metric: 2 if metric.startswith("psnr") else 4  # noqa: E731
    for metric, cell in summary.items():
        digits, ends = tell(metric), cell["interval"]
        paper = PAPER[kind].get(PAPER_COLUMN.get(metric, ""))
        table.add_row(
            metric,
            *(f"{cell[key]:.{digits}f}" for key in ("before", "after")),
            f"{cell['difference']:+.{digits}f}",
            f"[{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]" if ends else "",
            f"{cell['p']:.2g}",
            *((f"{paper[0]:g}", f"{paper[1]:g}", f"{paper[1] - paper[0]:+.3g}") if paper else ("", "", "")),
        )
    console.print(table)
    each = RichTable("tool", *metrics, title=f"{title}, by tool: before, and the difference")
    for name, row in rows.items():
        means = {when: {metric: np.mean(row[when][metric]) for metric in metrics} for when in ("before", "after")}
        cells = [
            f"{means['before'][metric]:.{tell(metric)}f} {means['after'][metric] - means['before'][metric]:+.{tell(metric)}f}"
            for metric in metrics
        ]
        each.add_row(name, *cells)
    console.print(each)


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
