"""Messages between a gateway and its clients: words and arrays, as one safetensors file, since reading one runs nothing that is in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tool_actors.errors import IrEnvError

MAX_BYTES = 256 << 20
"""Of one message."""
TOKEN_VARIABLE = "IR_ENV_POOL_TOKEN"
"""Environment variable that holds the word which a gateway asks of its clients."""


def pack(words: Any, arrays: Sequence[np.ndarray]) -> bytes:
    """A message of what JSON can say, and of arrays of any shape and number type."""
    text = np.frombuffer(json.dumps(words).encode(), np.uint8)
    return save({"words": text, **{str(index): np.ascontiguousarray(each) for index, each in enumerate(arrays)}})


def unpack(message: bytes) -> tuple[Any, list[np.ndarray]]:
    """What was packed; raises :class:`IrEnvError` if this is no such message."""
    try:
        tensors = load(message)
        words = json.loads(tensors.pop("words").tobytes())
        return words, [tensors[str(index)] for index in range(len(tensors))]
    except (SafetensorError, LookupError, ValueError) as error:
        raise IrEnvError(f"this is no message of a pool's gateway ({type(error).__name__}: {error})") from error
