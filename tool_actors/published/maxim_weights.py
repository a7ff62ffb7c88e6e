"""MAXIM's published weights: the npm packages ``@upscalerjs/maxim-*``, TensorFlow.js graphs of the authors' JAX checkpoints (MIT).

A package's archive (.tgz) holds ``models/model.json``, with the graph and the shapes of its constants, and their values in shards
(``.bin``). What a constant is tells the operation that takes it.
"""

from __future__ import annotations

import json
import math
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tool_actors.published.maxim import DEPTH
from tool_actors.weight_files import UnsupportedCheckpointError

__all__ = ["is_archive", "read_package"]

USE = re.compile(
    r".*/Wrapper/backbone/(?P<module>.+)/"
    r"(?:(?P<convolution>Conv2D|conv2d_transpose)|(?P<dense>einsum/Einsum)|(?P<norm>jit_fn_/Mul(?:_\d+)?)|jit_fn_/AddV2(?:_\d+)?)"
)
"""A node that uses a parameter: the path of its module in the JAX code, and what it does there."""
RESIZES = 2 * DEPTH**2
"""Of a stage; the JAX code counts them through all stages."""


def is_archive(path: Path) -> bool:
    """Whether a file is named like an archive of npm."""
    return path.suffix == ".tgz"


def read_package(path: Path) -> dict[str, Tensor]:
    """The state dict, float32, for :func:`tool_actors.published.maxim.from_state`.

    Args:
        path: archive of one of the packages.

    Raises:
        UnsupportedCheckpointError: damaged, or no graph of a MAXIM.
    """
    try:
        with tarfile.open(path) as archive:
            [index] = [member for member in archive.getmembers() if member.name.endswith("/model.json")]
            model = json.loads(_bytes(archive, index.name))
            [group] = model["weightsManifest"]
            values = b"".join(_bytes(archive, f"{index.name.rpartition('/')[0]}/{shard}") for shard in group["paths"])
        constants = dict(_constants(group["weights"], values))
        state = dict(_parameters(model["modelTopology"]["node"], constants))
    except (OSError, EOFError, tarfile.TarError, KeyError, TypeError, ValueError) as error:
        raise UnsupportedCheckpointError(f"{path}: holds no readable TensorFlow.js graph ({type(error).__name__}: {error})") from error
    if not state:
        raise UnsupportedCheckpointError(f"{path}: the graph is not a MAXIM's")
    return state


def _bytes(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    with file:
        return file.read()


def _constants(described: list[dict], values: bytes) -> Iterator[tuple[str, np.ndarray]]:
    """The constants of float32, by name; they lie one behind the other, without gaps."""
    start = 0
    for constant in described:
        if "quantization" in constant:
            raise ValueError(f"{constant['name']} is quantised")
        kind = {"float32": np.float32, "int32": np.int32, "bool": np.bool_}[constant["dtype"]]
        count = math.prod(constant["shape"])
        if kind is np.float32:
            yield constant["name"], np.frombuffer(values, kind, count, start).reshape(constant["shape"])
        start += count * np.dtype(kind).itemsize
    if start != len(values):
        raise ValueError(f"{len(values)} bytes of weights instead of {start}")


def _parameters(nodes: list[dict], constants: dict[str, np.ndarray]) -> Iterator[tuple[str, Tensor]]:
    for node in nodes:
        match = USE.fullmatch(node["name"])
        taken = [constants[name] for given in node.get("input", []) if (name := given.partition(":")[0]) in constants]
        # scalars are the arithmetic's own, such as epsilon
        if match is None or not taken or not taken[-1].ndim:
            continue
        value, name = torch.from_numpy(taken[-1].copy()), _name(match["module"])
        if match["convolution"]:
            # height, width, in, out; of transposed ones height, width, out, in
            yield f"{name}.weight", value.permute(3, 2, 0, 1).contiguous()
        elif match["dense"]:
            yield f"{name}.weight", value.T.contiguous()
        else:
            yield f"{name}.{'weight' if match['norm'] else 'bias'}", value.flatten()


def _name(module: str) -> str:
    if match := re.fullmatch(r"UpSampleRatio_(\d+)/(.+)", module):
        stage, index = divmod(int(match[1]), RESIZES)
        module = f"stage_{stage}_UpSampleRatio_{index}/{match[2]}"
    return re.sub(r"^stage_(\d+)_", r"stages.\1.", module).replace("/", ".")
