"""Systems side by side on whole photographs, by group: planners with the tools as they were, and with those that learned together.

How to run
----------
    python -m experiments.opera.table --photos FOLDER --out results/opera_table --samples 64 \\
        --row "planning=results/opera_planner" --row "full=results/opera_planner@results/cotrained/toolbox/toolbox.yaml" \\
        --row SimpleCall=simplecall --row "TIR-Agent nano=tir_agent" --row MAIR=mair --oracles --pair planning,before

A row is ``NAME=POLICY`` or ``NAME=POLICY@TOOLBOX``; POLICY is what ``ir-env restore`` takes, or ``before:RUN``, the policy of a run as it
was before its training. ``--oracles`` adds greedy and the best fixed plan, which is searched on these very images. Rows that are there are
read, not measured again. ``--paper NAME`` prints a table of the paper beside the groups' means: 1, 9, 10 or 11.

Results to expect
-----------------
README has the planners on 160 whole photographs of BSDS500's test set; a row takes some two minutes on one core, greedy 30 s per image.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from ir_env.evaluation import Table

PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "1": {
        "AgenticIR": (21.04, 0.68, 20.55, 0.70, 18.82, 0.55),
        "MAIR": (21.02, 0.67, 20.92, 0.70, 19.42, 0.55),
        "4KAgent": (21.48, 0.67, 20.95, 0.67, 19.77, 0.56),
        "OPERA, planning": (22.32, 0.71, 22.28, 0.75, 20.75, 0.61),
        "OPERA, full": (24.81, 0.77, 24.63, 0.78, 23.04, 0.66),
    },
    "9": {
        "1:1:1, planning": (21.47, 0.70, 20.95, 0.73, 19.91, 0.60),
        "1:1:1, full": (22.14, 0.72, 21.44, 0.74, 20.32, 0.61),
        "1:3:5, planning": (21.53, 0.70, 21.22, 0.73, 20.27, 0.60),
        "1:3:5, full": (23.26, 0.76, 22.81, 0.76, 21.85, 0.64),
    },
    "10": {
        "without Rc, planning": (21.83, 0.70, 22.03, 0.76, 19.91, 0.62),
        "without Rc, full": (23.26, 0.76, 24.61, 0.79, 22.67, 0.67),
        "with Rc, planning": (22.32, 0.71, 22.28, 0.75, 20.75, 0.61),
        "with Rc, full": (24.81, 0.77, 24.63, 0.78, 23.04, 0.66),
    },
    "11": {
        "five metrics": (21.53, 0.70, 21.22, 0.73, 20.27, 0.60),
        "no-reference metrics alone": (20.86, 0.70, 20.16, 0.70, 19.83, 0.61),
    },
}
"""PSNR and SSIM, both of Y, on the groups A, B and C. The same planner stands as 22.32 in table 1 and 21.53 in tables 7, 9 and 11, and the
full system as 24.81 and 23.26: the paper contradicts itself."""
METRICS = ("psnr", "psnry", "ssim_ycbcr", "piqe")
SHOWN = ("psnry", "ssim_ycbcr")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs that nothing learned from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--row", action="append", default=[], metavar="NAME=POLICY[@TOOLBOX]", help="repeatable")
    parser.add_argument("--pair", action="append", default=[], metavar="A,B", help="rows whose difference is told, A+B+C,D of a mean")
    parser.add_argument("--oracles", action="store_true")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--combos", default="A,B,C")
    parser.add_argument("--crop", type=int, default=0, help="side of crops in pixels; 0 takes whole photographs")
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--paper", choices=PAPER, default="1")
    options = parser.parse_args(arguments)

    from experiments.kept_rows import GREEDY, KeptRows, parse_pairs
    from ir_env.evaluation import save_json
    from tool_actors.threads import limit_threads

    limit_threads(1)
    pairs, console = parse_pairs(options.pair), Console()
    dataset = {"photos": options.photos, "split": "all", "crop_size": options.crop or None, "combos": options.combos}
    kept = KeptRows(options.out, dataset, options.samples, options.seed, METRICS, options.oracles, console)
    named = [(name, *place.partition("@")[::2]) for name, _, place in (text.partition("=") for text in options.row)]
    kept.measure(named)
    table, rows = kept.table(pairs, ("reward", *METRICS, "tools")), kept.rows
    table.show(console)
    table.save(options.out / "table.json")
    if GREEDY in rows:
        best = rows[GREEDY]
        for name, row in rows.items():
            share = (row.gain or 0.0) / (best.gain or 1.0)
            console.print(f"{name}: {share:.0%} of greedy's gain, {row.tools / best.tools:.0%} of its tools")
    groups = group_of(kept.samples)
    by_group = {name: group_means(row.per_image, groups) for name, row in rows.items()}
    save_json(by_group, options.out / "by_group.json")
    show_groups(by_group, options.paper, console)
    for first, second in pairs:
        for line in group_differences(table, first, second, groups):
            console.print(line, soft_wrap=True)
    return 0


def group_of(samples: Sequence[str]) -> list[str]:
    """The benchmark's group of each sample; empty where its combination is in none."""
    from ir_env.datasets.base import Sample
    from ir_env.degradations.combos import GROUPS

    known = {combo: group for group in "ABC" for combo in GROUPS[group]}
    return [known.get(Sample.parse(sample).combo, "") for sample in samples]


def group_means(per_image: dict[str, list], groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Group -> column -> mean, of the groups that have images."""
    of = np.array(groups)
    return {
        group: {column: float(np.mean(np.array(per_image[column], float)[of == group])) for column in ("gain", *METRICS)}
        for group in "ABC"
        if (of == group).any()
    }


def group_differences(table: Table, first: Sequence[str], second: str, groups: Sequence[str]) -> list[str]:
    """A line per group: what the first row, or the mean of several, has more than the second, with 95 % intervals by photograph."""
    from ir_env.evaluation import bootstrap

    lines = []
    for group in sorted(set(groups) - {""}):
        chosen, told = np.array(groups) == group, []
        for column in ("gain", *METRICS):
            ours = np.mean([np.array(table.row(name).per_image[column], float) for name in first], axis=0)
            values = (ours - np.array(table.row(second).per_image[column], float))[chosen]
            low, high = bootstrap(values, np.array(table.photographs)[chosen]) or (float("nan"),) * 2
            told.append(f"{column} {np.nanmean(values):+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"group {group}, {' + '.join(first)} less {second}: {'; '.join(told)}")
    return lines


def show_groups(by_group: dict[str, dict], paper: str, console: Console) -> None:
    heads = [f"{group} {label}" for group in "ABC" for label in ("PSNR", "SSIM")]
    table = RichTable(
        "system", *heads, title=f"by group, PSNR and SSIM of Y, beside the paper's table {paper} (other images, tools and sizes)"
    )
    for name, means in by_group.items():
        cells = [
            f"{means[group][column]:.{2 if column == 'psnry' else 3}f}" if group in means else "" for group in "ABC" for column in SHOWN
        ]
        table.add_row(name, *cells)
    table.add_section()
    for name, values in PAPER[paper].items():
        table.add_row(f"paper: {name}", *[f"{value:.2f}" for value in values], style="dim")
    console.print(table)


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
