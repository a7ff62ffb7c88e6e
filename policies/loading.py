"""Any policy by one word: a planner's name, a fixed plan, or the path of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from policies.planners import FixedPlan, GreedyPlanner, NothingPlanner, Planner, RandomPlanner
from tool_actors.errors import UnknownNameError

PLANNERS: dict[str, Callable[[int], Planner]] = {
    "nothing": lambda seed: NothingPlanner(),
    "random": RandomPlanner,
    "greedy": lambda seed: GreedyPlanner(),
    "rl_restore": lambda seed: _rl_restore(),
    "traversal": lambda seed: _traversal(),
}
"""Name -> planner, made from a seed. Add one of your own here, or pass the object itself wherever a policy is asked for."""


def _rl_restore() -> Planner:
    from policies.planners.rl_restore import RLRestoreAgent

    return RLRestoreAgent()


def _traversal() -> Planner:
    from policies.planners.traversal import TraversalPlanner

    return TraversalPlanner()


def load_policy(policy: str | Path | Planner, seed: int = 0) -> Planner:
    """A planner.

    Args:
        policy: a name of :data:`PLANNERS`; ``fixed:tool+tool`` for a fixed plan; or the path of a checkpoint (or of a run that holds some),
            or of a vision-language policy.
        seed: for planners that draw.

    Raises:
        UnknownNameError: neither a name nor a path.
        CheckpointError: a path without a usable checkpoint.
    """
    if isinstance(policy, Planner):
        return policy
    if str(policy) in PLANNERS:
        return PLANNERS[str(policy)](seed)
    if str(policy).startswith("fixed:"):
        return FixedPlan([tool for tool in str(policy)[len("fixed:") :].split("+") if tool])
    if not Path(policy).exists():
        raise UnknownNameError(
            "policy", str(policy), [*PLANNERS, "fixed:TOOL+TOOL"], "A path to a checkpoint works too, but there is none here."
        )
    from policies.vlm.planner import SETTINGS, VLMPlanner

    if (Path(policy) / SETTINGS).is_file():
        return VLMPlanner.load(policy, seed=seed)
    from policies.checkpoints import load_checkpoint

    return load_checkpoint(policy)
