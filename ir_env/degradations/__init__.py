"""The eight degradations of AgenticIR's recipe, their combinations, and the depth that haze needs."""

from __future__ import annotations

from ir_env.degradations.combos import GROUPS, ORDER, Combo, Combos, parse_combo, parse_combos
from ir_env.degradations.depth import DepthFolder, DepthSource, SyntheticDepth, load_depth_source
from ir_env.degradations.recipe import RECIPE, Applied, Degradation, add_degradation, check_severity, degrade, seed_for

__all__ = [
    "GROUPS",
    "ORDER",
    "RECIPE",
    "Applied",
    "Combo",
    "Combos",
    "Degradation",
    "DepthFolder",
    "DepthSource",
    "SyntheticDepth",
    "add_degradation",
    "check_severity",
    "degrade",
    "load_depth_source",
    "parse_combo",
    "parse_combos",
    "seed_for",
]
