"""OPERA's reward of a whole plan, R = Rq · Rd · Rf · Rc (section 4.2), and the form that its released code has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ir_env.actions import ActionTable
from ir_env.metrics import find_metric
from ir_env.plan_answer import PlanAnswer
from ir_env.rewards import DEFAULT_WEIGHTS, INSTEAD, Transition
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import DEGRADATIONS, TASK_OF

__all__ = ["JUDGES", "PARTS", "PLAN_REWARDS", "RANGES", "Judge", "OperaReward", "f1", "find_judge", "judge_by_rules", "mean_of_both"]

PARTS = ("quality", "degradation", "format", "consistency")
"""Rq, Rd, Rf, Rc."""
PAPER_METRICS = ("psnr", "psnry", "ssim", "ssim_ycbcr", "lpips", "clipiqa", "musiq")
RANGES = {
    "psnr": (10.0, 40.0),
    "psnry": (10.0, 40.0),
    "ssim": (0.0, 1.0),
    "ssim_ycbcr": (0.0, 1.0),
    "ssim_yiq": (0.0, 1.0),
    "lpips": (0.0, 1.0),
    "clipiqa": (0.0, 1.0),
    "musiq": (0.0, 100.0),
    "piqe": (0.0, 100.0),
    "niqe": (0.0, 20.0),
}
"""The values of a metric that become 0 and 1 (or 1 and 0, where lower is better); beyond them it stays there."""

Judge = Callable[[Sequence[PlanAnswer], ActionTable], list[bool]]
"""Whether the reasoning of each well-formed answer bears out its plan."""


@dataclass(frozen=True)
class OperaReward:
    """R = Rq · Rd · Rf · Rc of a finished plan; 0 for a malformed answer.

    Rq is a weighted mean of the *final* metrics, each brought to [0, 1] by :data:`RANGES`: positive, so that a wrong set of degradations
    can never pay. The paper gives no weights; by default they are those of the released code's score, or :data:`DEFAULT_WEIGHTS` of the
    offline metrics that take the place of the paper's, per range. Rd is the F1 of the two sets of degradations, Rf and Rc are 0 or 1.

    With ``code`` it is the released code's form instead: ``Rf · Rc · (Rd + [Rd > 0.8] · acc)``, where Rd is the mean of precision and
    recall, and acc the weighted sum of the metrics as they are.
    """

    names: tuple[str, ...]
    """The metrics of the suite."""
    weights: tuple[float, ...]
    """Of the normalised metrics, summing to 1; in the code's form of the oriented metrics."""
    code: bool = False

    def __call__(self, step: Transition) -> float:
        parts = self.parts(step)
        if not self.code:
            return float(np.prod([parts[name] for name in PARTS]))
        accuracy = parts["quality"] if parts["degradation"] > 0.8 else 0.0
        return parts["format"] * parts["consistency"] * (parts["degradation"] + accuracy)

    def parts(self, step: Transition) -> dict[str, float]:
        """Rq, Rd, Rf and Rc by the names of :data:`PARTS`; all 0 for a malformed answer.

        Raises:
            IrEnvError: the step is none of a whole plan.
        """
        answer = step.answer
        if answer is None:
            raise IrEnvError("the rewards opera and opera_code judge whole plans: use them in ir_env/RestorationPlan-v0")
        if not answer.well_formed:
            return dict.fromkeys(PARTS, 0.0)
        agreement = mean_of_both if self.code else f1
        told = (self.quality(step.after), agreement(answer.degradations, step.degradations), 1.0, float(step.consistent))
        return dict(zip(PARTS, told, strict=True))

    def quality(self, scores: np.ndarray) -> float:
        """Rq (or acc) of an oriented metric vector (K,)."""
        values = scores if self.code else [self._normalised(name, float(score)) for name, score in zip(self.names, scores, strict=True)]
        return float(np.dot(self.weights, values))

    @staticmethod
    def _normalised(name: str, score: float) -> float:
        if name not in RANGES:
            return 0.0
        low, high = RANGES[name]
        share = (score - low) / (high - low) if find_metric(name).higher_is_better else (high + score) / (high - low)
        return float(np.clip(share, 0.0, 1.0))

    def describe(self) -> str:
        """Which metrics it weighs, and how many of the paper's are among them."""
        weighed = {name: weight for name, weight in zip(self.names, self.weights, strict=True) if weight}
        others = [name for name in weighed if name not in PAPER_METRICS]
        told = ", ".join(f"{weight:.2f} {name}" for name, weight in weighed.items())
        absent = [name for name in ("lpips", "clipiqa", "musiq") if name not in weighed]
        instead = f"; {', '.join(others) or 'nothing'} in the place of {', '.join(absent)}" if absent else ""
        return f"quality: {told}{instead}"


def opera(names: tuple[str, ...], weights: Mapping[str, float] | None = None) -> OperaReward:
    """The paper's; ``weights`` are those of the normalised metrics."""
    chosen = weights or {
        name: DEFAULT_WEIGHTS[name] * (RANGES[name][1] - RANGES[name][0])
        for name in names
        if name in DEFAULT_WEIGHTS and name in RANGES and INSTEAD.get(name) not in names
    }
    for name, weight in chosen.items():
        if name not in names or name not in RANGES or weight < 0:
            raise IrEnvError(
                f"reward opera: {name!r} with the weight {weight} cannot be weighed; weights are positive, and of metrics of the suite "
                f"{list(names)} that have a range ({', '.join(RANGES)})"
            )
    total = sum(chosen.values())
    if not total:
        raise IrEnvError(f"reward opera: no metric of the suite {list(names)} has a weight; give reward_weights")
    return OperaReward(tuple(names), tuple(chosen.get(name, 0.0) / total for name in names))


def opera_code(names: tuple[str, ...], weights: Mapping[str, float] | None = None) -> OperaReward:
    """That of the released code; ``weights`` are those of the metrics as they are."""
    chosen = weights or {name: DEFAULT_WEIGHTS[name] for name in names if name in DEFAULT_WEIGHTS and INSTEAD.get(name) not in names}
    return OperaReward(tuple(names), tuple(chosen.get(name, 0.0) for name in names), code=True)


PLAN_REWARDS: dict[str, Callable[..., OperaReward]] = {"opera": opera, "opera_code": opera_code}


def f1(predicted: Sequence[str], true: Sequence[str]) -> float:
    """F1 of two sets; 1 if both are empty."""
    found = len(set(predicted) & set(true))
    return 2 * found / (len(set(predicted)) + len(set(true))) if predicted or true else 1.0


def mean_of_both(predicted: Sequence[str], true: Sequence[str]) -> float:
    """(precision + recall) / 2, as in the released code."""
    found = len(set(predicted) & set(true))
    if not predicted or not true:
        return float(not predicted and not true)
    return (found / len(set(predicted)) + found / len(set(true))) / 2


# -- judges --------------------------------------------------------------------------------------------------------------------------

FEWEST_WORDS = 4
WORDS = {
    "noise": ("nois", "grain"),
    "motion_blur": ("motion", "camera shake", "moving"),
    "defocus_blur": ("defocus", "out of focus", "lens blur"),
    "rain": ("rain",),
    "haze": ("haze", "hazy", "fog"),
    "jpeg": ("jpeg", "compress", "block"),
    "low_light": ("dark", "low light", "low-light", "bright"),
    "low_resolution": ("resol", "small", "enlarg", "upscal"),
}
"""Beginnings of words by which a reasoning speaks of a degradation, or of its task."""
_NEGATED = re.compile(r"\b(?:no|not|without|free of|never|isn't|neither|nor)\s+(?:\w+\s+){0,2}?$")


def judge_by_rules(answers: Sequence[PlanAnswer], actions: ActionTable) -> list[bool]:
    """Table 13's criteria as rules: there is a reasoning of some words; it speaks of every task that the plan does, by the tool's name or
    by words of its degradation; and it does not deny one that the plan treats, or treat as there one that it denies.

    The index form has no reasoning, and is consistent by definition.
    """
    return [_consistent(answer, actions) for answer in answers]


def _consistent(answer: PlanAnswer, actions: ActionTable) -> bool:
    if answer.think is None:
        return True
    text = answer.think.lower()
    if len(text.split()) < FEWEST_WORDS:
        return False
    degradation_of = {task: degradation for degradation, task in TASK_OF.items()}
    treated = {degradation_of[actions[index].task]: actions[index].tool for index in answer.plan}
    for degradation in DEGRADATIONS:
        said = [_NEGATED.search(text[: found.start()]) is None for word in WORDS[degradation] for found in re.finditer(word, text)]
        affirmed = any(said) or (degradation in treated and treated[degradation].lower() in text)
        concerned = degradation in treated or degradation in answer.degradations
        if concerned and not affirmed and (said or degradation in treated):
            return False
    return True


JUDGES: dict[str, Judge] = {"rules": judge_by_rules, "none": lambda answers, actions: [True] * len(answers)}
"""By name; ``package.module:factory`` names a factory of one's own, such as those of :mod:`policies.opera.judges`."""


def find_judge(judge: str | Judge, options: Mapping | None = None) -> Judge:
    """A judge by name, as the product of a factory ``package.module:factory`` called with ``options``, or as it is."""
    if callable(judge):
        return judge
    if ":" in judge:
        from importlib import import_module

        module, _, name = judge.partition(":")
        try:
            factory = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise IrEnvError(f"judge {judge!r} cannot be imported ({error}); write package.module:factory") from error
        return factory(**(options or {}))
    if judge not in JUDGES:
        raise UnknownNameError("judge", judge, JUDGES, "package.module:factory names one of your own.")
    return JUDGES[judge]
