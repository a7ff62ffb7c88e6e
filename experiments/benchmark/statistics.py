"""From rows, one per policy and image, to means with intervals and paired differences.

Images of one photograph are not independent of one another, so photographs are what is drawn again, and whose signs are flipped: what
:func:`ir_env.evaluation.bootstrap` and :func:`~ir_env.evaluation.sign_flips` do, for many columns at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ir_env.evaluation import EXACT, RESAMPLES, bootstrap, sign_flips
from ir_env.metrics import find_metric

Row = dict[str, Any]
COLUMNS = ("gain", "normalised", "regret", "worse", "tools", "executions", "calls", "seconds")
"""Beside the metrics: what is averaged."""
ORIENTED = {"gain": 1, "normalised": 1, "regret": -1, "worse": -1, "tools": -1, "executions": -1, "calls": -1, "seconds": -1}
SCOPES = ("overall", "set", "combination", "degradation")
WORSE = -1e-9
"""A gain below it is a loss."""


def completed(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """The rows with what only all of them together tell: the gain in units of each metric's spread, and the regret.

    ``gain`` is that in quality (the weighted sum of metrics that the rewards use); ``normalised`` the sum over the metrics, oriented so
    that higher is better, of what each gained in its standard deviations over the degraded images; ``regret`` how much more the best plan
    that any policy found for the image gained.
    """
    # of images that are there once, whatever the number of policies
    first = {(row["set"], row["sample"]): row["before"] for row in rows}
    names = list(dict.fromkeys(name for before in first.values() for name in before))
    spread = {name: float(np.std([before[name] for before in first.values() if name in before])) for name in names}
    best: dict[tuple[str, str], float] = {}
    for row in rows:
        key, gain = (row["set"], row["sample"]), row["quality"][-1] - row["quality"][0]
        best[key] = max(gain, best.get(key, -np.inf))
    told = []
    for row in rows:
        gain = row["quality"][-1] - row["quality"][0]
        told.append(
            {
                **{name: row[name] for name in ("policy", "set", "sample", "photograph", "combination")},
                **row["after"],
                "gain": gain,
                "normalised": sum(
                    _sign(name) * (row["after"][name] - row["before"][name]) / spread[name] for name in row["after"] if spread[name] > 0
                ),
                "regret": best[row["set"], row["sample"]] - gain,
                "worse": float(gain < WORSE),
                "tools": len(row["tools"]),
                **{name: row[name] for name in ("executions", "calls", "seconds")},
                "plan": list(row["tools"]),
                "tasks": list(row["tasks"]),
                "step_gains": np.diff(row["quality"]).tolist(),
                "before": dict(row["before"]),
                "error": row["error"],
            }
        )
    return told


def _sign(metric: str) -> int:
    return 1 if find_metric(metric).higher_is_better else -1


# -- means ---------------------------------------------------------------------------------------------------------------------------


class Resampler:
    """Intervals and tests of columns over the same images.

    Args:
        photographs: the photograph of each image.
    """

    def __init__(self, photographs: Sequence[str]):
        self.photographs = np.asarray(photographs)
        _, self._rows = np.unique(self.photographs, return_inverse=True)
        self.number = int(self._rows.max()) + 1
        self._drawn = np.random.default_rng(0).multinomial(self.number, np.full(self.number, 1 / self.number), RESAMPLES).astype(np.float64)

    def _sums(self, values: np.ndarray) -> np.ndarray:
        sums = np.zeros((self.number, values.shape[1]))
        np.add.at(sums, self._rows, values)
        return sums

    def intervals(self, values: np.ndarray) -> list[list[float] | None]:
        """Of the means of columns (N, K), 95 %; None where less than two photographs have values."""
        if self.number < 2:
            return [None] * values.shape[1]
        whole = np.isfinite(values).all(0)
        told: list[list[float] | None] = [None] * values.shape[1]
        if whole.any():
            means = (self._drawn @ self._sums(values[:, whole])) / (self._drawn @ np.bincount(self._rows))[:, None]
            for column, ends in zip(np.flatnonzero(whole), np.quantile(means, [0.025, 0.975], axis=0).T, strict=True):
                told[column] = ends.tolist()
        for column in np.flatnonzero(~whole):
            told[column] = bootstrap(values[:, column], self.photographs)
        return told

    def p(self, differences: np.ndarray) -> list[float]:
        """Two-sided, of paired differences (N, K); see :func:`ir_env.evaluation.sign_flips`."""
        if self.number <= EXACT:
            signs = 1.0 - 2 * (np.arange(2**self.number)[:, None] >> np.arange(self.number) & 1)
            extra = 0
        else:
            signs = np.random.default_rng(0).integers(0, 2, (RESAMPLES, self.number), np.int8) * 2.0 - 1
            extra = 1
        whole = np.isfinite(differences).all(axis=0)
        sums = self._sums(np.where(whole, differences, 0))
        as_large = np.abs(signs @ sums) >= np.abs(sums.sum(0)) - 1e-9 * np.abs(sums).sum(0)
        told = ((as_large.sum(0) + extra) / (len(signs) + extra)).tolist()
        for column in np.flatnonzero(~whole):
            own = differences[:, column]
            told[column] = sign_flips(own, self.photographs) if np.isfinite(own).any() else 1.0
        return told


def columns_of(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """The columns that these rows have values in, the metrics first."""
    return [name for name in (*metrics, *COLUMNS) if any(name in row for row in rows)]


def matrix(rows: Sequence[Row], columns: Sequence[str]) -> np.ndarray:
    """float64 (N, K); NaN where a row has no such metric."""
    return np.array([[row.get(name, np.nan) for name in columns] for row in rows], np.float64).reshape(len(rows), len(columns))


def means_of(rows: Sequence[Row], columns: Sequence[str], resampler: Resampler) -> dict[str, Any]:
    """Mean and interval of each column, and of how many images and photographs."""
    values = matrix(rows, columns)
    with np.errstate(invalid="ignore"):
        means = [float(column[np.isfinite(column)].mean()) if np.isfinite(column).any() else None for column in values.T]
    return {
        "images": len(rows),
        "photographs": resampler.number,
        "failures": sum(bool(row["error"]) for row in rows),
        "means": dict(zip(columns, means, strict=True)),
        "intervals": dict(zip(columns, resampler.intervals(values), strict=True)),
    }


def parts(rows: Sequence[Row], sets: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Callable[[Row], bool]]]:
    """Scope -> part of the images -> whether a row is of it. Overall are the sets with clean images, if there are any."""
    with_reference = {each["name"] for each in sets if each["has_reference"]} or {each["name"] for each in sets}
    combinations = sorted({row["combination"] for row in rows if row["combination"]}, key=lambda name: (name.count("+"), name))
    degradations = sorted({name for combination in combinations for name in combination.split("+")})
    return {
        "overall": {"all": lambda row: row["set"] in with_reference},
        "set": {each["name"]: lambda row, name=each["name"]: row["set"] == name for each in sets},
        "combination": {name: lambda row, name=name: row["combination"] == name for name in combinations},
        "degradation": {name: lambda row, name=name: name in row["combination"].split("+") for name in degradations},
    }


def summarise(rows: Sequence[Row], sets: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Scope -> part -> policy -> :func:`means_of`."""
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    told: dict[str, dict[str, dict[str, Any]]] = {}
    for scope, named in parts(rows, sets).items():
        told[scope] = {}
        for name, belongs in named.items():
            chosen = [row for row in rows if belongs(row)]
            columns = columns_of(chosen, metrics)
            resamplers: dict[tuple[str, ...], Resampler] = {}
            told[scope][name] = {}
            for policy in policies:
                own = [row for row in chosen if row["policy"] == policy]
                if own:
                    photographs = tuple(row["photograph"] for row in own)
                    resampler = resamplers.get(photographs) or resamplers.setdefault(photographs, Resampler(photographs))
                    told[scope][name][policy] = means_of(own, columns, resampler)
    return told


# -- differences ---------------------------------------------------------------------------------------------------------------------


def differences(rows: Sequence[Row], sets: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Each two policies, paired by image, overall: mean difference, interval, p of sign flips of photographs, and p corrected for the
    number of pairs (Holm), column by column."""
    belongs = parts(rows, sets)["overall"]["all"]
    of_policy: dict[str, dict[tuple[str, str], Row]] = {}
    for row in filter(belongs, rows):
        of_policy.setdefault(row["policy"], {})[row["set"], row["sample"]] = row
    columns = columns_of([row for own in of_policy.values() for row in own.values()], metrics)
    resamplers: dict[tuple[str, ...], Resampler] = {}
    told: list[dict[str, Any]] = []
    for first, second in itertools.combinations(of_policy, 2):
        keys = [key for key in of_policy[first] if key in of_policy[second]]
        if not keys:
            continue
        values = matrix([of_policy[first][key] for key in keys], columns) - matrix([of_policy[second][key] for key in keys], columns)
        photographs = tuple(of_policy[first][key]["photograph"] for key in keys)
        resampler = resamplers.get(photographs) or resamplers.setdefault(photographs, Resampler(photographs))
        for column, own, interval, p in zip(columns, values.T, resampler.intervals(values), resampler.p(values), strict=True):
            if np.isfinite(own).any():
                mean = float(own[np.isfinite(own)].mean())
                told.append({"first": first, "second": second, "column": column, "mean": mean, "interval": interval, "p": p})
    for column in columns:
        own = [each for each in told if each["column"] == column]
        for each, corrected in zip(own, holm([each["p"] for each in own]), strict=True):
            each["p_holm"] = corrected
    return told


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's correction (1979): the chance of any false discovery among the tests stays below the level."""
    order = np.argsort(ps, kind="stable")
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        corrected[index] = largest
    return corrected
