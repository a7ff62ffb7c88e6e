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
        spec: comma-separated group names and combinations (``"A,B"``, ``"single,rain+haze"``), equally likely; or ``"random:1:2:3"``,
            all sets of one, two and three degradations in :data:`ORDER`, with that ratio of single to dual to triple; or a list of
            combinations.
    """
    if isinstance(spec, Combos):
        return spec
    if isinstance(spec, str) and spec.startswith("random"):
        return _random_combos(spec)
    items = [item.strip() for item in spec.split(",")] if isinstance(spec, str) else list(spec)
    entries: list[Combo] = []
    for item in items:
        if isinstance(item, str) and item in GROUPS:
            entries.extend(GROUPS[item])
        else:
            try:
                entries.append(parse_combo(item))
            except UnknownNameError as error:
                if isinstance(item, str) and "+" not in item:
                    raise UnknownNameError("group or degradation", item, (*GROUPS, *TASK_OF, "random:1:2:3")) from error
                raise
    entries = list(dict.fromkeys(entries))
    return Combos(tuple(entries), tuple([1.0 / len(entries)] * len(entries)))


def _random_combos(spec: str) -> Combos:
    try:
        ratios = [float(part) for part in spec.split(":")[1:]] or [1.0, 2.0, 3.0]
    except ValueError:
        ratios = []
    if not ratios or min(ratios) < 0 or sum(ratios) == 0 or len(ratios) > len(ORDER):
        raise IrEnvError(f"combinations {spec!r}: write random:1:2:3, the ratio of single to dual to triple degradations")
    entries, weights = [], []
    for size, ratio in enumerate(ratios, start=1):
        chosen = list(itertools.combinations(ORDER, size))
        entries += chosen
        weights += [ratio / sum(ratios) / len(chosen)] * len(chosen)
    total = sum(weights)
    return Combos(tuple(entries), tuple(weight / total for weight in weights))
