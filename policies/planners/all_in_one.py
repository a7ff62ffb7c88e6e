"""All-in-one networks: plans of one tool, which undoes whatever is there."""

from __future__ import annotations

from policies.planners.fixed import FixedPlan
from tool_actors.errors import IrEnvError
from tool_actors.tasks import ALL_IN_ONE
from tool_actors.toolboxes import load_toolbox

__all__ = ["OWN", "AllInOnePlanner"]

OWN = "allinone.small"
"""The network that comes with the project, trained by ``experiments/train_tools.py``: a stand-in where no published weights are."""


class AllInOnePlanner(FixedPlan):
    """Applies one network of the toolbox ``all_in_one``, once, and stops.

    Args:
        tool: its name.

    Raises:
        UnknownToolError, WeightsMissing, UnsupportedCheckpointError: there is no such network, or it is not to be had; it says why.
        IrEnvError: the tool undoes one degradation alone.
    """

    def __init__(self, tool: str = OWN):
        network = load_toolbox([tool])[tool]
        if network.spec.task != ALL_IN_ONE:
            raise IrEnvError(
                f"{tool} is a tool for one task, {network.spec.task}: write fixed:{tool}, or name one of the toolbox all_in_one"
            )
        super().__init__([tool])
        self.name = f"all-in-one: {tool}"
        card = getattr(network, "card", None)
        self.trained_combos = [card["combinations"]] if card else None
