"""The commands ``ir-env bench`` and ``ir-env report``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.benchmark.sets import TestSet

HELDOUT_SEED = 20_000
"""Names the same images as :data:`ir_env.evaluation.HELDOUT_SEED`, which is heavy to import."""


def add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="NAME=POLICY[@TOOLBOX]",
        help="repeatable; POLICY is what restore takes, before:RUN (as it was before its training), or a planner of yours, FILE.py:NAME or "
        "MODULE:NAME",
    )
    where = parser.add_argument_group("test sets; several may be given")
    where.add_argument("--photos", metavar="FOLDER", help="clean photographs, which are degraded (or builtin)")
    where.add_argument(
        "--sets",
        default="A,B,C",
        help="of these photographs: groups (A, B, C, single), combinations such as rain+haze, D2, D35 (default: A,B,C)",
    )
    where.add_argument("--crop", type=int, default=0, metavar="PIXELS", help="side of crops (default: whole photographs)")
    where.add_argument("--mio100", metavar="FOLDER", help="MiO100's layout (HQ, LQ/d2/rain+haze, ...): its groups A, B and C")
    where.add_argument("--cdd11", metavar="FOLDER", help="CDD-11's layout (clear, haze, low_haze_rain, ...)")
    where.add_argument("--pairs", metavar="FOLDER", help="RL-Restore's layout (mild_in, mild_gt, ...): each NAME_in, NAME_gt is a set")
    where.add_argument("--real", action="append", default=[], metavar="FOLDER", help="photographs without a clean image; repeatable")
    where.add_argument(
        "--samples", type=int, default=64, metavar="N", help="images of --photos, and at most of each of the others; 0: all those"
    )
    where.add_argument("--seed", type=int, default=HELDOUT_SEED, help="names the images")
    where.add_argument(
        "--seen",
        choices=("refuse", "drop", "mark"),
        default="refuse",
        help="what becomes of combinations of D2 and D35 that a policy's training saw: an error, left out, a mark (default: refuse)",
    )
    parser.add_argument(
        "--metrics", default="auto", help="auto (paper if all weights are there, else offline), paper, offline, or names (default: auto)"
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="NAME",
        help="repeatable; a policy of the table that the others are set against, paired by image",
    )
    parser.add_argument("--out", default="results/bench", metavar="FOLDER", help="of the results (default: results/bench)")
    parser.add_argument("--processes", type=int, default=1, metavar="K", help="that work at once, with one thread each")
    parser.add_argument("--executor", default="local", help="local, or pool or pool:NAME, a running MC-Pool (default: local)")
    parser.add_argument("--policy-seed", type=int, default=0, help="of policies that draw")
    parser.add_argument("--gallery", type=int, default=4, metavar="N", help="images whose trajectories are kept for the report")


def add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the --out of bench")
    parser.add_argument("--curves", nargs="+", default=[], metavar="RUN", help="trainings whose learning curves are shown")
    parser.add_argument("--out", metavar="FILE", help="(default: report.html in the run)")


def bench(options: argparse.Namespace) -> int:
    from rich.console import Console

    from experiments.benchmark.bench import Settings, load_planners, run
    from experiments.benchmark.measure import Entry, settle_metrics
    from experiments.benchmark.results import NAMES, write_results
    from experiments.benchmark.sets import check_unseen, trained_combos
    from experiments.benchmark.tables import blocks_of, notes_of
    from ir_env.images import make_folder
    from tool_actors.errors import IrEnvError, UnknownNameError
    from tool_actors.threads import limit_threads

    if options.processes < 1 or options.samples < 0 or options.gallery < 0:
        raise IrEnvError("--processes is at least 1, --samples and --gallery at least 0")
    limit_threads(1)
    console, out = Console(), make_folder(options.out)
    entries = [Entry.parse(text) for text in options.policy]
    if unknown := [name for name in options.against if name not in [entry.name for entry in entries]]:
        raise UnknownNameError("policy of the table", unknown[0], [entry.name for entry in entries])
    planners = load_planners(entries, options.policy_seed)
    trained = {name: trained_combos(planner) for name, planner in planners.items()}
    sets = _sets(options, trained)
    if options.seen != "mark":
        check_unseen(sets, trained)
    metrics, note = settle_metrics(options.metrics)
    if note:
        console.print(note, soft_wrap=True)
    settings = Settings(metrics, options.executor, options.processes, options.policy_seed, options.gallery)
    rows, told, errors = run(entries, planners, sets, settings, out, console)
    if rows:
        results = write_results(rows, {**told, "image_seed": options.seed, "against": options.against}, out)
        for block in blocks_of(results):
            if block.shown:
                show(block, console)
        for line in notes_of(results):
            console.print(line, soft_wrap=True, markup=False, highlight=False)
        console.print(f"{', '.join(str(out / name) for name in NAMES)}; look at it with: ir-env report {options.out}", soft_wrap=True)
    if errors:
        raise IrEnvError("; ".join(errors) + ". What was measured is kept: repeat the command when the cause is mended.")
    return 0


def _sets(options: argparse.Namespace, trained: Mapping[str, Any]) -> list[TestSet]:
    from experiments.benchmark.sets import ready, synthesised, without_seen
    from ir_env.datasets.pairs import set_names
    from tool_actors.errors import IrEnvError

    sets = []
    if options.photos:
        names = [name.strip() for name in options.sets.split(",") if name.strip()]
        instead = without_seen(names, trained) if options.seen == "drop" else None
        if options.samples < 1 or not names:
            raise IrEnvError("--photos needs at least one of --sets, and --samples of at least 1: its images are drawn")
        sets += synthesised(names, options.photos, options.crop or None, options.samples, options.seed, instead)
    if options.mio100:
        sets += [ready(f"MiO100 {group}", {"mio100": options.mio100, "groups": group}, options.samples, options.seed) for group in "ABC"]
    if options.cdd11:
        sets.append(ready("CDD-11", {"cdd11": options.cdd11}, options.samples, options.seed))
    if options.pairs:
        sets += [ready(name, {"pairs": options.pairs, "name": name}, options.samples, options.seed) for name in set_names(options.pairs)]
    for folder in options.real:
        sets.append(ready(Path(folder).resolve().name, {"real": folder}, options.samples, options.seed, has_reference=False))
    if not sets:
        raise IrEnvError("there is nothing to measure on: give --photos, --mio100, --cdd11, --pairs or --real")
    names = [each.name for each in sets]
    if twice := {name for name in names if names.count(name) > 1}:
        raise IrEnvError(f"two sets are named {', '.join(twice)}: rename a folder")
    return sets


def show(block, console) -> None:
    """Print a table, as wide as its columns are."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(block.title), box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for at, name in enumerate(block.heads):
        table.add_column(escape(name), justify="right" if at else "left", no_wrap=True)
    for at, row in enumerate(block.rows):
        table.add_row(*[f"[bold]{escape(text)}[/]" if (at, column) in block.bold else escape(text) for column, text in enumerate(row)])
    table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
    console.print(table, crop=False)


def report(options: argparse.Namespace) -> int:
    from experiments.benchmark.report import write_report

    print(write_report(Path(options.run), [Path(run) for run in options.curves], Path(options.out) if options.out else None))
    return 0
