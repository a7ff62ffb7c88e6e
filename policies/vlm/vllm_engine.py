"""vLLM as the sampling engine, where it is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from policies.grpo.token_policy import to_tensor
from policies.vlm.engines import GENERATE, VLLM, SamplingEngine
from policies.vlm.model import Generation, VisionLanguageModel
from policies.vlm.pretrained import ModelError
from policies.vlm.prompts import Messages

MOST_IMAGES = 16
"""In a chat."""


class VLLMEngine(SamplingEngine):
    """An engine of vLLM beside the policy's model, on the same GPU; the policy's weights are copied into it after every update.

    Args:
        vlm, max_tokens, batch: see :class:`SamplingEngine`.
        options: of ``vllm.LLM``, such as ``gpu_memory_utilization``, which must leave room for the policy's model.

    Raises:
        ModelError: vLLM is not installed, or the policy is an adapter.
    """

    def __init__(self, vlm: VisionLanguageModel, max_tokens: int, batch: int, options: Mapping[str, Any] | None = None):
        super().__init__(vlm, max_tokens, batch)
        # the engine within this process, so that weights are handed over without being copied between processes
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        try:
            from vllm import LLM
        except ImportError as error:
            raise ModelError(
                f"the sampling engine {VLLM!r} needs vLLM, which is not installed here: install it (it brings a PyTorch of its own), or "
                f"choose the engine {GENERATE!r} or 'continuous', which need nothing more"
            ) from error
        if hasattr(vlm.model, "peft_config"):
            raise ModelError(f"the engine {VLLM!r} takes whole models: leave lora out, or choose the engine {GENERATE!r}")
        self.llm = LLM(
            **{
                "model": vlm.name,
                "dtype": str(vlm.model.dtype).removeprefix("torch."),
                "max_num_seqs": batch,
                "limit_mm_per_prompt": {"image": MOST_IMAGES},
                # of the distribution that is drawn from, as the policy's own are
                "logprobs_mode": "processed_logprobs",
                **(options or {}),
            }
        )

    def load_weights(self, state: Mapping[str, Any]) -> None:
        weights = [(name.removeprefix("model."), to_tensor(value)) for name, value in state.items()]
        self.llm.apply_model(lambda model: model.load_weights(iter(weights)))
        self.llm.reset_prefix_cache()

    def answer(self, chats: Sequence[Messages], rows: Sequence[int], temperature: float) -> Generation:
        from vllm import SamplingParams

        settings = SamplingParams(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=self.max_tokens,
            logprobs=0,
            stop_token_ids=self.vlm.end_tokens,
            logit_bias=dict.fromkeys(self.vlm.barred_tokens, -100.0),
            seed=int(torch.randint(2**31, ()).item()),
        )
        requests = [{"prompt": text, "multi_modal_data": {"image": images}} for text, images in map(self.vlm.text_and_images, chats)]
        # equal seeds would give equal answers
        each = [settings.clone() for _ in rows]
        for index, one in enumerate(each):
            one.seed = (settings.seed + index) % 2**31
        written = [output.outputs[0] for output in self.llm.generate([requests[row] for row in rows], each, use_tqdm=False)]
        return self._generation(
            [(list(one.token_ids), [at[token].logprob for at, token in zip(one.logprobs, one.token_ids, strict=True)]) for one in written]
        )
