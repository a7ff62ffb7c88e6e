"""A vision-language model small enough to train from nothing on two CPU cores: Qwen3-VL's architecture, processor and chat format.

It shares its code with the published models: what is tested with ``nano`` is what runs with ``Qwen/Qwen3-VL-8B-Instruct``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from policies.vlm.prompts import Prompter
from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

NANO = "nano"
"""The name that stands for such a model, untrained."""
PATCH, MERGE = 16, 2
"""Side of a patch in pixels; so many by so many patches make one visual token. The sheet of the usual view, 64 x 352 pixels, becomes 22
visual tokens; smaller patches learned more slowly, by the clock."""
VOCABULARY = 1024
SPREAD = 0.06
"""Standard deviation of the initial weights, near 1 / sqrt(width); the usual 0.02 suits models ten times as wide, and nano learns to see
much later with it."""

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string -%}{{ message.content }}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>{%- else -%}{{ part.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{ '<|im_end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def build_nano(prompter: Prompter, seed: int = 0) -> tuple[Qwen3VLForConditionalGeneration, Qwen3VLProcessor]:
    """An untrained model and its processor.

    Args:
        prompter: the tokenizer learns its vocabulary from the prompts and answers, and still writes any other text, byte by byte.
            Its view decides how large pictures can be.
        seed: of the initial weights.

    Raises:
        IrEnvError: the sheet of the view would not be shown pixel by pixel.
    """
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer, extent = train_tokenizer(prompter.vocabulary(), prompter.tags), picture_extent(prompter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(nano_config(tokenizer, extent))
    return model, _processor(tokenizer, extent)


def picture_extent(prompter: Prompter) -> int:
    """The longest side of the pictures that the prompter shows, in pixels."""
    if prompter.view.whole:
        return prompter.view.whole
    [picture] = prompter.pictures(prompter.view.look([np.zeros((8, 8, 3), np.uint8)]))
    height, width = picture.shape[:2]
    if height % (PATCH * MERGE) or width % (PATCH * MERGE):
        raise IrEnvError(
            f"view: the sheet of nano has {height} x {width} pixels, and would be resized to multiples of {PATCH * MERGE}, which blurs "
            f"what native pixels show; make overview and side multiples of {2 * PATCH * MERGE}"
        )
    return width


def train_tokenizer(texts: Iterable[str], tags: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE whose words end at white space, or at a tag: the name of a tool is one token, and a call about ten.

    Args:
        texts: to learn from.
        tags: tokens of their own.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from tokenizers.processors import ByteLevel
    from transformers import AddedToken, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r" ?\S+|\s"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    at_tags = re.compile("|".join(map(re.escape, tags)))
    tokenizer.train_from_iterator([part for text in texts for part in at_tags.split(text)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")
    # tokens of their own, but part of the text: decoding keeps them, as it does with Qwen's
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in tags])
    return fast


def nano_config(tokenizer: PreTrainedTokenizerFast, extent: int):
    """The configuration: 4 layers of text, 3 of vision, width 192; pictures of up to ``extent`` pixels have a position for each patch."""
    from transformers import Qwen3VLConfig

    token = tokenizer.convert_tokens_to_ids
    grid = extent // PATCH
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "initializer_range": SPREAD,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 192,
            "initializer_range": SPREAD,
            "intermediate_size": 512,
            "num_heads": 6,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            "out_hidden_size": 192,
            "num_position_embeddings": grid * grid,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _processor(tokenizer: PreTrainedTokenizerFast, extent: int) -> Qwen3VLProcessor:
    from transformers import Qwen2VLImageProcessor, Qwen3VLProcessor, Qwen3VLVideoProcessor

    sizes = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": extent**2},  # in pixels, whatever they are called
    }
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**sizes),
        chat_template=CHAT_TEMPLATE,
    )
