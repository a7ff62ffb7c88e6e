"""4KAgent (Zuo et al., arXiv 2507.07105): all tools of a task, the best by a mixture of quality metrics, and AgenticIR's roll-back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ir_env.metrics import MetricWeightsMissing
from ir_env.planner import Observation, Tried
from policies.planners.perception import Perceive
from policies.planners.rollback import BUDGET, EXPERIENCE, Node, RollbackPlanner, Search
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.extras import MissingExtraError

__all__ = ["OFFLINE", "PROFILES", "Q_MOE", "FourKAgentPlanner", "Mixture", "Profile"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mixture:
    """A score of metrics that need no reference: a constant, and a weight for each."""

    constant: float
    weights: Mapping[str, float]
    """Per unit of the metric, negative where lower is better."""
    threshold: float | None = None
    """A task fails below it; None: where the image scored better before."""

    def __call__(self, tried: Tried) -> float:
        """A metric without a value on the image counts as the bad end of its scale."""
        told = {name: tried.scores[name] for name in self.weights}
        return self.constant + sum(
            weight * (_BAD_END.get(name, 0.0) if (value := told[name]) is None else value) for name, weight in self.weights.items()
        )


_BAD_END = {"niqe": 10.0, "piqe": 100.0}
Q_MOE = Mixture(0.25, {"clipiqa+": 0.25, "maniqa": 0.25, "musiq": 0.0025, "niqe": -0.025}, threshold=0.38)
"""4KAgent's score, 1/4 (CLIP-IQA+ + MANIQA + MUSIQ / 100 + 1 - NIQE / 10), but for HPSv2's, which needs a caption. Its threshold is 0.5
with HPSv2's score, and 0.12 of HPSv2's alone; the difference stands here."""
OFFLINE = Mixture(1.0, {"niqe": -0.05, "piqe": -0.005})
"""Where those metrics' weights are not there: 1/2 (1 - NIQE / 10 + 1 - PIQE / 100). No published threshold holds for it, so a task fails
where the score drops."""


@dataclass(frozen=True)
class Profile:
    """What a user asks for."""

    prefer: Literal["perception", "fidelity"] = "perception"
    """Which super-resolution tools are tried, where the toolbox has such: generative ones, or those trained for PSNR."""
    tools: int | None = None
    """Most tools tried per task, for speed; None: all."""
    roll_back: bool = True


PROFILES = {
    "perception": Profile(),
    "fidelity": Profile(prefer="fidelity"),
    "fast": Profile(tools=1, roll_back=False),
}
"""``perception`` is 4KAgent's GenMIR-P, that of its published numbers; ``fast`` takes the first tool of each task as it comes."""
GENERATIVE = ("gan", "diff", "osediff", "pisasr", "perception", "edge")
"""What the names of generative super-resolution tools hold."""


class FourKAgentPlanner(RollbackPlanner):
    """Perceives, schedules, runs all tools of a task, keeps the best by a quality-driven mixture of experts (Q-MoE), and rolls back.

    The mixture is :data:`Q_MOE` where the weights of its metrics are there or can be downloaded, and :data:`OFFLINE` otherwise: the log
    and :attr:`name` say which. Image and candidates are judged at their own size, where 4KAgent enlarges small ones before. Perception and
    schedule are those of :class:`policies.planners.agenticir.AgenticIRPlanner`; its face restoration is not here, and its enlargement
    to 4K is the toolbox's super-resolution, once.

    Args:
        profile: a name of :data:`PROFILES`, or one of your own.
        mixture: that judges; None: chosen at the first image, as above.
        perceive, experience, budget, seed: see :class:`policies.planners.rollback.RollbackPlanner`.
    """

    def __init__(
        self,
        profile: str | Profile = "perception",
        mixture: Mixture | None = None,
        perceive: Perceive | None = None,
        experience: Mapping[tuple[str, str], tuple[float, float]] = EXPERIENCE,
        budget: int = BUDGET,
        seed: int = 0,
    ):
        if not isinstance(profile, Profile):
            if profile not in PROFILES:
                raise UnknownNameError("profile", profile, PROFILES)
            profile = PROFILES[profile]
        super().__init__({}, perceive, experience, profile.roll_back, budget, seed)
        self.profile, self.mixture = profile, mixture
        self.name = "4kagent"
        if mixture is not None:
            self._judge_by(mixture)

    def _judge_by(self, mixture: Mixture) -> None:
        self.mixture, self.judges = mixture, mixture.weights
        self.name = f"4kagent ({', '.join(mixture.weights)})"

    def search(self, observation: Observation) -> tuple[int, ...]:
        if self.mixture is None and observation.try_tools is not None:
            self._judge_by(available(observation.try_tools, observation.actions.stop))
        return super().search(observation)

    def execute(self, search: Search, node: Node, task: str) -> tuple[Tried | None, bool]:
        mixture = self._mixture
        found = search.try_tools(node, self._chosen(search, task))
        if not found:
            return None, False
        best = max(found, key=mixture)
        if task == "super_resolve" and mixture.threshold is None:
            return best, True  # scores of another size are those of another picture
        return best, mixture(best) >= (mixture(node.tried) if mixture.threshold is None else mixture.threshold)

    def _chosen(self, search: Search, task: str) -> Sequence[int]:
        tools = search.tools[task]
        if task == "super_resolve":
            actions, generative = search.observation.actions, self.profile.prefer == "perception"
            preferred = [tool for tool in tools if any(word in actions[tool].tool for word in GENERATIVE) == generative]
            tools = preferred or tools
        return tools[: self.profile.tools]

    def better(self, former: Tried, latter: Tried) -> bool:
        if former.image.shape != latter.image.shape:
            return super().better(former, latter)
        return self._mixture(latter) > self._mixture(former)

    @property
    def _mixture(self) -> Mixture:
        if self.mixture is None:
            raise IrEnvError("4kagent chooses its score at the first image: ask it by plan(observation)")
        return self.mixture


def available(try_tools: Callable[..., list[Tried]], stop: int) -> Mixture:
    """:data:`Q_MOE` if the weights of its metrics are there, else :data:`OFFLINE`, and a warning."""
    try:
        try_tools([stop], list(Q_MOE.weights))
    except (MetricWeightsMissing, MissingExtraError) as missing:
        logger.warning("4kagent judges by %s instead of Q-MoE: %s", ", ".join(OFFLINE.weights), missing)
        return OFFLINE
    return Q_MOE
