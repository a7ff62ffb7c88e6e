"""What a vision-language model takes of a GPU, from its configuration alone: nothing is downloaded, no weight is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

QWEN3_VL_8B: dict[str, Any] = {
    "text_config": {
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 4096,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [8, 16, 24],
    },
    "tie_word_embeddings": False,
}
"""The sizes of Qwen/Qwen3-VL-8B-Instruct."""
GIB = 2**30
HALF, SINGLE = 2, 4
"""Bytes of a number in bfloat16 and in float32."""


def on_meta(config: Mapping[str, Any], lora: Mapping[str, Any] | None = None):
    """A Qwen3-VL of these sizes on the meta device: shapes without memory. With ``lora`` (settings of peft) the adapter is added."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
        if lora:
            from policies.vlm.pretrained import add_lora

            model = add_lora(model, lora, seed=0)
    return model


@dataclass(frozen=True)
class Sizes:
    """Of a model."""

    parameters: int
    trained: int
    layers: int
    width: int
    vocabulary: int
    cached: int
    """Numbers that the key-value cache keeps per token."""
    seeing: int
    """Numbers between the layers of the vision tower, all layers together, per visual token."""

    @classmethod
    def of(cls, model: Any) -> Sizes:
        text, vision = model.config.text_config, model.config.vision_config
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        return cls(
            parameters=sum(count for count, _ in counts),
            trained=sum(count for count, learns in counts if learns),
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            vocabulary=text.vocab_size,
            cached=2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim,
            seeing=vision.depth * vision.hidden_size * vision.spatial_merge_size**2,
        )


def visual_tokens(config: Mapping[str, Any], height: int, width: int) -> int:
    """Of an image of that size, which the processor resizes to whole tokens."""
    vision = config["vision_config"]
    side = vision["patch_size"] * vision["spatial_merge_size"]
    return max(1, round(height / side)) * max(1, round(width / side))


def training_bytes(sizes: Sizes, rows: int, visual: int, text: int, answer_tokens: int, shards: int = 1) -> dict[str, float]:
    """Bytes per GPU of a training step with recomputed activations, AdamW, and weights in bfloat16.

    Args:
        sizes: of the model.
        rows: sequences in memory at a time.
        visual: tokens of a prompt that are images, all images of the chat together.
        text: the other tokens of a prompt.
        answer_tokens: of a sequence; logits are made of these alone.
        shards: GPUs that share weights, gradients and optimiser (FSDP); of what is computed, two layers are whole, the embeddings, and
            their gradients.
    """
    frozen = sizes.parameters - sizes.trained
    tokens = rows * (visual + text + answer_tokens)
    # of the layer that is being recomputed: inputs and outputs of attention and of the three matrices of the feed-forward part
    layer = tokens * sizes.width * HALF * 20
    embeddings = 2 * sizes.vocabulary * sizes.width
    gathered = embeddings + 2 * (sizes.parameters - embeddings) / sizes.layers
    return {
        "frozen weights": frozen * HALF / shards,
        "trained weights, gradients, optimiser": sizes.trained * SINGLE * 4 / shards,
        "gathered weights and gradients": 2 * gathered * HALF if shards > 1 else 0,
        "activations": sizes.layers * tokens * sizes.width * HALF + layer,
        "activations of the vision tower": rows * visual * sizes.seeing * HALF,
        "logits": rows * (answer_tokens + 1) * sizes.vocabulary * SINGLE * 3,
    }


def checkpoint_bytes(sizes: Sizes) -> float:
    """Bytes of a checkpoint, which is whole: weights and Adam's two moments in float32."""
    return 3 * sizes.trained * SINGLE


def sampling_bytes(sizes: Sizes, rows: int, visual: int, text: int, answer_tokens: int) -> dict[str, float]:
    """Bytes per GPU of writing ``rows`` answers at a time, each to a prompt of its own."""
    tokens = rows * (visual + text + answer_tokens)
    return {
        "weights": sizes.parameters * HALF,
        "key-value cache": tokens * sizes.cached * HALF,
        "activations": tokens * sizes.width * HALF * 20,
        "logits": rows * sizes.vocabulary * SINGLE * 2,
    }
