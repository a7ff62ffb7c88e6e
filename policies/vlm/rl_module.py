"""The vision-language policy as an RLModule of RLlib's new API stack, for GRPO."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gymnasium
import torch
from ray.rllib.core.columns import Columns
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ir_env.actions import MALFORMED, ActionTable
from ir_env.planner import Planner
from ir_env.view import View
from policies.grpo.token_policy import TOKEN_MASK, TokenPolicy, TrainableStateModule
from policies.vlm.engines import ENGINES, GENERATE, SamplingEngine, make_engine
from policies.vlm.model import MAX_TOKENS, VisionLanguageModel
from policies.vlm.parser import parse
from policies.vlm.planner import PolicySettings, VLMPlanner
from policies.vlm.prompts import Messages, distinct, same_prompt
from policies.vlm.sharding import shard
from tool_actors.errors import IrEnvError, UnknownNameError


class VLMRLModule(TrainableStateModule, TokenPolicy):
    """Writes a tool call for each observation of ``ir_env/Restoration-v0``; its actions are the tokens of the answer.

    It is shown what the environment's ``view`` shows, which must be the view that the model was trained with; a model of no training here
    takes any. What the text means goes to the environment as ``actions_for_env``; a malformed answer is :data:`ir_env.actions.MALFORMED`.

    ``model_config``:

    * ``model``: a name or folder, see :meth:`VisionLanguageModel.load`. Every process reads it by itself; only what is trained travels.
    * ``actions``: (task, tool) pairs behind the indices; reading the experiment file fills them in.
    * ``lora``: settings of a new adapter, e.g. ``{"r": 16}``; without, all of the model is trained.
    * ``train_vision``: False keeps the vision tower as it is (default True).
    * ``temperature`` of exploration (default 1); inference takes the most probable token.
    * ``max_tokens``: longest answer (default 64).
    * ``engine``: what writes the answers, ``generate`` (the default), ``continuous`` or ``vllm``, see :mod:`policies.vlm.engines`; and
      ``engine_options`` of the last.
    * ``batch``: answers written at a time (default 64), which bounds the memory of sampling.
    * ``dtype``: e.g. ``"bfloat16"``; by default float32. New adapters are float32 in any case.
    * ``gradient_checkpointing``: less memory for a third more computation (default False).
    * ``keep_reference``: without an adapter, keep a frozen copy as the reference policy of ``kl_coeff`` (default False).
    """

    def setup(self):
        space, options = self.observation_space, dict(self.model_config)
        if not isinstance(space, gymnasium.spaces.Dict) or not {"size", "history", "step"} <= set(space.spaces):
            raise IrEnvError(f"VLMRLModule acts in ir_env/Restoration-v0; it cannot read observations of {space}")
        for name in ("model", "actions"):
            if not options.get(name):
                raise IrEnvError(f"VLMRLModule needs model_config[{name!r}]; see its docstring")
        actions = ActionTable.from_pairs(options["actions"])
        self.check_actions(actions)
        self.settings = replace(self.Settings.of(options["model"], View.of_space(space)), toolbox=None)
        self.prompter = self.settings.prompter(actions)
        dtype = getattr(torch, options["dtype"]) if options.get("dtype") else torch.float32
        self.vlm = VisionLanguageModel.load(options["model"], self.prompter, options.get("lora"), dtype=dtype)
        self.model = self.vlm.model
        if not options.get("train_vision", True):
            for name, parameter in self.model.named_parameters():
                if ".visual." in name:
                    parameter.requires_grad_(False)
        self.checkpointing = bool(options.get("gradient_checkpointing"))
        if self.checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.temperature = float(options.get("temperature", 1.0))
        self.max_tokens, self.batch = int(options.get("max_tokens", MAX_TOKENS)), int(options.get("batch", 64))
        self._engine: SamplingEngine | None = None
        if (engine := options.get("engine", GENERATE)) not in ENGINES:
            raise UnknownNameError("sampling engine", engine, ENGINES)
        # in a list: it is neither trained, nor sent, nor stored
        kept = options.get("keep_reference") and not self.inference_only
        self._reference = [copy.deepcopy(self.model).requires_grad_(False)] if kept else []
        self.sharded = False

    Settings = PolicySettings

    def check_actions(self, actions: ActionTable) -> None:
        """Raise :class:`IrEnvError` unless these are the environment's."""
        if actions.n != self.action_space.n:
            raise IrEnvError(f"model_config['actions'] names {actions.n - 1} tools, and the environment has {self.action_space.n - 1}")

    def meanings(self, texts: Sequence[str]) -> Any:
        """What the environment is told: an action for each answer."""
        answers = [parse(text, self.prompter.actions) for text in texts]
        return torch.tensor([MALFORMED if answer.action is None else answer.action for answer in answers])

    # -- sampling -----------------------------------------------------------------------------------------------------------------

    def _forward_exploration(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        return self._answer(batch[Columns.OBS], self.temperature)

    def _forward_inference(self, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        return self._answer(batch[Columns.OBS], 0.0)

    @property
    def engine(self) -> SamplingEngine:
        """What samples; made when it first does, which a learner's never does."""
        if self._engine is None:
            options = dict(self.model_config)
            name, settings = options.get("engine", GENERATE), options.get("engine_options")
            self._engine = make_engine(name, self.vlm, self.max_tokens, self.batch, settings)
            self._engine.load_weights(self.get_state(inference_only=True))
        return self._engine

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if self._engine is not None:
            self._engine.load_weights(state)

    def _answer(self, observation: Mapping[str, Tensor], temperature: float) -> dict[str, Any]:
        written = self.engine.answer(*self._chats(observation), temperature)
        return {
            Columns.ACTIONS: written.tokens,
            Columns.ACTIONS_FOR_ENV: self.meanings(written.texts),
            Columns.ACTION_LOGP: written.logprobs,
            TOKEN_MASK: written.mask.float(),
        }

    def _chats(self, observation: Mapping[str, Tensor]) -> tuple[list[Messages], list[int]]:
        """The distinct chats, and which of them each observation is: the members of a group begin with the same, and may go on so."""
        seen = {name: observation[name].cpu().numpy() for name in self.settings.view.spaces(1)}
        histories, steps = observation["history"].long().cpu().numpy() - 1, observation["step"].reshape(-1).long().tolist()
        calls = [history[:step].tolist() for history, step in zip(histories, steps, strict=True)]
        pictures = [self.prompter.pictures({name: each[row] for name, each in seen.items()}) for row in range(len(calls))]
        first, rows = distinct(list(map(same_prompt, pictures, calls)))
        return [self.prompter.messages(pictures[index], calls[index]) for index in first], rows

    # -- learning -----------------------------------------------------------------------------------------------------------------

    def _prompts(self, chats: list[Messages], rows: list[int]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The model's inputs, and which of them each observation has; None where each has its own."""
        if self.sharded or (self.checkpointing and torch.is_grad_enabled()):
            # learners that share parameters must all call the model equally often; and transformers keeps no cache while it recomputes
            return self.vlm.encode([chats[row] for row in rows]), None
        return self.vlm.encode(chats), None if len(chats) == len(rows) else torch.tensor(rows, device=self.vlm.device)

    def score_actions(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        mask = batch[TOKEN_MASK].reshape(len(batch[TOKEN_MASK]), -1) > 0
        width = int(mask.sum(1).max())
        tokens = batch[Columns.ACTIONS].reshape(mask.shape).long()
        with self._checkpointed():
            prompts, asked = self._prompts(*self._chats(batch[Columns.OBS]))
            scores = self.vlm.score(prompts, tokens[:, :width], mask[:, :width], self.temperature, asked)
        # back to the full width, in which the columns of the batch are
        logprobs, entropies = (torch.nn.functional.pad(score, (0, mask.shape[1] - width)) for score in scores)
        return logprobs, entropies

    def shard(self, mesh: DeviceMesh) -> None:
        """FSDP2, of the kept reference too; runners get the weights in the type that ``dtype`` says, whatever the learners keep."""
        self.runner_dtypes = {name: parameter.dtype for name, parameter in self.named_parameters()}
        for model in (self.model, *self._reference):
            shard(model, mesh)
        self.sharded = True

    @contextmanager
    def _checkpointed(self) -> Iterator[None]:
        """Transformers recomputes activations in train mode alone; no policy here has dropout, so that mode changes nothing else."""
        training = self.model.training
        self.model.train(torch.is_grad_enabled() and self.checkpointing)
        try:
            yield
        finally:
            self.model.train(training)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The model without its adapter; or the copy that was kept."""
        if hasattr(self.model, "disable_adapter"):
            with self.model.disable_adapter():
                yield
        elif self._reference:
            self.vlm.model = self._reference[0].to(self.model.device)
            try:
                yield
            finally:
                self.vlm.model = self.model
        else:
            raise IrEnvError("kl_coeff needs a reference policy: train an adapter (model_config['lora']), or set keep_reference=True")

    # -- using --------------------------------------------------------------------------------------------------------------------

    def planner(self, name: str, env_config: Mapping[str, Any]) -> Planner:
        """The most probable answers, as a planner."""
        planner = VLMPlanner(self.vlm, replace(self.settings, toolbox=env_config.get("toolbox")), max_tokens=self.max_tokens)
        planner.name, planner.env_config = name, dict(env_config)
        return planner
