"""What policies do: how often each task, with what effect, in which order (TIR-Agent, figure 4)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.benchmark.statistics import Row
from experiments.benchmark.tables import sign_of


def policies_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["policy"] for row in rows))


def task_counts(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Policy -> task -> mean calls per image; tasks in the order of their calls by all."""
    total = Counter(task for row in rows for task in row["tasks"])
    told = {}
    for policy in policies_of(rows):
        own = [row for row in rows if row["policy"] == policy]
        told[policy] = {task: sum(row["tasks"].count(task) for row in own) / len(own) for task, _ in total.most_common()}
    return told


def lengths(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Policy -> number of tools -> share of images."""
    longest = max((row["tools"] for row in rows), default=0)
    told = {}
    for policy in policies_of(rows):
        own = [row["tools"] for row in rows if row["policy"] == policy]
        told[policy] = {str(count): own.count(count) / len(own) for count in range(longest + 1)}
    return told


def effects(
    rows: Sequence[Row], reference: str, metrics: Sequence[str], of: str = "tasks", fewer: bool = False
) -> dict[str, dict[str, Any]]:
    """What calling a task (or a tool) more often goes with.

    Over the images on which another policy calls it more often than ``reference`` does: the mean difference to it in each metric,
    oriented so that higher is better, in standard deviations of the metric over all restored images.

    Args:
        rows: of all policies.
        reference: the policy that the others are compared with; TIR-Agent in the paper.
        metrics: columns.
        of: ``tasks``, or ``plan`` for tools.
        fewer: less often instead, as the paper does for super-resolution.

    Returns:
        Task or tool -> ``cases`` (pairs of a policy and an image), and by metric the difference, or None where no case has it.
    """
    own = {(row["set"], row["sample"]): row for row in rows if row["policy"] == reference}
    spread = {metric: float(np.std([row[metric] for row in rows if metric in row] or [0.0])) for metric in metrics}
    pairs = [(row, own[key]) for row in rows if row["policy"] != reference and (key := (row["set"], row["sample"])) in own]
    told: dict[str, dict[str, Any]] = {}
    for name, _ in Counter(name for row in rows for name in row[of]).most_common():
        sides = [(theirs[of].count(name), ours[of].count(name), theirs, ours) for theirs, ours in pairs]
        cases = [(theirs, ours) for many, few, theirs, ours in sides if (many < few if fewer else many > few)]
        if not cases:
            continue
        told[name] = {"cases": len(cases)}
        for metric in metrics:
            values = [sign_of(metric) * (theirs[metric] - ours[metric]) for theirs, ours in cases if metric in theirs]
            told[name][metric] = float(np.mean(values)) / spread[metric] if values and spread[metric] > 0 else None
    return told


def orders(rows: Sequence[Row], most: int = 12) -> dict[tuple[str, str], dict[str, tuple[float, int]]]:
    """Pair of tasks -> policy -> of the plans that call both, the share that calls the first one first, and how many plans; the pairs that
    come up most often, each turned so that its first task is more often first."""
    first: dict[tuple[str, str], Counter[str]] = {}
    for row in rows:
        ranked = list(dict.fromkeys(row["tasks"]))
        for at, task in enumerate(ranked):
            for later in ranked[at + 1 :]:
                first.setdefault((task, later), Counter())[row["policy"]] += 1
    told = {}
    for (one, other), counts in first.items():
        back = first.get((other, one), Counter())
        if (counts.total(), one) < (back.total(), other):
            continue
        told[one, other] = {
            policy: (counts[policy] / number, number) for policy in policies_of(rows) if (number := counts[policy] + back[policy])
        }
    ranked_pairs = sorted(told, key=lambda pair: -sum(number for _, number in told[pair].values()))
    return {pair: told[pair] for pair in ranked_pairs[:most]}
