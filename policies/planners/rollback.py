"""The search of AgenticIR and of 4KAgent: one task after another, roll-back of those that fail, compromise where all do."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from ir_env.planner import Observation, Planner, Tried
from policies.memory import ImageMemory, digest
from policies.planners.perception import EncoderPerception, Perceive
from policies.planners.traversal import SCHEDULE, gain_by
from tool_actors.errors import IrEnvError

__all__ = ["EXPERIENCE", "Node", "RollbackPlanner", "Search", "schedule"]

EXPERIENCE: dict[tuple[str, str], tuple[float, float]] = {
    ("denoise", "brighten"): (0.322, 0.349),
    ("defocus_deblur", "dehaze"): (0.181, 0.200),
    ("dejpeg", "defocus_deblur"): (0.204, 0.277),
    ("motion_deblur", "brighten"): (0.231, 0.260),
    ("motion_deblur", "super_resolve"): (0.163, 0.186),
    ("denoise", "dejpeg"): (0.256, 0.259),
    ("derain", "dehaze"): (0.209, 0.244),
    ("derain", "super_resolve"): (0.140, 0.316),
}
"""AgenticIR's experience: how often one task, then another failed on degraded photographs, and how often in the other order."""
BUDGET = 100
"""Tools run per image, after which nothing is rolled back any more. The published systems have no bound."""


def schedule(agenda: Sequence[str], experience: Mapping[tuple[str, str], tuple[float, float]] = EXPERIENCE) -> list[str]:
    """The tasks in an order that fails the least in every pair that there is experience with.

    What experience leaves open follows its distilled rule (:data:`policies.planners.traversal.SCHEDULE`): deblurring and artefacts first,
    light and size last. AgenticIR has a language model read the experience, and order the agenda by it.

    Raises:
        IrEnvError: the experience goes in a circle.
    """
    before: dict[str, set[str]] = {task: set() for task in agenda}
    for (first, then), (rate, other) in experience.items():
        if first in before and then in before and rate != other:
            before[then if rate < other else first].add(first if rate < other else then)
    sorter = TopologicalSorter(before)
    try:
        sorter.prepare()
    except CycleError as error:
        raise IrEnvError(f"the experience asks for {' before '.join(error.args[1])}: leave out one of these pairs") from None
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=_usual)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order


def _usual(task: str) -> tuple[int, str]:
    return (SCHEDULE.index(task) if task in SCHEDULE else len(SCHEDULE), task)


@dataclass(eq=False)
class Node:
    """An image in the tree of those that were tried."""

    tried: Tried
    tasks: tuple[str, ...] = ()
    """That led to it, and ``plan`` the actions that did."""
    plan: tuple[int, ...] = ()
    parent: Node | None = None
    rest: list[str] = field(default_factory=list)
    """What was to come next."""
    children: dict[str, Node] = field(default_factory=dict)
    """By task, what came of it here: the memory of what failed."""
    best: Node | None = None
    """Its best descendant, once all that could come first has been tried here."""


@dataclass
class Search:
    """Of one image."""

    observation: Observation
    metrics: Sequence[str]
    tools: dict[str, list[int]]
    """By task; tasks that fail with every tool are taken out."""
    random: random.Random
    runs: int = 0
    """Tools run so far."""

    def try_tools(self, node: Node, tools: Sequence[int]) -> list[Tried]:
        """What tools make of the image of a node; those that fail are left out."""
        assert self.observation.try_tools is not None
        self.runs += len(tools)
        return [tried for tried in self.observation.try_tools(tools, self.metrics, after=node.plan) if not tried.error]

    def remaining(self, node: Node) -> list[str]:
        return [task for task in self.tools if task not in node.tasks]


class RollbackPlanner(Planner):
    """Perceives, schedules an agenda of tasks, and executes them one by one, in a tree of images.

    - A task that fails is rolled back, and another comes first; a task never comes first twice on the same image.
    - Where all have failed first, the task before is rolled back, too, though it had succeeded.
    - Where nothing is left to be rolled back, a compromise: the best of the images that failed is taken, and the rest of the agenda is
      gone on with in the order that it had there.

    An episode cannot go back, so the whole search happens before its first action, by trying (``observation.try_tools``), and the plan
    that it ends with is followed: the same tools run as if every one had been executed and undone. What was planned is remembered by the
    pixels of the degraded image; asked in the middle of an episode that it has not begun, it searches from there.

    Args:
        perceive: which tasks an image needs; by default the trained encoder tells.
        judges: weights of the no-reference metrics that compare images, see :func:`policies.planners.traversal.gain_by`.
        experience: with orders of tasks, see :func:`schedule`.
        roll_back: without it, what fails is kept.
        budget: tools run per image, after which what fails is kept.
        seed: of the order in which tools are tried, where it matters.
    """

    def __init__(
        self,
        judges: Mapping[str, float],
        perceive: Perceive | None = None,
        experience: Mapping[tuple[str, str], tuple[float, float]] = EXPERIENCE,
        roll_back: bool = True,
        budget: int = BUDGET,
        seed: int = 0,
    ):
        self.judges, self.perceive, self.experience = judges, perceive or EncoderPerception(), experience
        self.roll_back, self.budget, self.seed = roll_back, budget, seed
        self._plans: ImageMemory[tuple[int, ...]] = ImageMemory()

    @abstractmethod
    def execute(self, search: Search, node: Node, task: str) -> tuple[Tried | None, bool]:
        """The best that the tools of a task make of an image, None if all fail; and whether it is good enough."""

    def plan(self, observation: Observation) -> int:
        actions, done = observation.actions, observation.history
        key = (digest(observation.trajectory[0]), observation.max_steps, tuple(map(str, actions)))
        plan = self._plans.get(key)
        if plan is None or plan[: len(done)] != done:
            plan = self._plans[key] = (*done, *self.search(observation))
        return plan[len(done)] if len(done) < len(plan) else actions.stop

    def search(self, observation: Observation) -> tuple[int, ...]:
        """The actions to take from here."""
        if observation.try_tools is None:
            raise IrEnvError(f"{self.name} tries tools: give it observations that can, those of ir_env.planner.observation_of")
        actions, room = observation.actions, observation.max_steps - len(observation.history)
        done = {actions[index].task for index in observation.history if 0 <= index < actions.stop}
        agenda = [task for task in self.perceive(observation) if task not in done]
        allowed = {
            task: [i for i, each in enumerate(actions) if each.task == task and observation.action_mask[i]] for task in sorted(agenda)
        }
        search = Search(observation, list(self.judges), {task: tools for task, tools in allowed.items() if tools}, random.Random(self.seed))
        if not search.tools:
            return ()
        node = Node(observation.try_tools([actions.stop], search.metrics)[0])
        rest = schedule(search.remaining(node), self.experience)
        while rest and len(node.plan) < room:
            task, *rest = rest
            tried, good = self.execute(search, node, task)
            if tried is None:
                del search.tools[task]
                continue
            child = Node(tried, (*node.tasks, task), (*node.plan, tried.action), node, rest)
            child.best = node.children[task] = child
            if good or not self.roll_back or search.runs >= self.budget:
                node = child
            else:
                node, rest = self._rolled_back(search, node)
        return node.plan

    def _rolled_back(self, search: Search, node: Node) -> tuple[Node, list[str]]:
        """Where the search goes on after a task has failed on the image of a node, and with which tasks."""
        while all(task in node.children for task in search.remaining(node)):
            node.best = self.best([child.best or child for child in node.children.values()])
            if node.parent is None:
                return node.best, [task for task in node.best.rest if task in search.tools]
            node = node.parent
        order = schedule(search.remaining(node), self.experience)
        first = next(task for task in order if task not in node.children)
        return node, [first, *(task for task in order if task != first)]

    def best(self, nodes: Sequence[Node]) -> Node:
        """By comparison with one after another; the one before stays where they are equally good."""
        best = nodes[0]
        for node in nodes[1:]:
            if self.better(best.tried, node.tried):
                best = node
        return best

    def better(self, former: Tried, latter: Tried) -> bool:
        """Whether the latter is better: larger, since scores of another size are those of another picture, or else by the judges."""
        if former.image.shape != latter.image.shape:
            return latter.image.size > former.image.size
        return gain_by(self.judges, former, latter) > 0
