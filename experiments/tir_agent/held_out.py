"""What TIR-Agent's policies are measured by: held-out demonstrations, restored again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.episode import Episode
from ir_env.planner import Planner, run
from ir_env.process import PHOTO_LOW_RESOLUTION_BELOW, RestorationProcess

if TYPE_CHECKING:
    from datasets import Dataset

    from policies.vlm.edp import Trajectory
    from policies.vlm.planner import VLMPlanner

METRICS = ("psnry", "ssim", "gmsd")
"""Of the reward at nano scale, which are those of the tables."""
NO_REFERENCE = ("piqe",)
"""What the demonstrator judges by where there is no clean image: of the metrics that need no weights, the one that takes small crops."""
BATCH = 64


def make_process(made_with: dict[str, Any], metrics: Sequence[str] = METRICS, **options: Any) -> RestorationProcess:
    """The decision process of demonstrations, on images that are given to it."""
    small = made_with["crop"] or PHOTO_LOW_RESOLUTION_BELOW
    return RestorationProcess(None, made_with["toolbox"], metrics=list(metrics), low_resolution_below=small, **options)


def begin(process: RestorationProcess, rows: Dataset, rollouts: int = 1) -> list[Episode]:
    """Fresh episodes on the degraded images; those of one image one after another."""
    started = [process.start_image(np.asarray(row["degraded"]), np.asarray(row["clean"]), row["sample"]) for row in rows]
    return [episode.fork() for episode in started for _ in range(rollouts)]


def restore(
    process: RestorationProcess, planner: Planner, rows: Dataset, rollouts: int = 1, progress: Callable[[], None] = lambda: None
) -> list[Episode]:
    """Restore each image so many times."""
    episodes = begin(process, rows, rollouts)
    for start in range(0, len(episodes), BATCH):
        for _ in run(process, planner, episodes[start : start + BATCH]):
            progress()
    return episodes


def replay(process: RestorationProcess, rows: Dataset, plans: Sequence[Sequence[str]]) -> list[Episode]:
    """Run a plan, tools by name, on each image; as far as the process lets it."""
    episodes = begin(process, rows)
    for step in range(process.max_steps):
        live = [(episode, plan) for episode, plan in zip(episodes, plans, strict=True) if not episode.done]
        process.step([episode for episode, _ in live], [process.actions.index([*plan, "stop"][step]) for _, plan in live])
    return episodes


def summary(process: RestorationProcess, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Means over images.

    ``normalised`` is the sum over the metrics, oriented so that higher is better, of what each gained in units of its standard deviation
    over the degraded images.
    """
    first, last = (np.stack([episode.scores[at] for episode in episodes]) for at in (0, -1))
    gains = np.array([episode.total_reward for episode in episodes])
    normalised = (process.suite.signs * (last - first) / first.std(0)).sum(1)
    return {
        "images": len(episodes),
        "gain": float(gains.mean()),
        "gain_error": float(gains.std(ddof=1) / np.sqrt(len(gains))) if len(gains) > 1 else 0.0,
        "normalised": float(normalised.mean()),
        "metrics": dict(zip(process.suite.names, map(float, last.mean(0)), strict=True)),
        "worse": float((gains < -1e-9).mean()),
        "tools": float(np.mean([len(episode.applied) for episode in episodes])),
    }


def evaluate(planner: VLMPlanner, rows: Dataset, made_with: dict[str, Any]) -> dict[str, Any]:
    """A policy on held-out images, and how its answers were formed. Every tool that it calls is one execution."""
    process = make_process(made_with)
    told = summary(process, restore(process, planner, rows))
    return {**told, "executions": told["tools"], "well_formed": planner.well_formed, "answers": dict(planner.counts)}


def evaluate_demonstrator(rows: Dataset, made_with: dict[str, Any]) -> dict[str, Any]:
    """The demonstrations themselves, judged by the clean image."""
    process = make_process(made_with, max_steps=len(max(rows["tools"], key=len)) + 1)
    told = summary(process, replay(process, rows, rows["tools"]))
    return {**told, "executions": float(np.mean(rows["executions"]))}


def evaluate_traversal(rows: Dataset, made_with: dict[str, Any]) -> dict[str, Any]:
    """The demonstrator as it can be deployed: the degradations are perceived, and results are judged without the clean image.

    Images that are too small to be judged are enlarged by the first tool that does so, and left at that.
    """
    from ir_env.metrics import MetricError
    from policies.planners.traversal import TraversalPlanner
    from tool_actors.tasks import TASKS

    # a fifth of a point of PIQE, which goes from 0 to 100, does not count as a gain
    blind = make_process(made_with, NO_REFERENCE, reward_weights=dict.fromkeys(NO_REFERENCE, 0.1), max_steps=len(TASKS) + 1)
    enlarging = [action.tool for action in blind.actions if action.task == "super_resolve"][:1]
    planner, plans = TraversalPlanner(), []
    for row in range(len(rows)):
        try:
            [episode] = restore(blind, planner, rows.select([row]))
            plans.append([blind.actions.name(action) for action in episode.applied])
        except MetricError:
            plans.append(enlarging)
            planner.executions += len(enlarging)
    process = make_process(made_with, max_steps=len(TASKS) + 1)
    return {**summary(process, replay(process, rows, plans)), "executions": planner.executions / len(rows)}


def rollout_diversity(planner: VLMPlanner, rows: Dataset, made_with: dict[str, Any], rollouts: int) -> dict[str, Any]:
    """Figures 3 and 7 of the paper, on sampled rollouts."""
    from dataclasses import asdict

    from policies.vlm.exploration import diversity

    process = make_process(made_with)
    actions = process.actions
    trajectories: list[Trajectory] = [
        tuple((actions[i].task, actions[i].tool) for i in episode.applied) for episode in restore(process, planner, rows, rollouts)
    ]
    told = diversity([trajectories[at : at + rollouts] for at in range(0, len(trajectories), rollouts)])
    shares = {"mean_entropy": told.mean_entropy, "well_formed": planner.well_formed}
    # through JSON and back, so that what is returned is what is written
    return json.loads(json.dumps({"images": len(rows), "rollouts": rollouts, **asdict(told), **shares}))


def show(title: str, rows: Mapping[str, Mapping[str, Any]], more: Mapping[str, Callable[[Mapping[str, Any]], str]]) -> None:
    """Print policies side by side: gain, normalised gain, metrics, and ``more`` columns, from what :func:`evaluate` told."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "gain": lambda row: f"{row['gain']:+.2f}±{row['gain_error']:.2f}",
        "norm.": lambda row: f"{row['normalised']:+.2f}",
        **{name: lambda row, name=name: f"{row['metrics'][name]:.{2 if name == 'psnry' else 3}f}" for name in METRICS},
        **more,
    }
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *(tell(row) for tell in columns.values()))
    Console().print(table)
