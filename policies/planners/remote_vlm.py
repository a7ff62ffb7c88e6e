"""A vision-language model behind an OpenAI-compatible endpoint as a planner: asked at every step, or once for a whole plan.

Questions, pictures and parsers are those of the policies that are trained here (``policies/vlm``, ``policies/opera``), so that a
proprietary model is compared with them on the same terms, as in OPERA's table 7. Text is parsed strictly, never guessed at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ir_env.plan_answer import PlanAnswer, parse_plan
from ir_env.planner import Observation, Planner
from ir_env.view import View
from policies.memory import ImageMemory, digest
from policies.opera.planner import WholePlanner
from policies.opera.vlm import PlanPrompter
from policies.remote import ChatEndpoint
from policies.vlm.parser import parse
from policies.vlm.prompts import WHOLE, Prompter

__all__ = ["RemotePlanVLM", "RemoteVLM"]


class RemoteVLM(Planner):
    """Asks for the next call, step by step.

    A malformed answer, one that does not come, and a call that the mask forbids end the restoration: the image is as good as it was. So
    does a budget that is spent, for all images. :attr:`counts` tells how many ``answers``, ``malformed`` and ``forbidden`` there were.

    Args:
        endpoint: of the model.
        view: what it is shown: whole images, the current one or all so far.
    """

    def __init__(self, endpoint: ChatEndpoint, view: View = WHOLE):
        self.endpoint, self.view = endpoint, view
        self.name = f"{endpoint.model}, step by step"
        self.counts: Counter[str] = Counter()
        self._told: ImageMemory[str | None] = ImageMemory()

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        keys = [(digest(each.trajectory[0]), digest(each.image), each.history, tuple(map(str, each.actions))) for each in observations]
        new = {key: each for key, each in zip(keys, observations, strict=True) if key not in self._told}
        chats = []
        for each in new.values():
            prompter = Prompter(each.actions, view=self.view)
            chats.append(prompter.messages(prompter.pictures(self.view.look(each.trajectory)), each.history))
        made = dict(zip(new, self.endpoint.ask_all(chats), strict=True))
        told = [made[key] if key in made else self._told[key] for key in keys]
        for key, text in made.items():
            if text is not None:
                self._told[key] = text
        return [self._action(text, each) for text, each in zip(told, observations, strict=True)]

    def _action(self, text: str | None, observation: Observation) -> int:
        answer = parse(text, observation.actions)
        self.counts["answers"] += 1
        if answer.action is None:
            self.counts.update(["malformed", f"malformed: {answer.reason}"])
            return observation.actions.stop
        if not observation.action_mask[answer.action]:
            self.counts["forbidden"] += 1
            return observation.actions.stop
        return answer.action


class RemotePlanVLM(WholePlanner):
    """Asks once per image for a whole plan, with OPERA's prompt; a malformed answer stops at once, and :attr:`counts` says why.

    Args:
        endpoint: of the model; its longest answer should be OPERA's, :data:`policies.opera.vlm.PLAN_TOKENS`.
        max_plan: most tools.
        view: what it is shown.
    """

    def __init__(self, endpoint: ChatEndpoint, max_plan: int = 6, view: View = WHOLE):
        super().__init__()
        self.endpoint, self.max_plan, self.view = endpoint, max_plan, view
        self.name = f"{endpoint.model}, one plan"
        self.counts: Counter[str] = Counter()

    def write(self, observations: Sequence[Observation]) -> list[PlanAnswer]:
        chats = []
        for each in observations:
            prompter = PlanPrompter(each.actions, view=self.view)
            chats.append(prompter.messages(prompter.pictures(self.view.look(each.trajectory[:1]))))
        texts = self.endpoint.ask_all(chats)
        answers = [parse_plan(text, each.actions, self.max_plan) for text, each in zip(texts, observations, strict=True)]
        self.counts["answers"] += len(answers)
        self.counts["malformed"] += sum(not answer.well_formed for answer in answers)
        self.counts.update(f"malformed: {answer.reason}" for answer in answers if not answer.well_formed)
        return answers
