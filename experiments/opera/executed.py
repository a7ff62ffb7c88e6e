"""Plans as they are executed, with the tools as they were and with those that learned together, by group of combinations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from experiments.opera.plans import Planned, photographs
from ir_env.datasets import Dataset
from ir_env.degradations import GROUPS
from ir_env.evaluation import bootstrap, sign_flips
from ir_env.metrics import MetricSuite
from tool_actors.executor import ImageState, LocalExecutor
from tool_actors.plans import run_plans
from tool_actors.toolbox import Toolbox

METRICS = ("psnr", "psnry", "ssim_ycbcr", "gmsd")
"""RGB and the paper's Y; gmsd for LPIPS, whose weights may be absent."""


def execute(
    dataset: Dataset,
    planned: Sequence[Planned],
    toolbox: Toolbox,
    metrics: Sequence[str] = METRICS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, list[float]]:
    """Metrics of the last image of each plan, by name; states are uint8, as in the environment."""
    executor, suite = LocalExecutor(toolbox, cache_bytes=0), MetricSuite(metrics)
    rows = []
    for done, each in enumerate(planned):
        progress(done, len(planned))
        pair = dataset.load(each.sample)
        state = ImageState.from_pixels(pair.degraded)
        [results] = run_plans(executor, [(state, each.tools)], keep="last")
        # a failed tool leaves the image as it was, for both toolboxes
        final = results[-1].state if results and results[-1].state is not None else state
        rows.append(suite.defined(suite.score([final.pixels], [pair.reference])[0]))
    return {name: [float(value) for value in values] for name, values in zip(suite.names, np.array(rows).T, strict=True)}


def compare_by_group(planned: Sequence[Planned], before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> dict:
    """By group of combinations and metric: mean before, mean after, their difference with its interval by photograph, and p."""
    chosen = {group: [each.sample.combo in combos for each in planned] for group, combos in GROUPS.items()}
    known = np.any(list(chosen.values()), axis=0)
    chosen |= {"other": list(~known), "all": [True] * len(planned)}
    names = np.array(photographs(planned))
    told: dict[str, dict[str, Any]] = {}
    for group, mask in chosen.items():
        if not any(mask):
            continue
        told[group] = {"images": int(sum(mask))}
        for metric in before:
            first, last = (np.array(values[metric])[mask] for values in (before, after))
            interval, p = bootstrap(last - first, names[mask]), sign_flips(last - first, names[mask])
            told[group][metric] = {
                "before": float(first.mean()),
                "after": float(last.mean()),
                "difference": float((last - first).mean()),
                "interval": interval,
                "p": p,
            }
    return told


def show_groups(told: Mapping[str, dict], console: Console, title: str) -> None:
    table = RichTable(
        "group", "images", "metric", "original", "co-trained", "difference", "95 % by photograph", "p", title=title, title_justify="left"
    )
    for group, row in told.items():
        for metric, cell in row.items():
            if metric == "images":
                continue
            digits = 2 if metric.startswith("psnr") else 4
            ends = cell["interval"]
            table.add_row(
                group,
                str(row["images"]),
                metric,
                f"{cell['before']:.{digits}f}",
                f"{cell['after']:.{digits}f}",
                f"{cell['difference']:+.{digits}f}",
                f"[{ends[0]:+.{digits}f}, {ends[1]:+.{digits}f}]" if ends else "",
                f"{cell['p']:.2g}",
            )
    console.print(table)
