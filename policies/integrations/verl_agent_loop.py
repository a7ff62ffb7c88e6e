"""verl's agent loop on our episodes: what its rollout workers run for each prompt. docs/verl.md says how to use it.

The settings of the episodes stand in the file that ``actor_rollout_ref.rollout.agent.agent_loop_config_path`` names:

    - name: ir_env
      _target_: policies.integrations.verl_agent_loop.RestorationAgentLoop
      process: {executor: "pool:tools", toolbox: agenticir, metrics: [psnr, lpips]}
      view: {overview: 0, glimpses: 0, whole: 512}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
from verl.utils.profiler import simple_timer

from policies.integrations.chat_episode import ChatEpisode, pil_images, without_images
from policies.integrations.verl_rows import SEED, SOURCE
from tool_actors.errors import IrEnvError


class RestorationAgentLoop(AgentLoopBase):
    """Plays an episode: the model's call, then what the tool made of the image, and so on to the end.

    The reward is the episode's; ``extra_fields["reward_extra_info"]`` has the metrics of its last image, oriented so that higher is better,
    and the share of calls that were well-formed and allowed (``format``). A rollout that would be longer than ``response_length`` is
    stopped where it is.

    Args:
        process, view: see :meth:`ChatEpisode.make`; the model is the one that verl trains.
        arguments: verl's own, see ``AgentLoopBase``.
    """

    def __init__(self, *arguments: Any, process: Mapping[str, Any] | None = None, view: Mapping[str, Any] | None = None, **named: Any):
        super().__init__(*arguments, **named)
        self.settings = _plain(process or {}), str(self.config.actor_rollout_ref.model.path), _plain(view) if view else None
        self.longest = int(self.rollout_config.response_length)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> AgentLoopOutput:
        """One rollout.

        Args:
            sampling_params: of the server.
            row: of the dataset; ``extra_info`` says where the episode begins, see :mod:`policies.integrations.verl_rows`.
        """
        metrics: dict[str, float] = {}
        chat = await self._aside(ChatEpisode.make, *self.settings)
        await self._aside(chat.reset, _seed_of(row))
        opening = chat.opening()
        images = pil_images(opening[-1]["content"])
        prompt = await self.apply_chat_template(without_images(opening), images=images)
        response: list[int] = []
        mask: list[int] = []
        logprobs: list[float] = []
        request, calls = uuid4().hex, 0
        while True:
            with simple_timer("generate_sequences", metrics):
                written = await self.server_manager.generate(
                    request_id=request, prompt_ids=prompt + response, sampling_params=dict(sampling_params), image_data=images
                )
            tokens = written.token_ids[: self.longest - len(response)]
            response += tokens
            mask += [1] * len(tokens)
            logprobs += (written.log_probs or [])[: len(tokens)]
            text = await self._aside(lambda tokens=tokens: self.tokenizer.decode(tokens, skip_special_tokens=True))
            with simple_timer("tool_calls", metrics):
                await self._aside(chat.answer, text)
            calls += 1
            if chat.done:
                break
            parts = chat.turn()
            shown = pil_images(parts)
            turn = await self.apply_chat_template(
                without_images([{"role": "user", "content": parts}]), images=shown, remove_system_prompt=True
            )
            if len(response) + len(turn) >= self.longest:
                await self._aside(chat.take, chat.actions.stop)
                break
            response += turn
            mask += [0] * len(turn)
            logprobs += [0.0] * len(turn) if logprobs else []
            images = images + shown
        return AgentLoopOutput(
            prompt_ids=prompt,
            response_ids=response,
            response_mask=mask,
            response_logprobs=logprobs or None,
            multi_modal_data={"images": images},
            reward_score=float(chat.episode.total_reward),
            num_turns=2 * calls,
            metrics=AgentLoopMetrics(**metrics),
            extra_fields={
                "reward_extra_info": {**chat.rewards, "format": 1 - chat.invalid_share},
                "turn_scores": [],
                "tool_rewards": [],
            },
        )

    async def _aside(self, function: Any, *arguments: Any) -> Any:
        """A call that takes time, in a thread: the worker's other rollouts go on meanwhile, and their requests meet in the pool."""
        return await self.loop.run_in_executor(None, function, *arguments)


def _seed_of(row: Mapping[str, Any]) -> int:
    told = row.get("extra_info") or {}
    if SEED not in told:
        raise IrEnvError(f"extra_info of a row has no {SEED!r}: make the rows by `python -m policies.integrations.verl_rows`, as {SOURCE}")
    return int(told[SEED])


def _plain(settings: Any) -> Any:
    """Hydra's mappings as Python's."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(settings) if OmegaConf.is_config(settings) else settings
