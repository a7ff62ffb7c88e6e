"""How good the default toolbox is: gains, published networks beside it, harm, and what plans are worth.

    python -m experiments.measurements.tools --photos bsds500/test --json tools.json --picture tools.png

Four tables, in one process with one thread:

1. own: each embedded tool on its own recipe, on crops of the photographs.
2. published: the best embedded tool of each task beside the published networks of that task (where their weights are found, see
   tool_actors.published): gain on the same degraded crops, and milliseconds per 256 x 256 crop, timed in turns.
3. matrix: every tool of the toolbox on every degradation; for each the worst harm off its own.
4. plans: for images of groups A, B and C, all plans of at most three tools, one tool per task; the best plan of each image against the
   best plan for all, and the share of images whose best plan holds a tool that is out of scope or of a task that it repeats.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from experiments.train_tools import RECIPES, gain, make_batch, psnr
from ir_env.datasets import load_photos
from ir_env.datasets.base import fixed_samples
from ir_env.gain_matrix import GainMatrix, measure
from ir_env.process import RestorationProcess
from tool_actors.tasks import DEGRADATIONS, TASK_OF
from tool_actors.threads import limit_threads
from tool_actors.toolbox import Tool, Toolbox
from tool_actors.toolboxes import load_toolbox

ROUNDS = 7
MAX_PLAN = 3
PARTS = ["own", "published", "matrix", "plans"]


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", default="builtin", help="folder of clean photographs that no tool was trained on")
    parser.add_argument("--toolbox", default="default")
    parser.add_argument("--count", type=int, default=48, help="crops per degradation")
    parser.add_argument("--images", type=int, default=60, help="images for the plans")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args(arguments)
    limit_threads(1)
    console, report = Console(), {}
    toolbox = load_toolbox(options.toolbox)
    matrix = None
    if {"matrix", "plans"} & set(options.only):
        with Progress(transient=True) as progress:
            bar = progress.add_task("gain matrix", total=len(toolbox) * len(DEGRADATIONS))
            matrix = measure(toolbox, options.photos, count=options.count, progress=lambda: progress.advance(bar))
    if "own" in options.only:
        report["own"] = own(toolbox, options.photos, options.count, console)
    if "published" in options.only:
        report["published"] = published(toolbox, options.photos, console)
    if "matrix" in options.only:
        console.print(matrix.render())
        report["harm"] = harm(matrix, console)
        if options.picture:
            matrix.picture(options.picture)
    if "plans" in options.only:
        report["plans"] = plans(toolbox, matrix, options.photos, options.images, console)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def own(toolbox: Toolbox, photos: str, count: int, console: Console) -> dict:
    """Gain of each embedded tool on its own recipe."""
    table = Table(title=f"gain on the own degradation, {count} crops of 128 px, {Path(photos).name}")
    for column in ("tool", "degradation", "gain, dB"):
        table.add_column(column, justify="right" if column.startswith("gain") else "left")
    gains = {}
    for tool in toolbox:
        if (recipe := RECIPES.get(tool.spec.name)) is not None:
            gains[tool.spec.name] = round(gain(recipe, tool.module, load_photos(photos), count), 2)
            table.add_row(tool.spec.name, f"{recipe.combo} {recipe.severity.get(recipe.combo, '')}", f"{gains[tool.spec.name]:+.2f}")
    console.print(table)
    return gains


def published(toolbox: Toolbox, photos: str, console: Console, count: int = 24, side: int = 256) -> list[dict]:
    """Each task's best embedded tool and the published networks, on the crops that the embedded tool's recipe degrades."""
    others = [*load_toolbox("published"), *load_toolbox("rl_restore")]
    collection = load_photos(photos)
    table = Table(title=f"embedded and published networks, {count} crops of {side} px, {Path(photos).name}, one thread")
    for column in ("recipe", "tool", "gain, dB", "ms", "time / published"):
        table.add_column(column, justify="left" if column in ("recipe", "tool") else "right")
    rows = []
    for recipe in RECIPES.values():
        if recipe.name not in toolbox:
            continue
        tool = toolbox[recipe.name]
        rivals = [other for other in others if other.spec.task == tool.spec.task and other.spec.scale == tool.spec.scale]
        if tool.spec.task in ("motion_deblur", "defocus_deblur"):
            # RL-Restore's deblurring tools were made for Gaussian blur; they stand for both kinds
            rivals += [other for other in others if "deblur" in other.spec.task and other not in rivals]
        degraded, clean = make_batch(recipe, collection, np.random.default_rng(20_000), count, side, "cpu")
        before = degraded if tool.spec.scale == 1 else torch.nn.functional.interpolate(degraded, scale_factor=4, mode="bicubic")
        baseline = psnr(before, clean)
        gains = {each.spec.name: float((psnr(_each(each, degraded), clean) - baseline).mean()) for each in (tool, *rivals)}
        shown = [tool]
        if rivals:
            shown.append(max(rivals, key=lambda rival: gains[rival.spec.name]))
        times = _milliseconds(shown, degraded[:1])
        for each in shown:
            name = each.spec.name
            ratio = f"{times[tool.spec.name] / times[name]:.2f}" if each is not tool else ""
            rows.append({"recipe": recipe.name, "tool": name, "gain": round(gains[name], 2), "ms": round(times[name], 1), "ratio": ratio})
            table.add_row(recipe.name if each is tool else "", name, f"{gains[name]:+.2f}", f"{times[name]:.1f}", ratio)
    console.print(table)
    return rows


@torch.no_grad()
def _each(tool: Tool, images: torch.Tensor) -> torch.Tensor:
    return torch.cat([tool(image[None]) for image in images])


@torch.no_grad()
def _milliseconds(tools: list[Tool], image: torch.Tensor) -> dict[str, float]:
    """Median over rounds in which every tool runs in turn, so that a busy moment of the machine meets all of them."""
    times = {tool.spec.name: [] for tool in tools}
    for _ in range(ROUNDS):
        for tool in tools:
            start = time.perf_counter()
            tool(image)
            times[tool.spec.name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def harm(matrix: GainMatrix, console: Console) -> dict:
    """For every tool the degradation, not its own, on which it loses most."""
    table = Table(title="worst loss off the own degradation")
    for column in ("tool", "dB", "on"):
        table.add_column(column)
    worst = {tool: matrix.harm(tool) for tool in matrix.tools}
    for tool, (loss, name) in worst.items():
        table.add_row(tool, f"{loss:+.2f}", name)
    console.print(table)
    return {tool: {"gain": loss, "on": name} for tool, (loss, name) in worst.items()}


def plans(toolbox: Toolbox, matrix: GainMatrix, photos: str, images: int, console: Console) -> dict:
    """All plans of at most :data:`MAX_PLAN` tools, one tool per task, on images of groups A, B and C."""
    tools = [matrix.best(task) for task in TASK_OF.values()]
    process = RestorationProcess(
        {"photos": photos, "split": "all", "crop_size": 128, "combos": "A,B,C"},
        toolbox.select(tools),
        metrics=["psnr"],
        reward="delta_psnr",
        max_steps=MAX_PLAN,
        cache_bytes=256 << 20,
    )
    samples = fixed_samples(process.dataset, images, 30_000)
    names = range(process.actions.stop)
    every = [plan for length in range(MAX_PLAN + 1) for plan in itertools.product(names, repeat=length)]
    scores = np.empty((images, len(every)))
    with Progress(transient=True) as progress:
        bar = progress.add_task(f"{len(every)} plans on {images} images", total=images)
        for row, sample in enumerate(samples):
            [episode] = process.start([sample])
            scores[row] = [ended.scores[-1][0] for ended in process.follow([episode] * len(every), every)]
            progress.advance(bar)
    fixed = int(scores.mean(0).argmax())
    best = scores.argmax(1)
    tasks = [action.task for action in process.actions]
    inside = [{TASK_OF[part] for part in sample.combo} for sample in samples]
    chosen = [[tasks[action] for action in every[index]] for index in best]
    outside = [bool(set(plan) - allowed) for plan, allowed in zip(chosen, inside, strict=True)]
    repeated = [len(set(plan)) < len(plan) for plan in chosen]
    result = {
        "tools": tools,
        "input_psnr": float(scores[:, 0].mean()),
        "best_fixed_plan": [tools[action] for action in every[fixed]],
        "best_fixed_psnr": float(scores[:, fixed].mean()),
        "best_plan_psnr": float(scores.max(1).mean()),
        "out_of_scope": float(np.mean(outside)),
        "repeated": float(np.mean(repeated)),
        "either": float(np.mean([a or b for a, b in zip(outside, repeated, strict=True)])),
        "mean_length": float(np.mean([len(plan) for plan in chosen])),
    }
    table = Table(title=f"{len(every)} plans of at most {MAX_PLAN} tools on {images} images of groups A, B, C", show_header=False)
    table.add_row("one tool per task", ", ".join(tools))
    table.add_row("degraded", f"{result['input_psnr']:.2f} dB")
    table.add_row("best fixed plan", f"{result['best_fixed_psnr']:.2f} dB   {' + '.join(result['best_fixed_plan'])}")
    table.add_row("best plan of each image", f"{result['best_plan_psnr']:.2f} dB   {result['mean_length']:.2f} tools")
    table.add_row("best plans with a tool out of scope", f"{result['out_of_scope']:.1%}")
    table.add_row("best plans with a repeated task", f"{result['repeated']:.1%}")
    console.print(table)
    return result


if __name__ == "__main__":
    main()
