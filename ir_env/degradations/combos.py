"""Combinations of degradations: the benchmark's groups, a user's own list, random ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import DEGRADATIONS, TASK_OF

Combo = tuple[str, ...]
"""Degradations in the order in which they are applied."""

ALIASES = {
    "motion blur": "motion_blur",
    "motionblur": "motion_blur",
    "defocus blur": "defocus_blur",
    "defocusblur": "defocus_blur",
    "jpeg compression artifact": "jpeg",
    "dark": "low_light",
    "low resolution": "low_resolution",
    "lr": "low_resolution",
}
"""The names in AgenticIR's and OPERA's files."""

ORDER: list[str] = ["rain", "haze", "motion_blur", "defocus_blur", "low_light", "noise", "jpeg", "low_resolution"]
"""The order in which random combinations apply their degradations: scene, lens, sensor, file (AgenticIR's fine-tuning data)."""


STAGES: tuple[tuple[str, ...], ...] = (("rain", "haze"), ("motion_blur", "defocus_blur", "low_light"), ("noise", "low_resolution", "jpeg"))
"""Stages in which OPERA degrades its training images: a later one never comes before an earlier one, and within a stage any order goes.

Up to three degradations give 8 + 35 + 102 = 145 ordered combinations, which is the paper's number. Its list is not published: the code has
these stages without low light and JPEG (56), and where the two belong is an inference from the number. All combinations of the groups A, B
and C are among them, that of defocus blur and haze in the other order."""


def parse_combo(text: str | Sequence[str]) -> Combo:
    """``"rain+haze"`` -> ``("rain", "haze")``; the published names (``dark``, ``low resolution``, ...) are understood.

    Raises:
        UnknownNameError: a part is no degradation.
        IrEnvError: the combination is empty or names a degradation twice.
    """
    parts = text.split("+") if isinstance(text, str) else list(text)
    combo = []
    for part in parts:
        name = ALIASES.get(part.strip().lower(), part.strip().lower())
        if name not in TASK_OF:
            raise UnknownNameError("degradation", part.strip(), TASK_OF, "Join several with +, e.g. rain+haze.")
        if name in combo:
            raise IrEnvError(f"combination {text!r} names {name} twice; each degradation may stand once")
        combo.append(name)
    return tuple(combo)


GROUPS: dict[str, tuple[Combo, ...]] = {
    group: tuple(map(parse_combo, texts))
    for group, texts in {
        "A": (
            "rain+haze",
            "motion_blur+low_resolution",
            "low_light+noise",
            "defocus_blur+jpeg",
            "noise+jpeg",
            "rain+low_resolution",
            "motion_blur+low_light",
            "defocus_blur+haze",
        ),
        "B": ("motion_blur+jpeg", "haze+noise", "defocus_blur+low_resolution", "rain+low_light"),
        "C": (
            "haze+motion_blur+low_resolution",
            "rain+noise+low_resolution",
            "low_light+defocus_blur+jpeg",
            "motion_blur+defocus_blur+noise",
        ),
        "single": DEGRADATIONS,
    }.items()
}
"""The benchmark's groups A (8), B (4), C (4) (AgenticIR), and ``single``: each degradation alone."""


@dataclass(frozen=True)
class Combos:
    """Combinations to draw from, with the probability of each."""

    entries: tuple[Combo, ...]
    weights: tuple[float, ...]

    def draw(self, rng: np.random.Generator) -> Combo:
        return self.entries[int(rng.choice(len(self.entries), p=self.weights))]


def parse_combos(spec: str | Iterable[str | Sequence[str]] | Combos) -> Combos:
    """Combinations from a description.

    Args:
        spec: comma-separated group names and combinations (``"A,B"``, ``"single,rain+haze"``), equally likely, or with the number of
            times that they are likelier (``"A,B,C:2"``); or ``"random:1:2:3"``, all sets of one, two and three degradations in
            :data:`ORDER`, with that ratio of single to dual to triple; or ``"opera:1:3:5"``, OPERA's 145 ordered combinations (see
            :data:`STAGES`) with that ratio; or a list of combinations.
    """
    if isinstance(spec, Combos):
        return spec
    if isinstance(spec, str) and spec.split(":")[0] in ("random", "opera"):
        return _weighted_combos(spec)
    items = [item.strip() for item in spec.split(",")] if isinstance(spec, str) else list(spec)
    shares: dict[Combo, float] = {}
    for item in items:
        item, share = _with_share(item) if isinstance(item, str) else (item, 1.0)
        if isinstance(item, str) and item in GROUPS:
            shares.update(dict.fromkeys(GROUPS[item], share))
        else:
            try:
                shares[parse_combo(item)] = share
            except UnknownNameError as error:
                if isinstance(item, str) and "+" not in item:
                    raise UnknownNameError("group or degradation", item, (*GROUPS, *TASK_OF, "random:1:2:3")) from error
                raise
    return Combos(tuple(shares), tuple(share / sum(shares.values()) for share in shares.values()))


def _with_share(item: str) -> tuple[str, float]:
    """``"C:2"`` -> ``("C", 2.0)``."""
    name, colon, told = item.partition(":")
    try:
        share = float(told) if colon else 1.0
    except ValueError:
        share = 0.0
    if not 0 < share < float("inf"):
        raise IrEnvError(f"combinations {item!r}: write {name}:2 for twice as likely")
    return name, share


def staged_combos(size: int) -> list[Combo]:
    """The ordered combinations of so many degradations whose stages follow one another (:data:`STAGES`)."""
    stage_of = {name: number for number, names in enumerate(STAGES) for name in names}
    ordered = itertools.permutations([name for names in STAGES for name in names], size)
    return [combo for combo in ordered if (stages := [stage_of[name] for name in combo]) == sorted(stages)]


def _weighted_combos(spec: str) -> Combos:
    kind, *told = spec.split(":")
    try:
        ratios = [float(part) for part in told] or {"random": [1.0, 2.0, 3.0], "opera": [1.0, 3.0, 5.0]}[kind]
    except ValueError:
        ratios = []
    if not ratios or min(ratios) < 0 or sum(ratios) == 0 or len(ratios) > len(ORDER):
        raise IrEnvError(f"combinations {spec!r}: write {kind}:1:2:3, the ratio of single to dual to triple degradations")
    entries, weights = [], []
    for size, ratio in enumerate(ratios, start=1):
        chosen = list(itertools.combinations(ORDER, size)) if kind == "random" else staged_combos(size)
        entries += chosen
        weights += [ratio / sum(ratios) / len(chosen)] * len(chosen)
    total = sum(weights)
    return Combos(tuple(entries), tuple(weight / total for weight in weights))
