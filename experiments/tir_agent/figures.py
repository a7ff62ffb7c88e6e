"""Ours of TIR-Agent's figures 3, 6 and 7: what is explored, how the metrics rise, and what EDP's alphas and MAR's weights do.

How to run
----------
    python -m experiments.tir_agent --photos FOLDER --out results/tir_agent
    python -m experiments.tir_agent.ablation --base results/tir_agent --photos FOLDER --out results/ablation
    python -m experiments.tir_agent.figures --run results/tir_agent --ablation results/ablation

``--out`` (by default ``figures`` in ``--run``) then holds

    figure3.png     eight rollouts of each held-out image: how many are distinct, in how many images the order or the tools differ; the
                    tools of the demonstrations before and after EDP; the metrics over the iterations of GRPO
    figure6.png     the metrics over the iterations without decoupling, without weights, and with both
    figure7.png     alpha^t and alpha^m: metrics and exploration of a policy fine-tuned with each; exploration and tools without EDP and
                    with it; MAR's weights over the iterations
    sweep/          one fine-tuning for each alpha, the other alpha being the paper's, and one without EDP

The fine-tunings that are missing are run, one after another, and what is done is kept: the same command after an interruption goes on where
it stopped. A figure whose runs are missing is left out, with a word on how to make them. Metrics are turned so that higher is better, bars
at points are 95 % intervals by photograph, and pale lines are single iterations.

Results to expect
-----------------
``docs/tir_mar.png`` and ``docs/tir_alphas.png`` are figures 6 and 7 with ``--images 32 --alpha-tools 0,0.4,0.6 --sft " --steps 120"``;
README tells what they show. A fine-tuning of 120 updates takes 8 minutes of a core, most of it to perturb and run the demonstrations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.tir_agent.curves import Curves, grpo_curves, row_curves, smoothed
from policies.vlm.edp import ALPHA_ORDER, ALPHA_TOOL

VANILLA, FULL = "w/o EDP and MAR", "TIR-Agent"
"""Rows of the ablation: plain SFT and GRPO, on which the paper observes its figure 3, and all parts together."""
REWARD_SETTINGS = ("w/o decouple", "w/o w", FULL)
"""Those of figure 6."""
Point = tuple[float, float]
"""alpha^t and alpha^m."""
NO_EDP, PAPER = (0.0, 0.0), (ALPHA_ORDER, ALPHA_TOOL)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of experiments.tir_agent")
    parser.add_argument("--ablation", type=Path, help="folder of experiments.tir_agent.ablation")
    parser.add_argument("--out", type=Path, help="folder of the figures; by default figures in --run")
    parser.add_argument("--alpha-orders", type=_numbers, default=[0.0, 0.1, 0.3, 0.5], help="values of alpha^t, separated by commas")
    parser.add_argument(
        "--alpha-tools", type=_numbers, default=[0.0, 0.2, 0.4, 0.6], help="of alpha^m; with none of both there is no sweep"
    )
    parser.add_argument("--images", type=int, default=128, help="held-out images of each policy of the sweep")
    parser.add_argument("--sft", type=str.split, default=[], help='more arguments of the fine-tunings, e.g. --sft " --steps 300"')
    options = parser.parse_args(arguments)
    out = options.out or options.run / "figures"
    out.mkdir(parents=True, exist_ok=True)

    runs = grpo_curves(options.run)
    rows = row_curves(options.ablation) if options.ablation else {}
    wanted = [*((order, ALPHA_TOOL) for order in options.alpha_orders), *((ALPHA_ORDER, tool) for tool in options.alpha_tools)]
    points = list(dict.fromkeys([NO_EDP, PAPER, *wanted])) if wanted else []
    sweep = {point: fine_tuned(point, options.run, out / "sweep", options.images, options.sft) for point in points}
    figures = {
        "figure3.png": figure3(
            _explored(options.run, options.ablation, sweep),
            _read(options.run / "sft/edp.json"),
            {name: curves for name, curves in rows.items() if name == VANILLA} | runs,
        ),
        "figure6.png": figure6({name: rows[name] for name in REWARD_SETTINGS if name in rows}),
        "figure7.png": figure7(sweep, options.alpha_orders, options.alpha_tools, _photographs(options.run) if sweep else [], runs),
    }
    needs = {
        "figure3.png": f"the policies of {options.run}; make them with python -m experiments.tir_agent --out {options.run}",
        "figure6.png": f"the rows {', '.join(REWARD_SETTINGS)} of experiments.tir_agent.ablation; give its folder as --ablation",
        "figure7.png": "the sweep; give --alpha-orders and --alpha-tools",
    }
    for name, figure in figures.items():
        if figure is None:
            print(f"{name}: left out, it needs {needs[name]}")
        else:
            figure.savefig(out / name, dpi=150)
            print(out / name)


def _numbers(text: str) -> list[float]:
    return [float(each) for each in text.split(",") if each.strip()]


# -- what there is to draw -----------------------------------------------------------------------------------------------------------


def fine_tuned(point: Point, run: Path, sweep: Path, images: int, more: Sequence[str]) -> dict[str, Any]:
    """The report of a fine-tuning with these alphas, which is run if it is not there."""
    order, tool = point
    folder = sweep / f"order-{order:g}_tool-{tool:g}"
    if not (folder / "report.json").is_file():
        print(f"fine-tuning with alpha^t {order:g} and alpha^m {tool:g}", flush=True)
        words = ["--demos", run / "demos", "--model", run / "nano", "--out", folder, "--alpha-order", order, "--alpha-tool", tool]
        words += ["--heldout", images, "--diversity-images", images, *more]
        subprocess.run([sys.executable, "-m", "experiments.tir_agent.sft", *map(str, words)], check=True)
    return json.loads((folder / "report.json").read_text())


def _explored(run: Path, ablation: Path | None, sweep: Mapping[Point, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The statistics of rollouts, by policy: of fine-tuning without EDP and with it, and of GRPO from either."""
    named = {"SFT without EDP": sweep.get(NO_EDP), "SFT": _read(run / "sft/report.json")}
    rows = _read(ablation / "table.json") if ablation else None
    named |= {f"SFT + GRPO, {name}": row for name, row in (rows or {}).items() if name in (VANILLA, FULL)}
    return {name: told["diversity"] for name, told in named.items() if told and told.get("diversity")}


def _photographs(run: Path) -> list[str]:
    """Of the held-out images, in order."""
    from experiments.tir_agent.demos import load_demonstrations
    from ir_env.evaluation import photo_of

    return [photo_of(sample) for sample in load_demonstrations(run / "demos")[0]["heldout"]["sample"]]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


# -- the figures ---------------------------------------------------------------------------------------------------------------------


def figure3(explored: Mapping[str, Mapping[str, Any]], edp: Mapping[str, Any] | None, runs: Mapping[str, Curves]) -> Figure | None:
    """Diversity of rollouts, tools of the demonstrations, and the metrics over GRPO's iterations; None if there is nothing of it."""
    if not (explored or edp or runs):
        return None
    metrics = list(next(iter(runs.values()))["reward"]) if runs else []
    columns = max(len(explored), len(metrics), 1)
    figure = Figure(figsize=(3.6 * columns, 9), layout="constrained")
    grid = figure.add_gridspec(3, columns)
    for column, (name, told) in enumerate(explored.items()):
        draw_rollouts(figure.add_subplot(grid[0, column]), told, name)
    if edp:
        draw_tools(figure.add_subplot(grid[1, :]), {name: edp[name]["tools"] for name in ("before", "after")}, "demonstrations, by EDP")
    for column, metric in enumerate(metrics):
        draw_metric(figure.add_subplot(grid[2, column]), metric, runs)
    return figure


def figure6(rows: Mapping[str, Curves]) -> Figure | None:
    """The metrics over the iterations of several rows of the ablation; None without rows."""
    if not rows:
        return None
    metrics = list(next(iter(rows.values()))["reward"])
    figure = Figure(figsize=(4 * len(metrics), 3.4), layout="constrained")
    for axes, metric in zip(np.ravel(figure.subplots(1, len(metrics))), metrics, strict=True):
        draw_metric(axes, metric, rows)
    return figure


def figure7(
    sweep: Mapping[Point, dict[str, Any]],
    orders: Sequence[float],
    tools: Sequence[float],
    photographs: Sequence[str],
    runs: Mapping[str, Curves],
) -> Figure | None:
    """Metrics and exploration by alpha^t (first row) and by alpha^m (second); exploration, tools, weights (third); None without sweep."""
    if not sweep:
        return None
    metrics = list(sweep[PAPER]["metrics"])
    figure = Figure(figsize=(3.4 * (len(metrics) + 1), 9.5), layout="constrained")
    grid = figure.add_gridspec(3, len(metrics) + 1)
    lines = {
        "alpha^t": ({order: sweep[order, ALPHA_TOOL] for order in sorted(orders)}, {"images": "order", "pairs": "order_pairs"}),
        "alpha^m": ({tool: sweep[ALPHA_ORDER, tool] for tool in sorted(tools)}, {"entropy, nats": "mean_entropy", "pairs": "tool_pairs"}),
    }
    titles = {"alpha^t": "rollouts in another order", "alpha^m": "rollouts with other tools"}
    for row, (alpha, (reports, statistics)) in enumerate(lines.items()):
        if not reports:
            continue
        label = f"$\\{alpha}$"
        for column, metric in enumerate(metrics):
            axes = figure.add_subplot(grid[row, column])
            draw_means(axes, {value: told["per_image"][metric] for value, told in reports.items()}, photographs, metric)
            axes.set_xlabel(label)
        axes = figure.add_subplot(grid[row, -1])
        for name, statistic in statistics.items():
            axes.plot(list(reports), [told["diversity"][statistic] for told in reports.values()], "o-", label=name)
        axes.set(title=titles[alpha], xlabel=label)
        axes.legend(fontsize=7)
    draw_rollouts(figure.add_subplot(grid[2, 0]), sweep[NO_EDP]["diversity"], "without EDP")
    draw_rollouts(figure.add_subplot(grid[2, 1]), sweep[PAPER]["diversity"], "with EDP")
    called = {name: sweep[point]["diversity"]["tools"] for name, point in (("without EDP", NO_EDP), ("with EDP", PAPER))}
    draw_tools(figure.add_subplot(grid[2, 2 : -1 if runs else None]), called, "rollouts")
    if runs:
        draw_weights(figure.add_subplot(grid[2, -1]), runs)
    return figure


# -- their panels --------------------------------------------------------------------------------------------------------------------


def draw_rollouts(axes: Axes, told: Mapping[str, Any], title: str) -> None:
    """Images by the number of their distinct rollouts (bars), and the share of these with another order and with other tools (lines)."""
    counts = range(1, told["rollouts"] + 1)
    images = [told["images_by_distinct"].get(str(count), 0) / told["images"] for count in counts]
    axes.bar(counts, images, color="lightsteelblue", label="images")
    for name, colour in (("order", "tab:red"), ("tool", "tab:green")):
        shares = {int(count): share for count, share in told[f"{name}_by_distinct"].items()}
        axes.plot(list(shares), list(shares.values()), "o-", color=colour, markersize=3, label=f"other {name}")
    axes.set(title=title, xlabel="distinct rollouts", ylim=(0, 1.05), ylabel="share")
    axes.legend(fontsize=7)


def draw_tools(axes: Axes, shares: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> None:
    """P(m|t) of two or more sets of trajectories, task by task."""
    names = list(dict.fromkeys((task, tool) for each in shares.values() for task, tools in each.items() for tool in tools))
    width = 0.8 / len(shares)
    for index, (name, each) in enumerate(shares.items()):
        heights = [each.get(task, {}).get(tool, 0.0) for task, tool in names]
        axes.bar(np.arange(len(names)) + index * width, heights, width, label=name)
    starts = [at for at in range(1, len(names)) if names[at][0] != names[at - 1][0]]
    for at in starts:
        axes.axvline(at - 0.5 + width / 2, color="lightgrey", linewidth=0.8)
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, [tool for _, tool in names], rotation=90, fontsize=6)
    axes.set(title=f"share of each tool in its task: {title}", ylim=(0, 1))
    axes.legend(fontsize=7)


def draw_metric(axes: Axes, metric: str, runs: Mapping[str, Curves]) -> None:
    """A metric of the rollouts over the iterations of several runs."""
    for name, curves in runs.items():
        values = curves["reward"][metric]
        [line] = axes.plot(np.arange(1, len(values) + 1), smoothed(values), label=name)
        axes.plot(np.arange(1, len(values) + 1), values, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axes.set(title=_turned(metric), xlabel="iteration")
    axes.legend(fontsize=7)


def draw_means(axes: Axes, values: Mapping[float, Sequence[float | None]], photographs: Sequence[str], metric: str) -> None:
    """Mean over the images for each alpha, with its interval by photograph."""
    from ir_env.evaluation import bootstrap
    from ir_env.metrics import find_metric

    sign = 1.0 if find_metric(metric).higher_is_better else -1.0
    turned = {alpha: np.array([np.nan if each is None else sign * each for each in row]) for alpha, row in values.items()}
    means = [float(np.nanmean(row)) for row in turned.values()]
    ends = [bootstrap(row, photographs[: len(row)]) or [mean, mean] for row, mean in zip(turned.values(), means, strict=True)]
    reach = np.abs(np.array(ends).T - np.array(means))
    axes.errorbar(list(turned), means, reach, fmt="o-", capsize=3)
    axes.set_title(_turned(metric))


def draw_weights(axes: Axes, runs: Mapping[str, Curves]) -> None:
    """MAR's weights over the iterations: of each run, and in bold their mean over the runs as far as all have come."""
    for metric in next(iter(runs.values()))["weight"]:
        rows = [curves["weight"][metric] for curves in runs.values()]
        length = min(map(len, rows))
        steps = np.arange(1, length + 1)
        [line] = axes.plot(steps, np.mean([row[:length] for row in rows], axis=0), label=metric)
        for row in rows:
            axes.plot(np.arange(1, len(row) + 1), row, color=line.get_color(), alpha=0.25, linewidth=0.8)
    axes.set(title="MAR's weights", xlabel="iteration")
    axes.legend(fontsize=7)


def _turned(metric: str) -> str:
    """Its name as that of a number that is better if it is higher."""
    from ir_env.metrics import find_metric

    return metric if find_metric(metric).higher_is_better else f"-{metric}"


if __name__ == "__main__":
    main()
