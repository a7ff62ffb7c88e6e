"""Where episodes start: clean photographs and how they are degraded, or ready pairs on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ir_env.datasets.base import Dataset, Pair, Sample
from ir_env.datasets.cdd11 import CDD11Dataset
from ir_env.datasets.mio100 import MiO100Dataset
from ir_env.datasets.pairs import PairsDataset
from ir_env.datasets.photos import BuiltinPhotos, FolderPhotos, Photos, Split, load_photos
from ir_env.datasets.real import RealPhotos
from ir_env.datasets.synthesised import SynthesisedDataset
from tool_actors.errors import IrEnvError

FOLDERS = {"mio100": MiO100Dataset, "cdd11": CDD11Dataset, "real": RealPhotos, "pairs": PairsDataset}
"""Key of a mapping whose value is a folder of ready images -> what reads it."""

__all__ = [
    "BuiltinPhotos",
    "CDD11Dataset",
    "Dataset",
    "FolderPhotos",
    "MiO100Dataset",
    "Pair",
    "PairsDataset",
    "Photos",
    "RealPhotos",
    "Sample",
    "Split",
    "SynthesisedDataset",
    "load_dataset",
    "load_photos",
]


def load_dataset(spec: Mapping | str | Path | Dataset | None = None) -> Dataset:
    """A dataset from a description that fits in a configuration file.

    Args:
        spec: a mapping of the arguments of :class:`SynthesisedDataset` (``{"photos": "builtin", "split": "train", "crop_size": 64,
            "combos": "A,B,C"}``) or, with ``"mio100": folder``, of :class:`MiO100Dataset`, likewise ``"cdd11"``, ``"real"`` and
            ``"pairs"`` (:data:`FOLDERS`); the name ``"builtin"`` or a folder of photographs for the defaults; a dataset as it is.
    """
    if spec is None:
        return SynthesisedDataset()
    if isinstance(spec, str | Path):
        return SynthesisedDataset(photos=spec)
    if isinstance(spec, Mapping):
        spec = dict(spec)
        key = next((key for key in FOLDERS if key in spec), None)
        kind = FOLDERS[key] if key else SynthesisedDataset
        if key:
            spec["folder"] = spec.pop(key)
        try:
            return kind(**spec)
        except TypeError as error:
            raise IrEnvError(f"dataset {spec}: {error}. The arguments are those of {kind.__name__}.") from error
    return spec
