"""Exploration-driven perturbation (EDP) of demonstrations: TIR-Agent, section 3.2, equations 1 to 4.

Demonstrations that always take the tasks in one order, and one tool per task, leave a policy with nothing to explore. EDP adds copies in
another order and replaces some tools by others of the same task. The images of a perturbed trajectory are those that its tools make; who
uses the trajectory runs it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tool_actors.errors import IrEnvError

Step = tuple[str, str]
"""A task and a tool."""
Trajectory = tuple[Step, ...]
"""The steps of a restoration, in order, without the stop that ends it."""
Demonstration = tuple[int, Trajectory]
"""Which degraded image (its row in the data), and a trajectory for it."""

ALPHA_ORDER, ALPHA_TOOL = 0.3, 0.4
"""The paper's alpha^t and alpha^m."""


def perturb(
    demonstrations: Sequence[Demonstration],
    tools_of: Mapping[str, Sequence[str]],
    alpha_order: float = ALPHA_ORDER,
    alpha_tool: float = ALPHA_TOOL,
    seed: int = 0,
) -> list[Demonstration]:
    """F^m(F^t(S)), equation 4."""
    orders, tools = np.random.default_rng(seed).spawn(2)
    return perturb_tools(perturb_order(demonstrations, alpha_order, orders), tools_of, alpha_tool, tools)


def perturb_order(demonstrations: Sequence[Demonstration], alpha: float, rng: np.random.Generator) -> list[Demonstration]:
    """F^t, equations 1 and 2: each demonstration is chosen with probability ``alpha``; a copy of it in random order is added.

    All orders are equally likely, the present one among them.
    """
    _check_share("alpha_order", alpha)
    chosen = [demonstration for demonstration in demonstrations if rng.random() < alpha]
    return [*demonstrations, *((row, tuple(trajectory[i] for i in rng.permutation(len(trajectory)))) for row, trajectory in chosen)]


def perturb_tools(
    demonstrations: Sequence[Demonstration], tools_of: Mapping[str, Sequence[str]], alpha: float, rng: np.random.Generator
) -> list[Demonstration]:
    """F^m, equation 3: tools come from P^m(m|t) = (1 - alpha) P(m|t) + alpha U(m|t).

    The mixture is drawn as one: with probability ``alpha`` a tool is replaced by one of its task's, all equally likely, and otherwise it
    stays. The tools that stay are distributed as P(m|t), so the result is distributed as P^m(m|t); and they still suit their images, which
    they would not if they were drawn from P(m|t) anew.

    Args:
        demonstrations: what to perturb.
        tools_of: the candidate tools of each task.
        alpha: 0 changes nothing, 1 gives uniform tools.
        rng: source of chance.
    """
    _check_share("alpha_tool", alpha)

    def redraw(task: str, tool: str) -> Step:
        if rng.random() >= alpha:
            return task, tool
        if not tools_of.get(task):
            raise IrEnvError(f"a demonstration holds the task {task!r}, for which the toolbox has no tool; use the demonstrations' toolbox")
        return task, tools_of[task][int(rng.integers(len(tools_of[task])))]

    return [(row, tuple(redraw(*step) for step in trajectory)) for row, trajectory in demonstrations]


def tool_distribution(trajectories: Sequence[Trajectory], tools_of: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """The empirical P(m|t), for each task that occurs."""
    counts: dict[str, Counter[str]] = {task: Counter({tool: 0 for tool in tools}) for task, tools in tools_of.items()}
    for trajectory in trajectories:
        for task, tool in trajectory:
            counts.setdefault(task, Counter())[tool] += 1
    return {task: {tool: n / count.total() for tool, n in count.items()} for task, count in counts.items() if count.total()}


def mixed_distribution(
    empirical: Mapping[str, Mapping[str, float]], tools_of: Mapping[str, Sequence[str]], alpha: float
) -> dict[str, dict[str, float]]:
    """P^m(m|t) of equation 3, from P(m|t)."""
    return {
        task: {tool: (1 - alpha) * shares.get(tool, 0.0) + alpha / len(tools_of[task]) for tool in tools_of[task]}
        for task, shares in empirical.items()
    }


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise IrEnvError(f"{name} is a probability, from 0 to 1, not {value}")
