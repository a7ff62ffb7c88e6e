"""A vision-language model of transformers as a policy: prompts in, answers with their log-probabilities out.

>>> vlm = VisionLanguageModel.load("Qwen/Qwen3-VL-8B-Instruct", lora={"r": 16, "lora_alpha": 32})
>>> prompts = vlm.encode([prompter.messages(prompter.pictures(view.look(images)), history)])
>>> answers = vlm.generate(prompts, temperature=1.0)
>>> vlm.logprobs(prompts, answers.tokens, answers.mask)     # the same numbers as answers.logprobs, with gradients
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.vlm.nano import NANO, build_nano
from policies.vlm.pretrained import ModelError, add_lora, load_pretrained
from policies.vlm.prompts import Messages, Prompter
from tool_actors.extras import need

MAX_TOKENS = 64
"""A call takes 20 to 40 tokens of Qwen's, and ten of nano's."""


@dataclass(frozen=True)
class Generation:
    """Answers to a batch of prompts, padded on the right to the longest."""

    tokens: Tensor
    """int64 (B, T)"""
    logprobs: Tensor
    """float32 (B, T): of each token, at the temperature that it was drawn with (1 where nothing was drawn); 0 where masked."""
    mask: Tensor
    """bool (B, T): False after the token that ends an answer."""
    texts: list[str]


class VisionLanguageModel:
    """A model and its processor.

    Args:
        model: an image-text-to-text model of transformers, perhaps within peft's adapter.
        processor: its processor, with a chat template.
        name: for messages.
    """

    def __init__(self, model: Any, processor: Any, name: str):
        self.model, self.processor, self.name = model, processor, name
        self.tokenizer = processor.tokenizer
        for module in model.modules():
            if type(module) is torch.nn.Conv3d and module.stride == module.kernel_size:
                module.__class__ = _PatchProjection
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        if not (getattr(processor, "chat_template", None) or self.tokenizer.chat_template):
            raise ModelError(f"{name} has no chat template: choose a model that was tuned for chat (its name often ends in Instruct)")
        declared = getattr(model, "generation_config", None) and model.generation_config.eos_token_id
        declared = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
        self.end_tokens = sorted({*declared, self.tokenizer.eos_token_id})
        self.barred_tokens = _places_of_images(model.config, processor)
        """Never written: in an answer they would stand for images that are not there."""

    @classmethod
    def load(
        cls,
        name: str | Path,
        prompter: Prompter | None = None,
        lora: Mapping[str, Any] | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        seed: int = 0,
    ) -> VisionLanguageModel:
        """A model by name, from a folder, or made from nothing.

        Args:
            name: a name on the hub, the folder of a downloaded or trained model or of a trained adapter, or ``"nano"``.
            prompter: whose words ``"nano"`` learns; of no use to others.
            lora: train a new LoRA adapter of these settings (of peft's ``LoraConfig``) instead of the model itself.
            device: where it runs.
            dtype: by default float32 on a CPU, and bfloat16 elsewhere.
            seed: of the weights of ``"nano"``, and of a new adapter.

        Raises:
            ModelError: it is not there, or not usable.
        """
        need("transformers")
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        if str(name) == NANO:
            if prompter is None:
                raise ModelError("nano is made for the prompts of a toolbox: give the prompter, or the folder of a trained one")
            if lora:
                raise ModelError(
                    "nano starts from random weights, which an adapter cannot mend: train it whole first, then adapt its folder"
                )
            model, processor = build_nano(prompter, seed)
            model = model.to(dtype)
        else:
            model, processor = load_pretrained(str(name), dtype)
        if lora:
            if hasattr(model, "peft_config"):
                raise ModelError(f"{name} is an adapter already, which trains on as it is: leave the settings of lora out")
            model = add_lora(model, lora, seed)
        return cls(model.to(device).eval(), processor, str(name))

    @property
    def device(self) -> torch.device:
        return self.model.device

    # -- prompts and answers ------------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """The model's name and size in a few words."""
        count = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        return f"{self.name}, {count / 1e6:.1f} M parameters" + (f", {trained / 1e6:.2f} M trained" if trained < count else "")

    def encode(self, chats: Sequence[Messages], device: str | torch.device | None = None) -> dict[str, Tensor]:
        """Chats as the model's inputs, padded on the left; images go through the model's own processor."""
        texts, images = zip(*map(self.text_and_images, chats), strict=True)
        images = list(images) if any(images) else None
        inputs = self.processor(text=list(texts), images=images, padding=True, padding_side="left", return_tensors="pt")
        device, dtype = device or self.device, self.model.dtype
        return {
            name: value.to(device, dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
            if isinstance(value, Tensor)
        }

    def text_and_images(self, chat: Messages) -> tuple[str, list[Any]]:
        """A chat as the model's template writes it, up to where the answer begins, and its images as Pillow's."""
        from PIL import Image

        text = self.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return text, [Image.fromarray(part["image"]) for message in chat for part in message["content"] if part["type"] == "image"]

    def encode_answers(self, texts: Sequence[str], device: str | torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Answers with the token that ends a turn: tokens int64 (B, T), padded on the right, and their mask, bool."""
        rows = [[*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id] for text in texts]
        width = max(map(len, rows))
        tokens = torch.full((len(rows), width), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.bool)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = True
        device = device or self.device
        return tokens.to(device), mask.to(device)

    def join(self, prompts: Mapping[str, Tensor], tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Inputs for a forward pass over prompts and their answers at once."""
        joined = dict(prompts)
        shape = prompts["input_ids"].shape
        for name, value in prompts.items():
            if value.shape == shape:
                # what else goes along token by token says where images are; answers hold none
                more = tokens if name == "input_ids" else mask if name == "attention_mask" else torch.zeros_like(tokens)
                joined[name] = torch.cat([value, more.to(value.dtype)], dim=1)
        return joined

    # -- sampling and scoring -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompts: Mapping[str, Tensor],
        temperature: float = 1.0,
        max_tokens: int = MAX_TOKENS,
        seed: int | None = None,
        rows: Tensor | None = None,
    ) -> Generation:
        """Answers to all prompts at once, with a key-value cache.

        Args:
            prompts: see :meth:`encode`.
            temperature: 0 takes the most probable token each time. Nothing else but :attr:`barred_tokens` shapes the distribution that is
                drawn from, so that :meth:`logprobs` gives its logarithm.
            max_tokens: longest answer.
            seed: of the drawing; None draws from torch's own generator.
            rows: int64 (B,), the prompt that each answer is to: answers to one prompt share its computation. None: one to each.
        """
        from transformers import GenerationConfig

        config = GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=temperature > 0,
            eos_token_id=self.end_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=self.barred_tokens or None,
            use_cache=True,
            return_dict_in_generate=True,
            output_logits=True,
            **({"temperature": temperature, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0} if temperature > 0 else {}),
        )
        was_training = self.model.training
        self.model.eval()
        try:
            with _seeded(seed, self.device), _own_generation_config(self.model, config):
                if rows is not None:
                    prompts = self._prefilled(prompts, rows)
                output = self.model.generate(**prompts)
        finally:
            self.model.train(was_training)
        tokens = output.sequences[:, prompts["input_ids"].shape[1] :]
        ends = torch.isin(tokens, torch.tensor(self.end_tokens, device=tokens.device))
        mask = (ends.cumsum(1) - ends.long()) == 0
        logprobs = torch.stack([self._logprobs_of(logits, tokens[:, i], temperature) for i, logits in enumerate(output.logits)], dim=1)
        texts = [self.tokenizer.decode(row[kept], skip_special_tokens=True) for row, kept in zip(tokens, mask, strict=True)]
        return Generation(tokens, logprobs.masked_fill(~mask, 0.0), mask, texts)

    def _prefilled(self, prompts: Mapping[str, Tensor], rows: Tensor) -> dict[str, Any]:
        """Inputs for generation that goes on from the prompts, of which all but the last token has been read."""
        shape = prompts["input_ids"].shape
        read = {name: value[:, :-1] if value.shape == shape else value for name, value in prompts.items()}
        cache = self.model(**read, use_cache=True, logits_to_keep=1).past_key_values
        cache.batch_select_indices(rows)
        if self.rope_deltas is not None:
            self._core.rope_deltas = self.rope_deltas[rows]
        return {"past_key_values": cache, **{name: prompts[name][rows] for name in ("input_ids", "attention_mask")}}

    @property
    def _core(self) -> Any:
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        return base.model

    @property
    def rope_deltas(self) -> Tensor | None:
        """How far each prompt's positions, which count an image's tokens by rows and columns, are from the number of its tokens."""
        return getattr(self._core, "rope_deltas", None)

    def logprobs(self, prompts: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, temperature: float = 1.0) -> Tensor:
        """float32 (B, T): log-probability of each token of given answers, 0 where masked. Gradients flow.

        Args:
            prompts: see :meth:`encode`.
            tokens: int64 (B, T), padded on the right.
            mask: (B, T), nonzero where a token counts.
            temperature: that the answers were drawn with; 0 means 1, as in :attr:`Generation.logprobs`.
        """
        logits = self._answer_logits(prompts, tokens, mask)
        return self._logprobs_of(logits, tokens, temperature).masked_fill(~mask.bool(), 0.0)

    def score(
        self, prompts: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, temperature: float = 1.0, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The :meth:`logprobs`, and the entropies of the distributions that the tokens were drawn from, in nats: both (B, T).

        ``rows`` is that of :meth:`generate`.
        """
        logits = self._answer_logits(prompts, tokens, mask, rows)
        logprobs = self.shaped(logits, temperature).log_softmax(-1)
        chosen = logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        # a barred token has probability 0, and adds nothing
        entropies = -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(-1)
        return chosen.masked_fill(~mask.bool(), 0.0), entropies.masked_fill(~mask.bool(), 0.0)

    def _answer_logits(self, prompts: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, rows: Tensor | None = None) -> Tensor:
        width = tokens.shape[1]
        if rows is not None:
            return self._shared_logits(prompts, tokens, mask, rows)
        output = self.model(**self.join(prompts, tokens, mask), use_cache=False, logits_to_keep=width + 1)
        return output.logits[:, -width - 1 : -1]

    def _shared_logits(self, prompts: Mapping[str, Tensor], tokens: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """Each prompt is read once; its keys and values, with their gradients, serve all its answers."""
        read = self.model(**prompts, use_cache=True, logits_to_keep=1)
        cache, width = read.past_key_values, tokens.shape[1]
        cache.batch_select_indices(rows)
        if width == 1:
            return read.logits[rows]
        attended = torch.cat([prompts["attention_mask"][rows], mask.to(prompts["attention_mask"].dtype)], dim=1)
        positions = attended.cumsum(1)[:, -width:-1] - 1
        if self.rope_deltas is not None:
            positions = (positions + self.rope_deltas[rows]).expand(3, -1, -1)
        rest = self.model(
            input_ids=tokens[:, :-1], attention_mask=attended[:, :-1], position_ids=positions, past_key_values=cache, use_cache=True
        )
        return torch.cat([read.logits[rows], rest.logits], dim=1)

    def shaped(self, logits: Tensor, temperature: float) -> Tensor:
        """The logits of the distribution that is drawn from."""
        logits = logits.float() / (temperature or 1.0)
        if self.barred_tokens:
            logits = logits.index_fill(-1, torch.tensor(self.barred_tokens, device=logits.device), float("-inf"))
        return logits

    def _logprobs_of(self, logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
        return self.shaped(logits, temperature).log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    # -- keeping ------------------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the model (or its adapter alone) and the processor, as transformers (or peft) read them; weights as safetensors."""
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


class _PatchProjection(torch.nn.Conv3d):
    """A convolution whose kernel covers the patch, as the matrix product that it is: as a convolution it took 40 % of the vision's time."""

    def forward(self, patches: Tensor) -> Tensor:
        if patches.shape[2:] != self.kernel_size or any(self.padding):
            return super().forward(patches)
        return torch.nn.functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


def _places_of_images(config: Any, processor: Any) -> list[int]:
    names = [f"{kind}_token_{which}" for kind in ("image", "video", "vision_start", "vision_end", "audio") for which in ("id", "index")]
    found = {getattr(source, name, None) for source in (config, processor) for name in names}
    return sorted(token for token in found if isinstance(token, int))


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device):
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _own_generation_config(model: Any, config: Any):
    """A published model brings sampling settings of its own (top-k and more), which ``generate`` would fill in for those not given."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept, base.generation_config = base.generation_config, config
    try:
        yield
    finally:
        base.generation_config = kept
