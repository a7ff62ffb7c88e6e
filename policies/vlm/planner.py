"""The vision-language policy as a planner: for the benchmark, ``ir-env restore``, and rollouts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ir_env.actions import ActionTable
from ir_env.planner import Observation, Planner
from ir_env.view import View
from policies.vlm.nano import NANO
from policies.vlm.parser import parse
from policies.vlm.prompts import WHOLE, Prompter, distinct, same_prompt
from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    import numpy as np

    from policies.vlm.model import VisionLanguageModel

SETTINGS = "vlm_policy.json"
BATCH = 64


@dataclass(frozen=True)
class PolicySettings:
    """What a trained policy needs to be asked as it was in training."""

    compact: bool = False
    """See :class:`policies.vlm.prompts.Prompter`."""
    view: View = WHOLE
    """See :class:`policies.vlm.prompts.Prompter`."""
    spectrum: bool = False
    """See :class:`policies.vlm.prompts.Prompter`."""
    toolbox: str | list | None = None
    """That it was trained with; None if any will do."""
    combos: Sequence[Any] | None = None
    """What its trainings so far drew combinations of degradations from, see :attr:`ir_env.planner.Planner.trained_combos`: what later ones
    begin with has been seen."""

    FILE: ClassVar[str] = SETTINGS
    """Beside the weights of a trained policy."""

    @classmethod
    def of(cls, name: str | Path, view: View | None = None) -> PolicySettings:
        """Those that a model by this name or in this folder is asked with: as it was trained, or as suits its size.

        Args:
            name: see :meth:`policies.vlm.model.VisionLanguageModel.load`.
            view: what it will be shown; None: what it was trained with, or the usual one.

        Raises:
            IrEnvError: it was trained with another view.
        """
        if str(name) == NANO:
            return cls(compact=True, view=view or View(), spectrum=True, combos=())
        if not (Path(name) / cls.FILE).is_file():
            return cls(view=view or WHOLE, combos=())
        settings = cls.read(name)
        if view and view.spaces(1) != settings.view.spaces(1):
            told = json.dumps(asdict(settings.view))
            raise IrEnvError(
                f"{name} was trained with another view ({told}) than it would be shown ({json.dumps(asdict(view))}). Set env_config.view "
                "(--view of commands) to the first, or train it anew."
            )
        return settings

    def after(self, *combos: Any) -> Self:
        """Those after a training on more combinations; where nobody knows the ones before, nobody knows all."""
        return self if self.combos is None else replace(self, combos=(*self.combos, *combos))

    def prompter(self, actions: ActionTable) -> Prompter:
        return Prompter(actions, self.compact, self.view, self.spectrum)

    def save(self, folder: str | Path) -> None:
        (Path(folder) / self.FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def read(cls, folder: str | Path) -> PolicySettings:
        """Of a folder; those of an untrained model if it holds none."""
        path = Path(folder) / cls.FILE
        if not path.is_file():
            return cls()
        try:
            told = json.loads(path.read_text())
            if "view" not in told:
                raise ValueError("it does not say what the model is shown, 'view'")
            combos = told.get("combos")
            return replace(cls(**told), view=View.of(told["view"]), combos=None if combos is None else tuple(combos))
        except (ValueError, TypeError, IrEnvError) as error:
            raise IrEnvError(f"{path}: not the settings of a policy ({error}). Train it again, or take a copy from a backup.") from error


class VLMPlanner(Planner):
    """Asks the model for the next call.

    A malformed answer ends the restoration: the image is as good as it was. :attr:`counts` tells how many there were, and why.

    Args:
        vlm: the model.
        settings: how to ask it.
        temperature: 0 takes the most probable answer.
        seed: of the drawing, if the temperature is not 0.
        max_tokens: longest answer.
    """

    def __init__(
        self, vlm: VisionLanguageModel, settings: PolicySettings, temperature: float = 0.0, seed: int = 0, max_tokens: int | None = None
    ):
        from policies.vlm.model import MAX_TOKENS

        self.vlm, self.settings, self.temperature = vlm, settings, temperature
        self.toolbox, self.trained_combos = settings.toolbox, settings.combos
        self.name = f"vision-language model ({Path(vlm.name).name})"
        self.max_tokens = max_tokens or MAX_TOKENS
        self.counts: Counter[str] = Counter()
        """``answers``, ``malformed``, ``forbidden`` (a call that the mask does not allow), and ``malformed: REASON`` for each reason."""
        self._seed = seed

    @classmethod
    def load(cls, name: str | Path, temperature: float = 0.0, seed: int = 0, device: str = "cpu") -> VLMPlanner:
        """A trained policy's folder, or any vision-language model as it is."""
        from policies.simplecall.shipped import combos_of
        from policies.vlm.model import VisionLanguageModel
        from policies.vlm.shipped import CARD

        planner = cls(VisionLanguageModel.load(name, device=device), PolicySettings.read(name), temperature, seed)
        card = Path(name) / CARD
        if card.is_file() and (last := combos_of(json.loads(card.read_text()))):
            planner.trained_combos = [*(planner.trained_combos or ()), *last]
        return planner

    @property
    def well_formed(self) -> float:
        """Share of the answers so far; 1 before the first."""
        return 1 - self.counts["malformed"] / max(1, self.counts["answers"])

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        import torch

        chosen = []
        for start in range(0, len(observations), BATCH):
            part = observations[start : start + BATCH]
            pictures = [self._pictures(each) for each in part]
            first, rows = distinct([(id(o.actions), same_prompt(shown, o.history)) for o, shown in zip(part, pictures, strict=True)])
            chats = [self.settings.prompter(part[index].actions).messages(pictures[index], part[index].history) for index in first]
            prompts = self.vlm.encode(chats)
            seed = None if self.temperature == 0 else self._seed + self.counts["answers"]
            asked = None if len(first) == len(part) else torch.tensor(rows, device=self.vlm.device)
            answers = self.vlm.generate(prompts, self.temperature, self.max_tokens, seed, asked)
            chosen += [self._decide(text, each) for text, each in zip(answers.texts, part, strict=True)]
        return chosen

    def _pictures(self, observation: Observation) -> list[np.ndarray]:
        return self.settings.prompter(observation.actions).pictures(self.settings.view.look(observation.trajectory))

    def _decide(self, text: str, observation: Observation) -> int:
        answer = parse(text, observation.actions)
        self.counts["answers"] += 1
        if answer.action is None:
            self.counts["malformed"] += 1
            self.counts[f"malformed: {answer.reason}"] += 1
            return observation.actions.stop
        self.counts["forbidden"] += not observation.action_mask[answer.action]
        return answer.action
