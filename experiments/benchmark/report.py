"""A run of ``ir-env bench`` as one page: tables, quality against cost, tool use, order, learning curves, and the gallery."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.benchmark import charts, page
from experiments.benchmark.learning_curves import read_runs
from experiments.benchmark.results import load_results
from experiments.benchmark.statistics import Row
from experiments.benchmark.tables import Block, blocks_of, label, notes_of, number
from experiments.benchmark.tool_use import effects, lengths, orders, task_counts
from ir_env.images import written_whole

FILE = "report.html"


def write_report(run: Path, curves: Sequence[Path] = (), out: Path | None = None) -> Path:
    """Write the page; raises :class:`tool_actors.errors.IrEnvError` where there are no results, or no curves."""
    results, rows = load_results(run)
    blocks = blocks_of(results)
    sections = {
        "Results": _results(results, blocks),
        "Quality against cost": _cost(results),
        "Tool use": _tool_use(results, rows),
        "Order": _order(rows),
    }
    if curves:
        sections["Learning curves"] = _curves([*curves])
    gallery = read_gallery(run, results)
    if gallery["images"]:
        sections["Gallery"] = page.GALLERY
    images = sum(each["images"] for each in results["sets"])
    lead = f"{len(results['policies'])} policies on {images} images of {', '.join(each['name'] for each in results['sets'])}"
    html = page.page(f"ir_env benchmark: {run.resolve().name}", lead, sections, notes_of(results), gallery)
    path = out or run / FILE
    with written_whole(path) as file:
        file.write(html.encode())
    return path


def _results(results: Mapping[str, Any], blocks: Sequence[Block]) -> str:
    overall = results["rows"]["overall"]["all"]
    gains = {name: (told["means"]["gain"], told["intervals"]["gain"]) for name, told in overall.items()}
    first, *others = blocks
    drawn = page.figures({"Gain in quality, with 95 % intervals by photograph": charts.forest(gains, "gain in quality")})
    told = [
        f"<h3>{escape(block.title)}</h3>{page.table(block)}" if block.shown else page.folded(block.title, page.table(block))
        for block in others
    ]
    return page.table(first) + drawn + "".join(told)


def best_policy(results: Mapping[str, Any]) -> str:
    """That with the highest gain, of those that do not look at the clean image, if there are any."""
    compared = _blind(results)
    return max(compared, key=lambda name: compared[name]["means"]["gain"])


def _blind(results: Mapping[str, Any]) -> dict[str, Any]:
    """The policies that do not look at the clean image; all, if there is none."""
    overall = results["rows"]["overall"]["all"]
    return {name: told for name, told in overall.items() if not results["policies"][name]["needs_reference"]} or dict(overall)


def _cost(results: Mapping[str, Any]) -> str:
    # oracles run so many tools that the others would lie on one another
    overall = _blind(results)
    drawn = {
        title: charts.scatter(
            {name: (told["means"][column], told["means"]["gain"], told["intervals"]["gain"]) for name, told in overall.items()},
            axis,
            "gain",
        )
        for title, column, axis in (
            ("Gain against tools run", "executions", "tools run per image"),
            ("Gain against time", "seconds", "seconds per image"),
        )
    }
    return page.figures(drawn) + charts.legend(list(overall))


def _tool_use(results: Mapping[str, Any], rows: Sequence[Row]) -> str:
    counts, metrics = task_counts(rows), results["metrics"]
    tasks = list(next(iter(counts.values())))
    told = page.figures({"Calls of each task per image": charts.stacked(counts, "calls per image")}) + charts.legend(tasks)
    shares = lengths(rows)
    told += page.figures({"Images by the number of tools applied": charts.stacked(shares, "share of images", first=0)})
    told += charts.legend([f"{count} tool{'' if count == '1' else 's'}" for count in next(iter(shares.values()))], first=0)
    reference = best_policy(results)
    told += page.paragraph(
        f"What goes with other calls than those of {reference}, which gains most without the clean image. Over the images on which another "
        "policy calls a task or a tool more (or less) often than it does: the mean difference to it in each metric, turned so that higher "
        "is better, in standard deviations of the metric over all restored images."
    )
    for title, of, fewer in (
        ("A task called more often", "tasks", False),
        ("A task called less often", "tasks", True),
        ("A tool called more often", "plan", False),
    ):
        found = effects(rows, reference, metrics, of, fewer)
        if found:
            lines = [(name, str(each["cases"]), *[_signed(each[metric]) for metric in metrics]) for name, each in found.items()]
            block = Block(title, (title.split()[1], "cases", *map(label, metrics)), tuple(lines))
            html = page.table(block)
            told += page.folded(title, html) if of == "plan" else f"<h3>{title}</h3>{html}"
    return told


def _order(rows: Sequence[Row]) -> str:
    found = orders(rows)
    if not found:
        return page.paragraph("No plan calls two tasks.")
    policies = list(dict.fromkeys(policy for told in found.values() for policy in told))
    lines = [
        (f"{first} before {later}", *[f"{told[name][0]:.0%} of {told[name][1]}" if name in told else "" for name in policies])
        for (first, later), told in found.items()
    ]
    text = "Of the plans that call both tasks, the share that calls the first one first, for the pairs that come up most often."
    return page.paragraph(text) + page.table(Block("Order of two tasks", ("tasks", *policies), tuple(lines)))


def _curves(runs: list[Path]) -> str:
    told = read_runs(runs)
    names = list(dict.fromkeys(run for curves in told.values() for run in curves))
    # a run keeps its colour in all charts
    drawn = {title: charts.lines({name: curves.get(name, []) for name in names}, "iteration", title) for title, curves in told.items()}
    return page.figures(drawn) + charts.legend(names)


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


# -- the gallery ---------------------------------------------------------------------------------------------------------------------


def read_gallery(run: Path, results: Mapping[str, Any]) -> dict[str, Any]:
    """What page.js reads: ``pictures`` (data URLs, each once), ``images`` with the trajectories of all policies, and the ``policy`` that is
    shown first."""
    pictures: dict[str, int] = {}
    images: dict[str, dict[str, Any]] = {}
    for place in results["gallery"]:
        folder = run / place
        if not (folder / "trajectory.json").is_file():
            continue
        told = json.loads((folder / "trajectory.json").read_text())
        steps = [
            {
                "tool": step["tool"],
                "picture": _picture(folder / f"{at}.webp", pictures),
                "metrics": {label(name): number(name, value) for name, value in step["metrics"].items()},
            }
            for at, step in enumerate(told["steps"])
        ]
        clean = folder / "clean.webp"
        image = images.setdefault(
            told["sample"],
            {
                "name": f"{told['combination'] or 'as it was taken'}: {told['sample'].partition('|')[0].partition('[')[0]}",
                "clean": _picture(clean, pictures) if clean.is_file() else None,
                "trajectories": [],
            },
        )
        image["trajectories"].append({"policy": told["policy"], "steps": steps, "error": told["error"]})
    return {"pictures": list(pictures), "images": list(images.values()), "policy": best_policy(results)}


def _picture(path: Path, pictures: dict[str, int]) -> int:
    url = "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()
    return pictures.setdefault(url, len(pictures))
