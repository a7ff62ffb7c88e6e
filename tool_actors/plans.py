"""Runs plans, each common beginning once.

>>> jobs = [(state, plan) for plan in itertools.product(["nlm.strong", "dcp.light"], repeat=3)]
>>> for results in run_plans(executor, jobs):
...     final = results[-1].state

All plans of one to four out of four tools are 4 + 16 + 64 + 256 = 340 plans of 1252 steps, but only 340 different beginnings, so a tool
runs 340 times. That does not lean on the executor's cache, which may be off or too small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from tool_actors.errors import IrEnvError
from tool_actors.executor import Executor, ImageState, Request, Result
from tool_actors.toolbox import Toolbox

__all__ = ["Job", "iter_plans", "run_plans"]

Job = tuple[ImageState, Sequence[str]]
"""Where a plan starts, and the names of its tools in order."""
Prefix = tuple[Hashable, ...]
"""The beginning of a plan, as the key of the state that it leads to; unique to its job from the first tool on that is not deterministic."""


def run_plans(executor: Executor, jobs: Sequence[Job], keep: Literal["all", "last"] = "all") -> list[list[Result]]:
    """Run plans, each common beginning once (see :func:`iter_plans`, which holds fewer images at once).

    Args:
        executor: runs the tools.
        jobs: (state, names of tools); any number of states, of any shapes.
        keep: ``"all"`` returns what every step gave, ``"last"`` only what the last one gave, and frees the images in between.

    Returns:
        Per job the results of its steps, up to and with the first failure; no results for a plan without tools.

    Raises:
        UnknownToolError: a plan names a tool that the executor's toolbox does not hold (nothing is run then).
    """
    if keep not in ("all", "last"):
        raise IrEnvError(f"keep must be 'all' or 'last', not {keep!r}")
    results: list[list[Result]] = [[] for _ in jobs]
    for job, _, result in iter_plans(executor, jobs):
        if keep == "last":
            results[job].clear()
        results[job].append(result)
    return results


def iter_plans(executor: Executor, jobs: Sequence[Job], at_once: int | None = None) -> Iterator[tuple[int, int, Result]]:
    """Run plans, each common beginning once, and hand out each step's result as it comes.

    All first steps run, then all second steps, and so on. A failure ends its plan and those with the same beginning, and no other. A state
    is kept only until the last step that starts from it has run: memory holds two neighbouring levels, or one and ``at_once`` results.

    Args:
        executor: runs the tools, with one call of ``run`` per level.
        jobs: as in :func:`run_plans`.
        at_once: most requests per call of ``run``; None: no bound.

    Yields:
        Number of the job, number of the step, and its result; ``Result.cached`` is True for all but one of those that share an execution.

    Raises:
        UnknownToolError: a plan names a tool that the executor's toolbox does not hold (nothing is run then).
    """
    paths = [_prefixes(executor.toolbox, number, state, plan) for number, (state, plan) in enumerate(jobs)]
    uses = Counter(prefix for path in paths for prefix in path)
    states = {number: state for number, (state, plan) in enumerate(jobs) if plan}
    # what a later level needs, too: one job may start where another arrives
    kept: dict[Prefix, Result] = {}

    def deliver(prefix: Prefix, result: Result, step: int, numbers: list[int]) -> Iterator[tuple[int, int, Result]]:
        for number in numbers:
            yield number, step, result
            result = result if result.cached else replace(result, cached=True)
            path = paths[number]
            if result.state is None or step + 1 == len(path):
                del states[number]
                # a plan that failed has no use for its further steps
                past = path[step:]
            else:
                states[number] = result.state
                past = path[step : step + 1]
            for done in past:
                uses[done] -= 1
                if not uses[done]:
                    kept.pop(done, None)
        if uses[prefix]:
            kept[prefix] = result

    step = 0
    while states:
        level: dict[Prefix, list[int]] = {}
        for number in states:
            level.setdefault(paths[number][step], []).append(number)
        new = [prefix for prefix in level if prefix not in kept]
        for prefix in [prefix for prefix in level if prefix in kept]:
            yield from deliver(prefix, kept[prefix], step, level[prefix])
        size = at_once or len(new) or 1
        for start in range(0, len(new), size):
            part = new[start : start + size]
            requests = [Request(states[number], jobs[number][1][step]) for number in (level[prefix][0] for prefix in part)]
            results = executor.run(requests)
            del requests
            for prefix in part:
                yield from deliver(prefix, results.pop(0), step, level[prefix])
        step += 1


def _prefixes(toolbox: Toolbox, number: int, state: ImageState, plan: Sequence[str]) -> list[Prefix]:
    """The key of the state after each step of a plan; the executor's own, but for what is drawn."""
    path: list[Prefix] = []
    prefix: Prefix = state.key
    for step, name in enumerate(plan):
        spec = toolbox[name].spec
        prefix = (*prefix, spec.fingerprint if spec.deterministic else (number, step))
        path.append(prefix)
    return path
