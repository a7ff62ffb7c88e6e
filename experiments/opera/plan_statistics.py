"""What makes a plan high-performing, and what such plans have in common (OPERA, section 3.2).

A plan is a sequence of degradations, each of which has one tool that is made for it.

>>> plans = all_plans(["noise", "rain", "haze", "motion_blur"])    # 340
>>> ranks = rank(values, signs)                                   # of (340, K) values of K metrics
>>> found = findings(plans, ["rain", "noise"], ranks, high_performing(ranks, needs_reference))
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np

Plan = tuple[str, ...]
TOP = 0.1
"""A plan is good by a metric if it ranks in this share of all plans (OPERA, section 3.2)."""
AT_LEAST = 3
"""Metrics by which a high-performing plan must be good (OPERA, section 3.2: three of five)."""
STATISTICS: dict[str, tuple[str, float]] = {
    "high_performing": ("high-performing plans per image", 12.05),
    "out_of_scope": ("share of them with an out-of-scope tool", 0.600),
    "out_of_scope_wins": ("images on which plans with out-of-scope tools are better", 0.663),
    "best_out_of_scope": ("best aggregated rank with out-of-scope tools", 34.9),
    "best_matched": ("best aggregated rank of matched-only plans", 43.2),
    "best_gap": ("matched-only less with out-of-scope tools", 8.3),
    "duplicates": ("share of high-performing plans with a tool more than once", 0.776),
    "rank_with_duplicates": ("aggregated rank of these", 54.0),
    "rank_deduplicated": ("aggregated rank of their de-duplicated counterparts", 65.3),
    "deduplication_loss": ("what de-duplication loses in rank", 11.3),
}
"""Name -> what it is, and the mean that the paper gives (section 3.2; both differences are those of its means)."""


def all_plans(tools: Sequence[str], longest: int = 4) -> list[Plan]:
    """All plans of 1 to ``longest`` tools: 4 + 16 + 64 + 256 = 340 for four (OPERA, section 3.2)."""
    return [plan for length in range(1, longest + 1) for plan in itertools.product(tools, repeat=length)]


def rank(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Rank of each plan by each metric, independently; the best is 1.

    Plans of equal value share the mean of the ranks that they take up together. The paper says nothing of ties; with this no plan gains by
    the order in which plans are listed, and ranks always have the same mean. What has no value ranks behind all that has one.

    Args:
        values: (P, K) of P plans by K metrics; NaN where a plan has no value.
        signs: (K,), +1 where higher is better, -1 where lower is.

    Returns:
        float64 (P, K).
    """
    costs = np.where(np.isnan(values), np.inf, -np.asarray(values, np.float64) * signs)
    ranks = np.empty(costs.shape)
    for column, cost in enumerate(costs.T):
        _, places, counts = np.unique(cost, return_inverse=True, return_counts=True)
        ranks[:, column] = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return ranks


def high_performing(ranks: np.ndarray, needs_reference: np.ndarray, top: float = TOP, at_least: int = AT_LEAST) -> np.ndarray:
    """Which plans are good by at least three metrics, full-reference and no-reference ones among these (OPERA, section 3.2).

    Args:
        ranks: (P, K), of :func:`rank`.
        needs_reference: bool (K,), which metrics are full-reference.
        top, at_least: see :data:`TOP` and :data:`AT_LEAST`.

    Returns:
        bool (P,).
    """
    # the product may be a little less than the whole number that it should be
    good = ranks <= len(ranks) * top + 1e-9
    return (good.sum(1) >= at_least) & good[:, needs_reference].any(1) & good[:, ~needs_reference].any(1)


def is_out_of_scope(plan: Plan, combo: Collection[str]) -> bool:
    """Whether a tool is there whose degradation the image does not have."""
    return not set(plan) <= set(combo)


def has_duplicates(plan: Plan) -> bool:
    """Whether a tool is applied more than once, next to one another or not."""
    return len(set(plan)) < len(plan)


def deduplicated(plan: Plan) -> Plan:
    """Each tool where it first comes; the paper does not say which of several it keeps."""
    return tuple(dict.fromkeys(plan))


def findings(plans: Sequence[Plan], combo: Collection[str], ranks: np.ndarray, chosen: np.ndarray) -> dict[str, list[float]]:
    """What one image says to each of :data:`STATISTICS`: one value, or one for each plan that it is about.

    The aggregated rank of a plan is the mean of its ranks. Means are to be taken over the values of all images together: the paper's
    "60.0 % of the selected high-performing plans" is read as of all that are selected, on whatever image.

    Args:
        plans: of :func:`all_plans`.
        combo: the image's degradations; some tool's must be among them, and some other's not.
        ranks: (P, K), of :func:`rank`.
        chosen: bool (P,), of :func:`high_performing`.
    """
    aggregated = dict(zip(plans, ranks.mean(1).tolist(), strict=True))
    good = [plan for plan, is_chosen in zip(plans, chosen, strict=True) if is_chosen]
    with_out_of_scope = min(value for plan, value in aggregated.items() if is_out_of_scope(plan, combo))
    matched = min(value for plan, value in aggregated.items() if not is_out_of_scope(plan, combo))
    repeated = [aggregated[plan] for plan in good if has_duplicates(plan)]
    once = [aggregated[deduplicated(plan)] for plan in good if has_duplicates(plan)]
    return {
        "high_performing": [float(len(good))],
        "out_of_scope": [float(is_out_of_scope(plan, combo)) for plan in good],
        "out_of_scope_wins": [float(with_out_of_scope < matched)],
        "best_out_of_scope": [with_out_of_scope],
        "best_matched": [matched],
        "best_gap": [matched - with_out_of_scope],
        "duplicates": [float(has_duplicates(plan)) for plan in good],
        "rank_with_duplicates": repeated,
        "rank_deduplicated": once,
        "deduplication_loss": [after - before for before, after in zip(repeated, once, strict=True)],
    }


def by_chance(plans: Sequence[Plan], combos: Sequence[Collection[str]]) -> dict[str, float]:
    """What the shares would be if ranks were drawn by lot: those among all plans, any of which is then as likely the best."""
    wide = float(np.mean([is_out_of_scope(plan, combo) for combo in combos for plan in plans]))
    return {"out_of_scope": wide, "out_of_scope_wins": wide, "duplicates": float(np.mean([has_duplicates(plan) for plan in plans]))}
