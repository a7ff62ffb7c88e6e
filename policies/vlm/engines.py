"""Engines that write a policy's answers: transformers' ``generate``, continuous batching, vLLM."""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policies.vlm.model import Generation, VisionLanguageModel
from policies.vlm.pretrained import ModelError
from policies.vlm.prompts import Messages, distinct
from tool_actors.errors import UnknownNameError

GENERATE, CONTINUOUS, VLLM = "generate", "continuous", "vllm"
ENGINES = (GENERATE, CONTINUOUS, VLLM)


class SamplingEngine(abc.ABC):
    """Writes answers, and tells the log-probability of each token that it drew.

    Args:
        vlm: the policy; the engines of transformers run its model, whose weights are always those of the policy.
        max_tokens: longest answer, T.
        batch: answers written at a time.
    """

    def __init__(self, vlm: VisionLanguageModel, max_tokens: int, batch: int):
        self.vlm, self.max_tokens, self.batch = vlm, max_tokens, batch

    @abc.abstractmethod
    def answer(self, chats: Sequence[Messages], rows: Sequence[int], temperature: float) -> Generation:
        """An answer for each of the ``rows``, which say which of the chats it is to; (len(rows), T), on the CPU.

        ``temperature`` 0 takes the most probable token each time; what is drawn comes from torch's generator.
        """

    def load_weights(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take the policy's new weights, by the names of its RLModule; nothing where the engine runs the policy's own model."""

    def _generation(self, answers: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Generation:
        """Tokens and log-probabilities of each answer, padded to T."""
        shape = len(answers), self.max_tokens
        tokens = torch.full(shape, self.vlm.tokenizer.pad_token_id)
        logprobs, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        for row, (written, scores) in enumerate(answers):
            tokens[row, : len(written)], logprobs[row, : len(written)] = torch.tensor(written), torch.tensor(scores)
            mask[row, : len(written)] = True
        texts = [self.vlm.tokenizer.decode(written, skip_special_tokens=True) for written, _ in answers]
        return Generation(tokens, logprobs, mask, texts)


def make_engine(name: str, vlm: VisionLanguageModel, max_tokens: int, batch: int, options: Mapping[str, Any] | None = None):
    """The engine of a name, one of :data:`ENGINES`.

    Args:
        name: which.
        vlm, max_tokens, batch: see :class:`SamplingEngine`.
        options: of ``vllm``, see :class:`policies.vlm.vllm_engine.VLLMEngine`.

    Raises:
        UnknownNameError: there is none of that name.
        ModelError: vLLM is not installed, or the options belong to another engine.
    """
    if name not in ENGINES:
        raise UnknownNameError("sampling engine", name, ENGINES)
    if name == VLLM:
        from policies.vlm.vllm_engine import VLLMEngine

        return VLLMEngine(vlm, max_tokens, batch, options)
    if options:
        raise ModelError(f"engine_options are those of the engine {VLLM!r}; {name!r} has none")
    return (GenerateEngine if name == GENERATE else ContinuousEngine)(vlm, max_tokens, batch)


class GenerateEngine(SamplingEngine):
    """Transformers' ``generate``, ``batch`` answers after ``batch``; a batch takes as long as its longest answer."""

    def answer(self, chats: Sequence[Messages], rows: Sequence[int], temperature: float) -> Generation:
        answers = []
        for start in range(0, len(rows), self.batch):
            first, asked = distinct(rows[start : start + self.batch])
            prompts = self.vlm.encode([chats[rows[start + index]] for index in first])
            shared = None if len(first) == len(asked) else torch.tensor(asked, device=self.vlm.device)
            written = self.vlm.generate(prompts, temperature, self.max_tokens, rows=shared)
            for tokens, logprobs, mask in zip(written.tokens, written.logprobs, written.mask, strict=True):
                answers.append((tokens[mask].tolist(), logprobs[mask].tolist()))
        return self._generation(answers)


@dataclass
class _Live:
    """Answers that are being written: B of them, with L tokens read so far, padded on the left."""

    rows: list[int]
    cache: Any
    attended: Tensor
    """int64 (B, L): 0 where padded."""
    shift: Tensor
    """int64 (B, 1): from the number of tokens to their position, which counts an image's tokens by rows and columns."""
    logits: Tensor
    """(B, vocabulary): of the next token."""

    def keep(self, kept: Tensor) -> None:
        """Drop the answers where ``kept``, bool (B,), is False, and the padding that no other needs."""
        index = kept.nonzero()[:, 0]
        self.rows = [self.rows[i] for i in index.tolist()]
        self.cache.batch_select_indices(index)
        self.attended, self.shift, self.logits = self.attended[index], self.shift[index], self.logits[index]
        unused = int(self.attended.any(0).int().argmax()) if self.rows else 0
        self.attended = self.attended[:, unused:]
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[:, :, unused:], layer.values[:, :, unused:]

    def join(self, other: _Live) -> None:
        """Take others in; the shorter ones are padded."""
        length = max(self.attended.shape[1], other.attended.shape[1])
        for live in (self, other):
            missing = length - live.attended.shape[1]
            live.attended = torch.nn.functional.pad(live.attended, (missing, 0))
            for layer in live.cache.layers:
                layer.keys, layer.values = (torch.nn.functional.pad(each, (0, 0, missing, 0)) for each in (layer.keys, layer.values))
        for mine, theirs in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys, mine.values = torch.cat([mine.keys, theirs.keys]), torch.cat([mine.values, theirs.values])
        self.rows += other.rows
        self.attended, self.shift = torch.cat([self.attended, other.attended]), torch.cat([self.shift, other.shift])
        self.logits = torch.cat([self.logits, other.logits])


class ContinuousEngine(SamplingEngine):
    """Continuous batching: ``batch`` slots, and where answers end, others begin.

    Transformers' own continuous batching reads text alone; this one works on any cache of its that keeps all keys and values.
    """

    @torch.no_grad()
    def answer(self, chats: Sequence[Messages], rows: Sequence[int], temperature: float) -> Generation:
        vlm = self.vlm
        answers: list[tuple[list[int], list[float]]] = [([], []) for _ in rows]
        waiting, live = deque(range(len(rows))), None
        ends = torch.tensor(vlm.end_tokens, device=vlm.device)
        while waiting or live:
            free = self.batch - (len(live.rows) if live else 0)
            # reading prompts one by one would cost more than the slots that stand empty
            if waiting and (not live or free >= max(1, self.batch // 4)):
                begun = self._read(chats, rows, [waiting.popleft() for _ in range(min(free, len(waiting)))])
                live.join(begun) if live else None
                live = live or begun
            assert live is not None
            logprobs = vlm.shaped(live.logits, temperature).log_softmax(-1)
            drawn = torch.multinomial(logprobs.exp(), 1)[:, 0] if temperature > 0 else logprobs.argmax(-1)
            scores = logprobs.gather(-1, drawn[:, None])[:, 0].tolist()
            for row, token, score in zip(live.rows, drawn.tolist(), scores, strict=True):
                answers[row][0].append(token)
                answers[row][1].append(score)
            long = torch.tensor([len(answers[row][0]) >= self.max_tokens for row in live.rows], device=vlm.device)
            goes_on = ~(torch.isin(drawn, ends) | long)
            live.keep(goes_on)
            if live.rows:
                self._step(live, drawn[goes_on])
            else:
                live = None
        return self._generation(answers)

    def _read(self, chats: Sequence[Messages], rows: Sequence[int], answers: list[int]) -> _Live:
        """The prompts of some answers; those of one prompt share its reading."""
        from transformers.cache_utils import DynamicLayer

        first, asked = distinct([rows[answer] for answer in answers])
        prompts = self.vlm.encode([chats[rows[answers[index]]] for index in first])
        read = self.vlm.model(**prompts, use_cache=True, logits_to_keep=1)
        cache, deltas = read.past_key_values, self.vlm.rope_deltas
        if not all(type(layer) is DynamicLayer for layer in getattr(cache, "layers", [None])):
            raise ModelError(
                f"the engine {CONTINUOUS!r} needs a model that keeps all keys and values, which {self.vlm.name} does not: "
                f"choose the engine {GENERATE!r}"
            )
        index = torch.tensor(asked, device=self.vlm.device)
        cache.batch_select_indices(index)
        attended = prompts["attention_mask"][index]
        shift = torch.zeros_like(attended[:, :1]) if deltas is None else deltas.reshape(-1, 1)[index]
        return _Live(answers, cache, attended, shift, read.logits[index, -1])

    def _step(self, live: _Live, tokens: Tensor) -> None:
        """Read the tokens that were drawn, (B,)."""
        live.attended = torch.nn.functional.pad(live.attended, (0, 1), value=1)
        positions = live.attended.sum(1, keepdim=True) - 1 + live.shift
        read = self.vlm.model(
            input_ids=tokens[:, None],
            attention_mask=live.attended,
            position_ids=positions if self.vlm.rope_deltas is None else positions.expand(3, -1, -1),
            past_key_values=live.cache,
            use_cache=True,
        )
        live.logits = read.logits[:, -1]
