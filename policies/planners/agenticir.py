"""AgenticIR (Zhu et al., ICLR 2025, arXiv 2410.17809), with other models in the places of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from ir_env.planner import Tried
from policies.planners.perception import EncoderPerception, Perceive
from policies.planners.rollback import BUDGET, EXPERIENCE, Node, RollbackPlanner, Search
from policies.planners.traversal import JUDGES, THRESHOLD, gain_by
from tool_actors.tasks import TASK_OF

__all__ = ["LEVELS", "AgenticIRPlanner", "Compare", "EncoderSeverity", "Severity"]

LEVELS = ("very low", "low", "medium", "high", "very high")
"""Of a degradation. A task has succeeded when what it undoes is at most low; a tool that leaves it very low is the last one tried."""
VERY_LOW, LOW = 0, 1

Severity = Callable[[np.ndarray, str], int]
"""From an image, uint8 (H, W, 3), and a task to the level of what the task undoes: an index of :data:`LEVELS`."""
Compare = Callable[[Tried, Tried], bool]
"""Whether the latter of two images is better."""


class EncoderSeverity:
    """The probability that the trained encoder gives a degradation, in five equal parts.

    After super-resolution it is that of blur, which AgenticIR asks for there.
    """

    def __init__(self, perception: EncoderPerception | None = None):
        self.perception = perception or EncoderPerception()

    def __call__(self, image: np.ndarray, task: str) -> int:
        asked = ("motion_blur", "defocus_blur") if task == "super_resolve" else [name for name in TASK_OF if TASK_OF[name] == task]
        told = self.perception.probabilities(image)
        share = max((told.get(name, 0.0) for name in asked), default=0.0)
        return min(int(share * len(LEVELS)), len(LEVELS) - 1)


class AgenticIRPlanner(RollbackPlanner):
    """Perception, scheduling by experience, execution tool by tool with reflection, roll-back, rescheduling, compromise.

    The tools of a task are tried one by one, in random order, until one leaves the degradation very low. If none does, those that reach the
    lowest level are compared one after another, and the better one stays; the task has failed unless that level is low. The rest is
    :class:`policies.planners.rollback.RollbackPlanner`'s.

    AgenticIR's own perception, reflection and comparison are DepictQA's, its schedule and rescheduling GPT-4's. In their place stand the
    trained encoder (``perceive``, ``severity``), the order of least failure by AgenticIR's own table, and NIQE and PIQE (``judges``), which
    prefer neither of two images that differ by less than ``threshold``. Or any vision-language model is asked what DepictQA is, by a
    :class:`policies.planners.vlm_judge.VLMJudge`.

    Args:
        severity: of what is left of a degradation; by default the trained encoder tells.
        compare: two images, in place of the judges.
        threshold: least difference of two images.
        perceive, judges, experience, roll_back, budget, seed: see :class:`policies.planners.rollback.RollbackPlanner`.
    """

    name = "agenticir"

    def __init__(
        self,
        perceive: Perceive | None = None,
        severity: Severity | None = None,
        judges: Mapping[str, float] = JUDGES,
        threshold: float = THRESHOLD,
        experience: Mapping[tuple[str, str], tuple[float, float]] = EXPERIENCE,
        roll_back: bool = True,
        budget: int = BUDGET,
        seed: int = 0,
        compare: Compare | None = None,
    ):
        super().__init__({} if compare else judges, perceive, experience, roll_back, budget, seed)
        shared = self.perceive if isinstance(self.perceive, EncoderPerception) else None
        self.severity, self.threshold, self.compare = severity or EncoderSeverity(shared), threshold, compare

    def execute(self, search: Search, node: Node, task: str) -> tuple[Tried | None, bool]:
        tools = list(search.tools[task])
        search.random.shuffle(tools)
        best, lowest = None, len(LEVELS)
        for tool in tools:
            for tried in search.try_tools(node, [tool]):
                level = self.severity(tried.image, task)
                if best is None or level < lowest or (level == lowest and self.better(best, tried)):
                    best, lowest = tried, level
            if lowest == VERY_LOW:
                break
        return best, lowest <= LOW

    def better(self, former: Tried, latter: Tried) -> bool:
        if self.compare:
            return self.compare(former, latter)
        if former.image.shape != latter.image.shape:
            return super().better(former, latter)
        return gain_by(self.judges, former, latter) >= self.threshold
