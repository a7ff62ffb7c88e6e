"""A vision-language model that writes whole plans: its prompts (table 14), as an RLModule, and as a planner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ir_env.plan_answer import PARTS, PlanAnswer, parse_plan, write_plan
from ir_env.planner import Observation
from policies.opera.planner import WholePlanner
from policies.vlm.planner import PolicySettings
from policies.vlm.prompts import Messages, Prompter
from tool_actors.tasks import DEGRADATIONS, TASK_OF

if TYPE_CHECKING:
    from policies.vlm.model import VisionLanguageModel

SYSTEM = """\
You are a professional image restoration assistant. You will be given an image as input. Your task is to:
1. Visually analyze the image and identify what degradations it contains.
2. Design an optimal sequence of restoration tool calls to enhance the image quality.

# Possible Degradations:
{degradations}

{tools}

First, think visually in <think></think> by describing the quality of the image and how you plan to restore it. Then, output a Python list \
of the detected degradations in <degradation></degradation>. Finally, output a Python list of the restoration plan in the order in \
<answer></answer>. e.g.: <think>thinking progress here</think><degradation>['rain', 'noise']</degradation><answer>{example}</answer>. \
Note that the **order** of tools matters, and tools from different repos may behave differently. Select carefully."""
USER = "How to restore this image? Think first then answer."
PLAN_TOKENS = 800
"""The paper's longest answer."""
_TASK_WORDS = {TASK_OF[name]: name.replace("_", " ") for name in DEGRADATIONS}


@dataclass(frozen=True)
class PlanPrompter(Prompter):
    """Writes OPERA's prompt, with the degradations and tools of a table of actions, and answers of whole plans."""

    tags: ClassVar[tuple[str, ...]] = (*(f"<{slash}{part}>" for part in PARTS for slash in ("", "/")), "['", "', '", "']", "[]")

    @cached_property
    def system(self) -> str:
        if self.compact:
            return "Restore."
        families: dict[str, list[str]] = {}
        for action in self.actions:
            families.setdefault(action.tool.partition(".")[0], []).append(action.tool)
        listed = [f"# Tools from {family}\n" + "\n".join(f"- {tool}" for tool in tools) for family, tools in families.items()]
        example = [action.tool for action in list(self.actions)[:2]]
        return SYSTEM.format(degradations="\n".join(f"- {name}" for name in DEGRADATIONS), tools="\n".join(listed), example=example)

    def messages(self, pictures: Sequence[np.ndarray], history: Sequence[int] = ()) -> Messages:
        """The chat up to the model's turn; there is no history, it is asked once."""
        content = [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "Plan." if self.compact else USER}]
        return [{"role": "system", "content": [{"type": "text", "text": self.system}]}, {"role": "user", "content": content}]

    def write(self, answer: PlanAnswer) -> str:
        """The text of an answer."""
        return write_plan(answer, self.actions)

    def reasoned(self, plan: Sequence[int], degradations: Sequence[str]) -> PlanAnswer:
        """An answer with a reasoning of two sentences that bears it out, for demonstrations."""
        seen = " and ".join(name.replace("_", " ") for name in degradations)
        steps = ", then ".join(f"undo {_TASK_WORDS[self.actions[index].task]}" for index in plan)
        return PlanAnswer(tuple(plan), tuple(degradations), f"The image shows {seen} . I {steps} .")

    def vocabulary(self) -> Iterator[str]:
        blank = np.zeros((8, 8, 3), np.uint8)
        for message in self.messages(self.pictures(self.view.look([blank]))):
            yield from (part["text"] for part in message["content"] if part["type"] == "text")
        for index in range(self.actions.stop):
            yield self.write(self.reasoned([index, index], DEGRADATIONS))


class PlanSettings(PolicySettings):
    """Those of a policy that writes whole plans."""

    FILE = "vlm_plan_policy.json"

    def prompter(self, actions) -> PlanPrompter:
        return PlanPrompter(actions, self.compact, self.view, self.spectrum)


class VLMPlanPlanner(WholePlanner):
    """Asks the model once per image, for the most probable answer.

    :attr:`counts` tells how many ``answers`` there were, how many ``malformed``, and why.
    """

    def __init__(self, vlm: VisionLanguageModel, settings: PolicySettings, max_plan: int = 6, max_tokens: int = PLAN_TOKENS):
        super().__init__()
        self.vlm, self.settings, self.max_plan, self.max_tokens = vlm, settings, max_plan, max_tokens
        self.toolbox, self.trained_combos = settings.toolbox, settings.combos
        self.name = f"vision-language model ({vlm.name})"
        self.counts: Counter[str] = Counter()

    @classmethod
    def load(cls, folder, device: str = "cpu") -> VLMPlanPlanner:
        """A trained policy's folder."""
        from policies.vlm.model import VisionLanguageModel

        return cls(VisionLanguageModel.load(folder, device=device), PlanSettings.read(folder))

    def write(self, observations: Sequence[Observation]) -> list[PlanAnswer]:
        prompter = self.settings.prompter(observations[0].actions)
        chats = [prompter.messages(prompter.pictures(self.settings.view.look(each.trajectory[:1])), ()) for each in observations]
        texts = self.vlm.generate(self.vlm.encode(chats), 0.0, self.max_tokens).texts
        answers = [parse_plan(text, each.actions, self.max_plan) for text, each in zip(texts, observations, strict=True)]
        self.counts["answers"] += len(answers)
        self.counts.update(f"malformed: {answer.reason}" for answer in answers if not answer.well_formed)
        self.counts["malformed"] += sum(not answer.well_formed for answer in answers)
        return answers
