"""Pixels on their way between callers and instances.

Big arrays go through Ray's object store, and messages hold references to them: the dispatcher, which every message passes, neither reads
nor copies them. An object lives as long as somebody refers to it: what a caller put, until its answer is there; what an instance made,
until the caller has a copy and the cache has dropped it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError

from tool_actors.errors import IrEnvError

FETCH_S = 60.0
"""For so long the object store may take to bring what is said to be there."""


class PixelsLost(IrEnvError):
    """What a reference meant is gone, with the process or the node that held it."""


class Shelved:
    """An array in the object store, which keeps it for as long as one of these is there that refers to it, in any process."""

    __slots__ = ("__weakref__", "reference")

    def __init__(self, reference: ray.ObjectRef):
        self.reference = reference

    def __reduce__(self):
        return Shelved, (self.reference,)


class Shelf:
    """Puts big arrays into the object store, and one that several messages hold only once. It keeps none itself.

    Args:
        least_bytes: smaller arrays stay as they are; None: all do.
    """

    def __init__(self, least_bytes: int | None):
        self._least = least_bytes
        self._put: WeakValueDictionary[Hashable, Shelved] = WeakValueDictionary()

    def put(self, pixels: np.ndarray, key: Hashable) -> np.ndarray | Shelved:
        """The array itself, or where it is now; arrays of one key and number type are equal."""
        if self._least is None or pixels.nbytes < self._least:
            return pixels
        place = (pixels.dtype.str, key)
        shelved = self._put.get(place)
        if shelved is None:
            shelved = self._put[place] = Shelved(ray.put(pixels))
        return shelved


def fetch(values: Sequence[Any]) -> list[Any]:
    """The values, with what was shelved in its place, read-only, or a :class:`PixelsLost`."""
    references = {index: value.reference for index, value in enumerate(values) if isinstance(value, Shelved)}
    found = _found(references) if references else {}
    return [found.get(index, value) for index, value in enumerate(values)]


def _found(references: Mapping[int, ray.ObjectRef]) -> dict[int, Any]:
    try:
        return dict(zip(references, ray.get(list(references.values()), timeout=FETCH_S), strict=True))
    except (RayError, GetTimeoutError) as error:
        if len(references) > 1:
            return {index: value for each in references.items() for index, value in _found(dict([each])).items()}
        return {index: PixelsLost(f"an image was lost with the process that held it ({type(error).__name__})") for index in references}
