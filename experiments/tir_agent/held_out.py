"""What TIR-Agent's policies are measured on: held-out demonstrations, restored again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.episode import Episode
from ir_env.evaluation import Row, Table, photo_of, run_all, summarise
from ir_env.planner import Planner
from ir_env.process import PHOTO_LOW_RESOLUTION_BELOW, RestorationProcess
from tool_actors.tasks import TASKS

if TYPE_CHECKING:
    from datasets import Dataset

    from policies.vlm.edp import Trajectory
    from policies.vlm.planner import VLMPlanner

METRICS = ("psnr", "psnry", "ssim_ycbcr", "piqe")
"""Of the tables: those of the reward at nano scale, and PSNR-Y."""


def make_process(made_with: dict[str, Any], **options: Any) -> RestorationProcess:
    """The decision process of demonstrations, on images that are given to it."""
    small = made_with["heldout_crop"] or PHOTO_LOW_RESOLUTION_BELOW
    return RestorationProcess(None, made_with["toolbox"], metrics=list(METRICS), low_resolution_below=small, **options)


def begin(process: RestorationProcess, rows: Dataset, rollouts: int = 1) -> list[Episode]:
    """Fresh episodes on the degraded images; those of one image one after another."""
    started = [process.start_image(np.asarray(row["degraded"]), np.asarray(row["clean"]), row["sample"]) for row in rows]
    return [episode.fork() for episode in started for _ in range(rollouts)]


def evaluate(name: str, planner: Planner, rows: Dataset, made_with: dict[str, Any]) -> Row:
    """A policy on held-out images, and how its answers were formed if it is a vision-language model."""
    from policies.vlm.planner import VLMPlanner

    process = make_process(made_with)
    episodes = begin(process, rows)
    run_all(process, planner, episodes)
    formed = {"well_formed": planner.well_formed, "answers": dict(planner.counts)} if isinstance(planner, VLMPlanner) else {}
    return summarise(process, name, episodes, **formed)


def evaluate_demonstrator(name: str, rows: Dataset, made_with: dict[str, Any]) -> Row:
    """The demonstrations themselves, judged by the clean image; their executions are those that they took to make."""
    process = make_process(made_with, max_steps=len(max(rows["tools"], key=len)) + 1)
    episodes = process.follow(begin(process, rows), [list(map(process.actions.index, tools)) for tools in rows["tools"]])
    for episode, executions in zip(episodes, rows["executions"], strict=True):
        episode.executions = executions
    return summarise(process, name, episodes)


def evaluate_traversal(name: str, rows: Dataset, made_with: dict[str, Any]) -> Row:
    """The demonstrator as it can be deployed: degradations are perceived, and results judged without the clean image."""
    from policies.planners.traversal import JUDGES, TraversalPlanner

    process = make_process(made_with, max_steps=len(TASKS) + 1)
    episodes = begin(process, rows)
    run_all(process, TraversalPlanner(judges=JUDGES), episodes)
    return summarise(process, name, episodes)


def rollout_diversity(planner: VLMPlanner, rows: Dataset, made_with: dict[str, Any], rollouts: int) -> dict[str, Any]:
    """Figures 3 and 7 of the paper, on sampled rollouts: :class:`policies.vlm.exploration.Diversity` as a mapping, its ``mean_entropy``,
    ``tools`` (P(m|t) of what was called), ``images``, ``rollouts``, and the share of ``well_formed`` answers."""
    from policies.vlm.edp import tool_distribution
    from policies.vlm.exploration import diversity

    process = make_process(made_with)
    actions = process.actions
    episodes = begin(process, rows, rollouts)
    run_all(process, planner, episodes)
    trajectories: list[Trajectory] = [tuple((actions[i].task, actions[i].tool) for i in episode.applied) for episode in episodes]
    told = diversity([trajectories[at : at + rollouts] for at in range(0, len(trajectories), rollouts)])
    tools = tool_distribution(trajectories, planner.settings.prompter(actions).tools_of)
    shares = {"mean_entropy": told.mean_entropy, "tools": tools, "well_formed": planner.well_formed}
    # through JSON and back, so that what is returned is what is written
    return json.loads(json.dumps({"images": len(rows), "rollouts": rollouts, **asdict(told), **shares}))


def table_of(told: Sequence[Row], rows: Dataset) -> Table:
    """Policies side by side on the same held-out demonstrations."""
    from ir_env.metrics import MetricSuite

    return Table(list(told), [photo_of(sample) for sample in rows["sample"]], f"metrics: {MetricSuite(METRICS).describe()}")
