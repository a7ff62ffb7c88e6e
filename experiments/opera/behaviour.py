"""How a planner of whole plans behaves (OPERA, section 5.3), and how well it names the degradations.

How to run
----------
    python -m experiments.opera.behaviour --policy results/opera_planner --photos FOLDER --out results/opera_behaviour.json

The plans for degraded photographs are written, and not executed. Printed beside the paper's numbers: of the images with noise, the share
whose plan begins with denoising; of the plans for rain and haze that treat both, the share that derains first; of the plans that deblur
(denoise), the share that does so more than once; tools by the number of degradations; Rd, the F1 of the degradations that it names; and
the shares of its answers that are well-formed, and that have a reasoning which bears the plan out (by the rules of
``ir_env/plan_reward.py``; a planner without language has none to judge).

Results to expect
-----------------
Seed 0 of ``planner.py``, 290 whole photographs of BSDS500's test set (paper): denoises first 66 % (90), derains before it dehazes 64 %
(75), deblurring repeated 32 % (97), denoising repeated 2 % (19), tools 1.7, 2.8, 3.3 (2.8, 3.8, 4.4), Rd .85 (.8); under groups A, B, C
.90.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

PAPER = {
    "denoises first, of noisy images": 0.895,
    "derains before it dehazes": 0.751,
    "deblurring repeated": 0.973,
    "denoising repeated": 0.187,
    "tools, 1 degradation": 2.8,
    "tools, 2 degradations": 3.8,
    "tools, 3 degradations": 4.4,
    "Rd": 0.8,
}
"""The last is what its figure 4 shows after 100 steps."""
DEBLUR = ("motion_deblur", "defocus_deblur")


class Planned(NamedTuple):
    """A plan, and what it is for."""

    combo: tuple[str, ...]
    tasks: tuple[str, ...]
    """Of its tools, in order."""
    named: tuple[str, ...]
    """The degradations that the policy names."""
    formed: bool = True
    """The answer is well-formed."""
    consistent: bool = True
    """Its reasoning bears out the plan."""


def main(arguments: list[str] | None = None) -> dict[str, float | None]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", required=True, help="a run, or what else ir-env restore takes as a policy; one that writes whole plans")
    parser.add_argument("--photos", required=True)
    parser.add_argument("--samples", type=int, default=290)
    parser.add_argument("--combos", default="opera:1:3:5")
    parser.add_argument("--seed", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)

    from policies.loading import load_policy
    from tool_actors.threads import limit_threads

    limit_threads(1)
    told = behaviour(plans_of(load_policy(options.policy), options.photos, options.combos, options.samples, options.seed))
    table = Table("behaviour", "paper", "here", title=f"{options.samples} images of {options.combos}")
    for name, value in told.items():
        form = (lambda number: f"{number:.2f}") if name.startswith("tools") else (lambda number: f"{number:.1%}")
        table.add_row(name, form(PAPER[name]) if name in PAPER else "", "" if value is None else form(value))
    Console().print(table)
    if options.out:
        options.out.write_text(json.dumps(told, indent=2) + "\n")
    return told


def plans_of(planner, photos: str, combos: str, samples: int, seed: int) -> list[Planned]:
    """The plans of a policy for degraded photographs, whole."""
    from ir_env.datasets.base import fixed_samples
    from ir_env.evaluation import BATCH
    from ir_env.plan_reward import judge_by_rules
    from ir_env.planner import observation_of
    from ir_env.process import RestorationProcess
    from policies.opera.planner import WholePlanner
    from tool_actors.errors import IrEnvError

    if not isinstance(planner, WholePlanner):
        raise IrEnvError(f"{planner.name} decides step by step; give a policy that writes whole plans, such as a run of opera/planner.py")
    dataset = {"photos": photos, "split": "all", "crop_size": None, "combos": combos}
    process = RestorationProcess(dataset, planner.toolbox or "default", metrics=["psnr"], reward="delta_psnr")
    drawn, planned = fixed_samples(process.dataset, samples, seed), []
    for start in range(0, samples, BATCH):
        episodes = process.start(drawn[start : start + BATCH])
        answers = planner.answers([observation_of(process, episode) for episode in episodes])
        for episode, answer, agrees in zip(episodes, answers, judge_by_rules(answers, process.actions), strict=True):
            tasks, formed = tuple(process.actions[index].task for index in answer.plan), answer.well_formed
            planned.append(Planned(tuple(episode.combo.split("+")), tasks, answer.degradations, formed, formed and agrees))
    return planned


def behaviour(planned: Sequence[Planned]) -> dict[str, float | None]:
    """What the paper counts; None where there is nothing to count."""
    from ir_env.plan_reward import f1

    noisy = [each.tasks[:1] == ("denoise",) for each in planned if "noise" in each.combo]
    both = [each.tasks for each in planned if {"rain", "haze"} <= set(each.combo) and {"derain", "dehaze"} <= set(each.tasks)]
    deblurs = [sum(task in DEBLUR for task in each.tasks) for each in planned]
    denoises = [each.tasks.count("denoise") for each in planned]
    told = {
        "denoises first, of noisy images": noisy,
        "derains before it dehazes": [tasks.index("derain") < tasks.index("dehaze") for tasks in both],
        "deblurring repeated": [count > 1 for count in deblurs if count],
        "denoising repeated": [count > 1 for count in denoises if count],
        **{
            f"tools, {size} degradation{'s' if size > 1 else ''}": [len(each.tasks) for each in planned if len(each.combo) == size]
            for size in (1, 2, 3)
        },
        "Rd": [f1(each.named, each.combo) for each in planned],
        "well-formed answers": [each.formed for each in planned],
        "consistent answers": [each.consistent for each in planned],
    }
    return {name: float(np.mean(values)) if values else None for name, values in told.items()}


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(lambda: 0 if main() else 1))
