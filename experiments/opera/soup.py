"""Of each tool the weights that serve a policy's plans best, chosen on photographs that no tool learned from: a greedy soup.

How to run
----------
    python -m experiments.opera.soup --photos FOLDER --policy results/opera_planner --out results/soup \\
        --after results/cotrained/toolbox/toolbox.yaml --after results/cotrained_longer/toolbox/toolbox.yaml

Tools that learn in chains gain where plans use them much, and forget where they do not; which of them should stay as they were is seen only
on other photographs. Tool by tool, the candidates are the weights before, those of each ``--after``, and the means of these and of those
before (Wortsman et al., "Model soups", ICML 2022, whose ingredients are whole models); kept is the one with which the plans' last images
are nearest to the clean ones, all other tools being as chosen so far. What a tool does alone on its own degradation counts, too
(``--alone``), so that it is not forgotten for a little. The tools are gone through ``--rounds`` times, those that plans use most first.

``--out`` then holds the plans, ``soup.json`` with what each candidate gains, and the toolbox.

Results to expect
-----------------
README has a soup of three toolboxes: 160 crops, 18 tools with three to five candidates each, two rounds, some ten minutes of a core; and
a second one, from which four epochs with PIQE went on. That takes eight epochs of ``opera/cotrain.py --terms mse,lpips=0.003 --lr 5e-4
--single 0.15 --images 800`` from the first, with the combinations that have haze or low light alone; a soup of the twenty epochs and these
(``--images 128 --alone 0.3``); from there the tools of these alone, on whole photographs (``--before`` the soup, ``--tools dark.shift
dark.gamma dark.range haze.thin haze.thick --images 112 --crop 0 --alone 0.1 --rounds 1``).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from tool_actors.errors import IrEnvError, UnknownNameError

if TYPE_CHECKING:
    from ir_env.datasets import Photos
    from tool_actors.cotraining import Part
    from tool_actors.learned import LearnedTool
    from tool_actors.toolbox import Tool, Toolbox

BEFORE = "before"
AT_ONCE = 8
CROP, ALONE = 128, 16
"""Of what a tool sees alone: side in pixels, and number."""
Candidates = dict[str, dict[str, "LearnedTool"]]
"""By tool, by name: the tool with these weights."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs that no tool learned from")
    parser.add_argument("--policy", default="simplecall", help="whose plans: a name, or the path of a checkpoint")
    parser.add_argument("--before", default="default", help="the tools as they were")
    parser.add_argument("--after", action="append", required=True, help="tools that learned together, under the same names; repeatable")
    parser.add_argument("--out", type=Path, default=Path("results/soup"))
    parser.add_argument("--combos", default="A,B,C", help="degradations of the images")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--crop", type=int, default=256, help="side of the images in pixels; 0 takes whole photographs")
    parser.add_argument("--tools", nargs="*", help="only these may change")
    parser.add_argument("--alone", type=float, default=0.5, help="what a decibel of a tool by itself is worth to one of the plans")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.images < 1 or options.rounds < 1 or options.alone < 0:
        raise IrEnvError("--images and --rounds are at least 1, --alone at least 0")
    if options.crop < 0 or options.crop % 32:
        raise IrEnvError(f"--crop is a multiple of 32, or 0 for whole photographs, not {options.crop}")

    from experiments.opera.crops import PlannedCrops
    from experiments.opera.plans import make_plans, planning
    from experiments.resumable import keep_settings
    from ir_env.datasets import load_photos
    from ir_env.evaluation import save_json
    from tool_actors.cotraining import batches
    from tool_actors.threads import limit_threads
    from tool_actors.toolboxes import load_toolbox
    from tool_actors.trained_toolbox import write_toolbox

    limit_threads(1)
    console = Console()
    before = load_toolbox(options.before)
    candidates = gather(before, {place: load_toolbox(place) for place in options.after}, options.tools)
    keep_settings(options.out, {name: str(value) for name, value in vars(options).items() if name != "out"})
    planner, process = planning(options.policy, options.before, options.photos, options.crop or None, options.combos, options.seed)
    with console.status("planning"):
        planned = make_plans(process, planner, options.images, options.seed, options.out / "plans.json")
    crops = PlannedCrops(process.dataset, planned, before, options.crop or None)
    if not crops.keys:
        raise IrEnvError("no image has a plan with a tool: give more --images, or another --policy")
    parts = [crops.part(places, None) for batch in batches(crops.keys, AT_ONCE, np.random.default_rng(0)) for places in batch]
    photos = load_photos(options.photos)
    with console.status("each tool alone"):
        alone = {name: by_itself(each, photos, min(CROP, options.crop or CROP), options.seed) for name, each in candidates.items()}
    with console.status("choosing"):
        told = choose({tool.spec.name: tool for tool in before}, candidates, parts, alone, options.alone, options.rounds)
    changed = {name: candidates[name][choice].module for name, choice in told["chosen"].items() if choice != BEFORE}
    show(told, alone, console)
    save_json(told | {"alone": alone}, options.out / "soup.json")
    if not changed:
        raise IrEnvError(f"no tool of {', '.join(options.after)} serves these plans better than that of {options.before}")
    print(write_toolbox(before, changed, options.out / "toolbox", f"Chosen under the plans of {planner.name} from {options.after}."))
    return 0


def gather(before: Toolbox, after: Mapping[str, Toolbox], only: Sequence[str] | None = None) -> Candidates:
    """The weights that each network may have: those before first; of those that are the same everywhere, none.

    Raises:
        UnknownNameError: a name of ``only`` is no tool.
        IrEnvError: a tool has another form in one of the toolboxes, or nothing differs.
    """
    from experiments.opera.interpolate import between
    from tool_actors.cotraining import with_module
    from tool_actors.learned import LearnedTool

    for name in only or ():
        if name not in before.names:
            raise UnknownNameError("tool", name, before.names)
    found: Candidates = {}
    for old in before:
        name = old.spec.name
        if only is not None and name not in only:
            continue
        made: dict[str, LearnedTool] = {}
        for place, toolbox in after.items():
            new = toolbox[name] if name in toolbox.names else None
            if isinstance(old, LearnedTool) and isinstance(new, LearnedTool) and new.spec.fingerprint != old.spec.fingerprint:
                made |= {place: new, f"half of {place}": with_module(old, between(old, new, 0.5))}
        if made and isinstance(old, LearnedTool):
            found[name] = {BEFORE: old, **made}
    if not found:
        raise IrEnvError(f"no network of {', '.join(after)} has other weights than that of the same name before")
    return found


def by_itself(candidates: Mapping[str, LearnedTool], photos: Photos, crop: int, seed: int) -> dict[str, float]:
    """Mean PSNR of each candidate on images with the tool's own degradation, in dB."""
    from experiments.opera.crops import single_part

    part = single_part(candidates[BEFORE], photos, ALONE, 0, crop, np.random.default_rng(seed))
    return {name: float(psnr({tool.spec.name: tool}, part).mean()) for name, tool in candidates.items()}


def psnr(tools: Mapping[str, Tool], part: Part) -> np.ndarray:
    """Of the last image of each chain, in dB."""
    import torch

    from tool_actors.cotraining import enlarged, psnr_of, run_chain

    with torch.no_grad():
        return psnr_of(enlarged(run_chain([tools[name] for name in part.plan], part.degraded), part.clean), part.clean).numpy()


def choose(
    tools: Mapping[str, Tool],
    candidates: Candidates,
    parts: Sequence[Part],
    alone: Mapping[str, Mapping[str, float]],
    worth: float,
    rounds: int,
) -> dict[str, Any]:
    """Go through the tools, those that plans use most first, and keep of each the candidate that is worth most.

    Args:
        tools: all of the plans, as they were.
        candidates: of those that may change.
        parts: images and their plans.
        alone: by tool and candidate, PSNR on its own degradation.
        worth: of the mean over tools of that, against the mean over images of the plans' PSNR.
        rounds: how often the tools are gone through, at most; it ends where none changes.

    Returns:
        ``chosen`` by tool, ``gains`` by round, tool and candidate (dB of the plans), and ``plans``, the mean PSNR before and after.
    """
    current, chosen = dict(tools), dict.fromkeys(candidates, BEFORE)
    values = [psnr(current, part).sum() for part in parts]
    images, start = sum(len(part.degraded) for part in parts), sum(values)
    uses = Counter(name for part in parts for name in part.plan for _ in part.degraded)
    gains: list[dict[str, dict[str, float]]] = []
    for _ in range(rounds):
        gains.append({})
        for name in sorted(candidates, key=lambda name: -uses[name]):
            at = [index for index, part in enumerate(parts) if name in part.plan]
            made = {chosen[name]: [values[index] for index in at]}
            for other in candidates[name].keys() - made.keys():
                made[other] = [psnr(current | {name: candidates[name][other]}, parts[index]).sum() for index in at]
            base = sum(made[chosen[name]])
            gains[-1][name] = {other: float(sum(each) - base) / images for other, each in made.items()}
            lost = {other: (alone[name][other] - alone[name][chosen[name]]) / len(candidates) for other in made}
            best = max(candidates[name], key=lambda other: gains[-1][name][other] + worth * lost[other])
            for index, value in zip(at, made[best], strict=True):
                values[index] = value
            chosen[name], current[name] = best, candidates[name][best]
        if len(gains) > 1 and all(each[chosen[name]] == 0 for name, each in gains[-1].items()):
            break
    return {"chosen": chosen, "gains": gains, "plans": {BEFORE: float(start) / images, "after": float(sum(values)) / images}}


def show(told: Mapping[str, Any], alone: Mapping[str, Mapping[str, float]], console: Console) -> None:
    table = RichTable("tool", "weights", "alone, dB")
    for name, choice in told["chosen"].items():
        table.add_row(name, choice, f"{alone[name][BEFORE]:.2f} {alone[name][choice] - alone[name][BEFORE]:+.2f}")
    console.print(table)
    single = np.mean([alone[name][choice] - alone[name][BEFORE] for name, choice in told["chosen"].items()])
    plans = told["plans"]
    console.print(
        f"plans: {plans[BEFORE]:.2f} dB before, {plans['after']:.2f} after; alone {single:+.2f} dB, the mean of {len(alone)} tools"
    )


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
