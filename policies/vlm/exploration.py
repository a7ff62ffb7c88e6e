"""How much a policy explores: the statistics of figures 3 and 7 of TIR-Agent, over several rollouts of each image."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from policies.vlm.edp import Trajectory


@dataclass(frozen=True)
class Diversity:
    """Of the rollouts of several images."""

    distinct: float
    """Distinct trajectories among the rollouts of an image, as a share of the rollouts; mean over the images."""
    order: float
    """Share of the images with two rollouts of the same tasks in another order."""
    tool: float
    """Share of the images with two rollouts of the same sequence of tasks by other tools."""
    order_pairs: float
    """Of the pairs of rollouts of an image with the same tasks, the share with another order. It does not saturate, as those above do
    when nearly every image has one such pair among its 28."""
    tool_pairs: float
    """Of the pairs of rollouts of an image with the same sequence of tasks, the share with other tools."""
    entropy: dict[str, float]
    """Entropy of the distribution of tools, in nats, per task that occurs; over all rollouts."""
    images_by_distinct: dict[int, int]
    """Number of distinct trajectories -> number of images."""
    order_by_distinct: dict[int, float]
    """Number of distinct trajectories -> share of those images with another order."""
    tool_by_distinct: dict[int, float]
    """Number of distinct trajectories -> share of those images with other tools."""

    @property
    def mean_entropy(self) -> float:
        """Mean over the tasks; 0 if none occurs."""
        return float(np.mean(list(self.entropy.values()))) if self.entropy else 0.0


def diversity(groups: Sequence[Sequence[Trajectory]]) -> Diversity:
    """The statistics of rollouts.

    Args:
        groups: per image its rollouts (8 in the paper), without stops.
    """
    distinct = np.array([len(set(group)) for group in groups])
    order = np.array([_has_other_order(group) for group in groups], bool)
    tool = np.array([_has_other_tools(group) for group in groups], bool)
    shares = [count / len(group) for count, group in zip(distinct, groups, strict=True)]
    counts = sorted(set(distinct.tolist()))
    return Diversity(
        distinct=float(np.mean(shares)),
        order=float(order.mean()),
        tool=float(tool.mean()),
        order_pairs=_share_of_pairs(groups, lambda tasks, tools: (sorted(tasks), tasks)),
        tool_pairs=_share_of_pairs(groups, lambda tasks, tools: (tasks, tools)),
        entropy=tool_entropy([trajectory for group in groups for trajectory in group]),
        images_by_distinct={count: int((distinct == count).sum()) for count in counts},
        order_by_distinct={count: float(order[distinct == count].mean()) for count in counts},
        tool_by_distinct={count: float(tool[distinct == count].mean()) for count in counts},
    )


def tool_entropy(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Entropy of P(m|t) in nats, per task that occurs."""
    counts: dict[str, Counter[str]] = {}
    for trajectory in trajectories:
        for task, tool in trajectory:
            counts.setdefault(task, Counter())[tool] += 1
    entropies = {}
    for task, count in sorted(counts.items()):
        shares = np.array(list(count.values())) / count.total()
        entropies[task] = float(-(shares * np.log(shares)).sum()) + 0.0
    return entropies


def _share_of_pairs(groups: Sequence[Sequence[Trajectory]], split: Callable[[list[str], list[str]], tuple[list[str], list[str]]]) -> float:
    """Of the pairs within a group whose first parts are equal, the share whose second parts are not; 0 if there is no such pair."""
    alike = differing = 0
    for group in groups:
        parts = [split([task for task, _ in trajectory], [tool for _, tool in trajectory]) for trajectory in group if trajectory]
        for (first, one), (second, other) in itertools.combinations(parts, 2):
            alike += first == second
            differing += first == second and one != other
    return differing / alike if alike else 0.0


def _has_other_order(group: Sequence[Trajectory]) -> bool:
    orders: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for trajectory in group:
        tasks = tuple(task for task, _ in trajectory)
        orders.setdefault(tuple(sorted(tasks)), set()).add(tasks)
    return any(len(seen) > 1 for seen in orders.values())


def _has_other_tools(group: Sequence[Trajectory]) -> bool:
    tools: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for trajectory in group:
        tools.setdefault(tuple(task for task, _ in trajectory), set()).add(tuple(tool for _, tool in trajectory))
    return any(len(seen) > 1 for seen in tools.values())
