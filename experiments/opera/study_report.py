"""What the exhaustive study found: tables beside the paper's figures, a JSON file, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.opera.plan_statistics import STATISTICS, Plan, all_plans, by_chance, findings, high_performing, rank

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from ir_env.metrics import MetricSuite

SHARES = {"out_of_scope": "out-of-scope\ntool", "out_of_scope_wins": "out-of-scope\nis better", "duplicates": "repeated\ntool"}
RANKS = {
    "best_out_of_scope": "best,\nout-of-scope",
    "best_matched": "best,\nmatched-only",
    "rank_with_duplicates": "with\nduplicates",
    "rank_deduplicated": "de-\nduplicated",
}


def report(rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], suite: MetricSuite, out: Path) -> None:
    """Print the tables, and write ``study.json`` and ``study.png``.

    Args:
        rows: of ``experiments.opera.exhaustive_study.measure``, one per image.
        settings: what they were made with.
        suite: of the metrics of their values.
        out: folder of the files.
    """
    from rich.console import Console

    from ir_env.datasets import Sample
    from ir_env.evaluation import save_json

    plans, samples = all_plans(list(settings["tools"]), settings["longest"]), [Sample.parse(row["sample"]) for row in rows]
    values = np.array([row["values"] for row in rows], np.float64)
    images = [look_at(each, sample.combo, plans, suite) for each, sample in zip(values, samples, strict=True)]
    photographs, combos = [sample.photo for sample in samples], [sample.combo for sample in samples]
    groups = {combo: [place for place, own in enumerate(combos) if own == combo] for combo in dict.fromkeys(combos)}
    told = {
        "statistics": summarise(images, photographs),
        "by_chance": by_chance(plans, combos),
        "by_combination": {
            "+".join(combo): summarise([images[place] for place in places], [photographs[place] for place in places])
            for combo, places in groups.items()
        },
        "plans": len(plans),
        "executions_per_image": sorted({row["executions"] for row in rows}),
        # the first image of a process waits for libraries, too
        "seconds_per_image": {part: float(np.median([row[f"{part}_seconds"] for row in rows])) for part in ("tool", "metric")},
        "metrics": suite.describe(),
        "undefined_values": dict(zip(suite.names, np.isnan(values).sum((0, 1)).tolist(), strict=True)),
        "settings": dict(settings),
        "images": [{"sample": row["sample"], **image} for row, image in zip(rows, images, strict=True)],
    }
    save_json(told, out / "study.json")
    picture(told).savefig(out / "study.png", dpi=150)
    console = Console()
    show(told, console)
    seconds = told["seconds_per_image"]
    lines = (
        f"{len(rows)} images of {len(set(photographs))} photographs; intervals: a bootstrap over photographs",
        f"{len(plans)} plans and {told['executions_per_image']} runs of a tool for each image",
        f"{seconds['tool']:.1f} s of tools and {seconds['metric']:.1f} s of metrics for an image (median)",
        f"metrics: {told['metrics']}; plans without a value: {told['undefined_values']}",
        f"{out / 'study.json'}, {out / 'study.png'}",
    )
    console.print("\n".join(lines), markup=False, highlight=False)


def look_at(values: np.ndarray, combo: Sequence[str], plans: Sequence[Plan], suite: MetricSuite) -> dict[str, Any]:
    """What the values of all plans (P, K) on one image say to the statistics, and the plan of the best aggregated rank."""
    ranks = rank(values, suite.signs)
    needs_reference = np.array([metric.needs_reference for metric in suite.metrics])
    chosen = high_performing(ranks, needs_reference)
    return {"best_plan": "+".join(plans[int(ranks.mean(1).argmin())]), "findings": findings(plans, combo, ranks, chosen)}


def summarise(images: Sequence[Mapping[str, Any]], photographs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each statistic the mean over all images, its 95 % interval by photograph, and the paper's mean; None where there is no value."""
    from ir_env.evaluation import bootstrap

    told = {}
    for name, (_, paper) in STATISTICS.items():
        found = [(value, photo) for image, photo in zip(images, photographs, strict=True) for value in image["findings"][name]]
        values, of = [value for value, _ in found], [photo for _, photo in found]
        told[name] = {"mean": float(np.mean(values)) if values else None, "interval": bootstrap(values, of), "paper": paper}
    return told


def show(told: Mapping[str, Any], console: Console) -> None:
    """Print the table beside the paper's figures, and the means by combination."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title="high-performing plans among all (OPERA, section 3.2)", box=SIMPLE_HEAD)
    by_combination = Table(title="by combination", box=SIMPLE_HEAD)
    table.add_column("statistic")
    by_combination.add_column("statistic")
    for name in ("paper", "here", "95 %", "by chance"):
        table.add_column(name, justify="right", no_wrap=True)
    for combo in told["by_combination"]:
        by_combination.add_column(combo.replace("+", "\n"), justify="right")
    for name, row in told["statistics"].items():
        interval = " to ".join(_number(name, end) for end in row["interval"] or [])
        numbers = [_number(name, value) for value in (row["paper"], row["mean"], told["by_chance"].get(name))]
        table.add_row(STATISTICS[name][0], *numbers[:2], interval, numbers[2])
        by_combination.add_row(STATISTICS[name][0], *(_number(name, rows[name]["mean"]) for rows in told["by_combination"].values()))
    for each in (table, by_combination):
        # where the terminal is narrower, lines run over and no figure is cut
        each.width = console.measure(each, options=console.options.update(max_width=1000)).maximum
        console.print(each, crop=False)


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1%}" if STATISTICS[name][1] < 1 else f"{value:.2f}"


def picture(told: Mapping[str, Any]) -> Figure:
    """How many plans are high-performing on each image; the shares and the ranks, here and in the paper."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1.1, 1.3))
    counts = [image["findings"]["high_performing"][0] for image in told["images"]]
    left.hist(counts, bins=np.arange(max(counts) + 2) - 0.5, color="lightsteelblue")
    row = told["statistics"]["high_performing"]
    left.axvline(row["mean"], color="tab:blue", label=f"mean: {row['mean']:.2f}")
    left.axvline(row["paper"], color="tab:orange", label=f"the paper's: {row['paper']:.2f}")
    left.set(title="high-performing plans", xlabel="plans", ylabel="images")
    left.legend(fontsize=8)
    for axes, labels, title in ((middle, SHARES, "shares"), (right, RANKS, "aggregated ranks (lower is better)")):
        rows, places = [told["statistics"][name] for name in labels], np.arange(len(labels))
        means = np.array([row["mean"] for row in rows], np.float64)
        ends = np.array([row["interval"] or [mean, mean] for row, mean in zip(rows, means, strict=True)]).T
        axes.bar(places - 0.2, means, 0.4, yerr=np.abs(ends - means), capsize=3, color="tab:blue", label="here, 95 % by photograph")
        axes.bar(places + 0.2, [row["paper"] for row in rows], 0.4, color="tab:orange", label="paper")
        lots = [(place, told["by_chance"][name]) for place, name in enumerate(labels) if name in told["by_chance"]]
        if lots:
            at, heights = np.array(lots).T
            axes.hlines(heights, at - 0.45, at + 0.45, "black", "dashed", label="by chance")
        axes.set_xticks(places, list(labels.values()), fontsize=8)
        axes.set_title(title)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    return figure
