"""Policies on whole photographs: the table, what they recognise, and what they miss.

How to run
----------
    python -m experiments.measurements.photographs --photos FOLDER --out results/photographs --samples 64 \\
        --policy trained=results/simplecall_ppo --policy shipped=simplecall --oracles
    python -m experiments.measurements.photographs --real FOLDER --out results/real --policy shipped=simplecall

``before:PATH`` is the policy of a run as it was before its training. With ``--oracles`` the best fixed plan, searched on these very images,
and greedy are rows, which takes some 30 s per image and core. A row that is there is read, not measured again; several ``--pair A,B`` tell
differences, and ``--pair A+B+C,D`` that of the mean of three, as of three seeds.

By degradation: of the images that have it, the share in which a tool of its task is applied (recall), and the gain less that of greedy; of
those that have it not, the share in which one is applied all the same (false alarms).

``--real`` holds folders of degraded photographs without a clean image, each named by its degradation: told is in how many the first tool,
or any, treats it; and each folder's restorations are written as contact sheets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from experiments.kept_rows import FIXED, GREEDY, KeptRows, parse_pairs, policy_at
from ir_env.datasets.base import Sample
from ir_env.evaluation import HELDOUT_SEED, Row, run_all, save_json
from ir_env.images import find_images, load_image, save_image
from ir_env.planner import Planner
from ir_env.process import RestorationProcess
from ir_env.rendering import sheet
from policies.restoration import NoMetrics, photograph_process
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS, TASK_OF
from tool_actors.threads import limit_threads

FOLDERS = {"lowlight": "low_light", "motion": "motion_blur", "defocus": "defocus_blur", "lowres": "low_resolution"}
"""Names of folders that are not those of degradations."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", help="folder of clean photographs, which are degraded")
    parser.add_argument("--real", type=Path, help="folder of folders of degraded photographs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--policy", action="append", default=[], metavar="NAME=POLICY", help="repeatable; POLICY as for ir-env restore")
    parser.add_argument("--pair", action="append", default=[], metavar="A,B", help="rows whose difference is told; repeatable")
    parser.add_argument("--oracles", action="store_true", help="measure greedy and the best fixed plan, too")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--combos", default="A,B,C")
    parser.add_argument("--crop", type=int, default=0, help="side of crops in pixels; 0 takes whole photographs")
    parser.add_argument("--seed", type=int, default=HELDOUT_SEED, help="names the images")
    parser.add_argument("--metrics", default="psnr,psnry,ssim_ycbcr,piqe")
    options = parser.parse_args(arguments)
    if not (options.photos or options.real):
        raise IrEnvError("give --photos, --real, or both")
    limit_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    named = [(name, policy) for name, _, policy in (text.partition("=") for text in options.policy)]
    if options.photos:
        measure(options, named)
    if options.real:
        look_at_real(options.real, named, options.out)
    return 0


# -- degraded photographs ------------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, named: Sequence[tuple[str, str]]) -> None:
    """Print and keep the table, and that by degradation."""
    dataset, console = {"photos": options.photos, "split": "all", "crop_size": options.crop or None, "combos": options.combos}, Console()
    pairs, metrics = parse_pairs(options.pair), options.metrics.split(",")
    kept = KeptRows(options.out, dataset, options.samples, options.seed, metrics, options.oracles, console)
    kept.measure([(name, policy, "") for name, policy in named])
    table, rows = kept.table(pairs, ("reward", "gain", *kept.process.suite.names, "tools")), kept.rows
    table.show(console)
    table.save(options.out / "table.json")
    if FIXED in rows and GREEDY in rows:
        gains = {name: float(np.mean(np.array(row.per_image["gain"], float))) for name, row in rows.items()}
        for name, row in rows.items():
            share = (gains[name] - gains[FIXED]) / (gains[GREEDY] - gains[FIXED])
            console.print(
                f"{name}: {share:.0%} of the way from the best fixed plan to greedy, {row.tools / rows[GREEDY].tools:.0%} of its tools"
            )
    by_degradation = {name: recognition(row, kept.samples, rows.get(GREEDY)) for name, row in rows.items() if "treated" in row.more}
    save_json(by_degradation, options.out / "by_degradation.json")
    show_recognition(by_degradation, console)


def recognition(row: Row, samples: Sequence[str], greedy: Row | None) -> dict[str, dict[str, float | None]]:
    """By degradation: images that have it, recall, false alarms, mean gain, and gain less that of greedy."""
    combos = [Sample.parse(sample).combo for sample in samples]
    treated = [set(text.split()) for text in row.more["treated"]]
    told = {}
    for degradation in DEGRADATIONS:
        has = np.array([degradation in combo for combo in combos])
        treats = np.array([TASK_OF[degradation] in tasks for tasks in treated])
        gain = np.array(row.per_image["gain"], float)
        lost = None if greedy is None else gain - np.array(greedy.per_image["gain"], float)
        told[degradation] = {
            "images": int(has.sum()),
            "recall": _mean(treats[has]),
            "false_alarms": _mean(treats[~has]),
            "gain": _mean(gain[has]),
            "less_than_greedy": None if lost is None else _mean(lost[has]),
        }
    return told


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def show_recognition(told: dict[str, dict], console: Console) -> None:
    for name, rows in told.items():
        table = RichTable("degradation", "images", "recall", "false alarms", "gain", "less greedy's", title=name)
        for degradation, row in rows.items():
            cells = [f"{row[key]:.0%}" if row[key] is not None else "" for key in ("recall", "false_alarms")]
            cells += [f"{row[key]:+.2f}" if row[key] is not None else "" for key in ("gain", "less_than_greedy")]
            table.add_row(degradation, str(row["images"]), *cells)
        console.print(table)


# -- real photographs ----------------------------------------------------------------------------------------------------------------


def look_at_real(folder: Path, named: Sequence[tuple[str, str]], out: Path) -> None:
    """Restore the photographs of each folder; print and keep what was treated, and write the contact sheets."""
    console, told = Console(), {}
    places = sorted(place for place in folder.iterdir() if place.is_dir())
    for name, at in named:
        planner = policy_at(at)
        process = photograph_process(planner)
        process.suite = NoMetrics()
        table = RichTable("folder", "photographs", "treated first", "treated", "applied", title=name)
        told[name] = {}
        for place in places:
            degradation = FOLDERS.get(place.name, place.name)
            if degradation not in TASK_OF:
                raise IrEnvError(f"{place}: no degradation is named so; there are {', '.join(DEGRADATIONS)} and {', '.join(FOLDERS)}")
            row = restored(process, planner, find_images(place), out / f"{name}_{place.name}.png")
            first = [tasks[:1] == [TASK_OF[degradation]] for tasks in row["tasks"]]
            any_ = [TASK_OF[degradation] in tasks for tasks in row["tasks"]]
            told[name][place.name] = {**row, "first": sum(first), "any": sum(any_)}
            table.add_row(
                place.name, str(len(first)), str(sum(first)), str(sum(any_)), "; ".join("+".join(each) or "-" for each in row["tools"])
            )
        console.print(table)
    save_json(told, out / "real.json")


def restored(process: RestorationProcess, planner: Planner, paths: Sequence[Path], place: Path) -> dict[str, Any]:
    """What was applied to each photograph; the strips of all of them are written below one another."""
    told: dict[str, Any] = {"photographs": [], "tools": [], "tasks": []}
    strips = []
    for path in paths:
        episode = process.start_image(load_image(path), name=path.name)
        run_all(process, planner, [episode])
        told["photographs"].append(path.name)
        told["tools"].append([process.actions.name(action) for action in episode.applied])
        told["tasks"].append([process.actions[action].task for action in episode.applied])
        titles = [path.name, *map(process.actions.name, episode.applied)]
        strips.append(sheet([(state.as_uint8(), title, "") for state, title in zip(episode.states, titles, strict=True)]))
    width = max(strip.shape[1] for strip in strips)
    save_image(place, np.concatenate([np.pad(each, ((0, 0), (0, width - each.shape[1]), (0, 0)), constant_values=255) for each in strips]))
    return told


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
