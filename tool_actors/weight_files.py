"""Weight files: where they are looked for, and how they are read without running any code."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tool_actors.errors import IrEnvError

if TYPE_CHECKING:
    import torch

__all__ = [
    "VARIABLES",
    "UnsupportedCheckpointError",
    "WeightsMissing",
    "file_sha256",
    "find_weights",
    "load_into",
    "read_state",
    "weight_folders",
]

VARIABLES = ("IR_ENV_WEIGHTS", "IR_ENV_ASSETS")
"""Environment variables with folders of weights, separated by the system's path separator."""

PREFIXES = ("module.", "netG.")
"""Of all names of tensors, where a network was saved from within another module."""


class UnsupportedCheckpointError(IrEnvError):
    """A weight file that is broken, or is not of the network it is meant for."""


class WeightsMissing(IrEnvError):
    """A weight file that is nowhere; says what to put where."""

    def __init__(self, file: str, looked: list[Path], who: str = "", how: str = ""):
        super().__init__(
            f"{who}the weights {file} are not there: put the file at {looked[0] / file}, or name the folder that holds it in the "
            f"environment variable {VARIABLES[0]}. Looked in: {', '.join(map(str, looked))}. {how}".strip()
        )
        self.looked = looked


def weight_folders() -> list[Path]:
    """Where weights are looked for: the folders of :data:`VARIABLES`, then ``~/.cache/ir_env/weights``."""
    named = [Path(part) for variable in VARIABLES for part in os.environ.get(variable, "").split(os.pathsep) if part]
    return [*named, Path.home() / ".cache" / "ir_env" / "weights"]


def find_weights(file: str) -> Path:
    """The weight file of that relative path in the first folder that has it; raises :class:`WeightsMissing`."""
    folders = weight_folders()
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    raise WeightsMissing(file, folders)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors file, or from a torch file opened with ``weights_only=True``.

    A torch file may hold the state dict under a key, beside an optimizer's state or a lesser state dict: whatever spandrel unwraps
    (``model_state_dict``, ``state_dict``, ``params_ema``, ``params``, ``model``, ``net``, in this order, or a single key of any name). Of
    names, the :data:`PREFIXES` are taken off.

    Raises:
        UnsupportedCheckpointError: the file is truncated, holds anything but tensors, or holds NaN or infinity.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UnsupportedCheckpointError(f"{path}: not a readable weight file ({type(error).__name__}: {error})") from error
    wrapped = isinstance(state, dict) and any(isinstance(value, dict) or str(key).startswith(PREFIXES) for key, value in state.items())
    if wrapped:
        # takes seconds to import
        from spandrel import canonicalize_state_dict

        state = canonicalize_state_dict(state)
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        found = f"keys {', '.join(map(str, list(state)[:5]))}" if isinstance(state, dict) and state else type(state).__name__
        raise UnsupportedCheckpointError(f"{path}: holds no state dict of tensors ({found}); save the network's state_dict() alone")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UnsupportedCheckpointError(f"{path}: {name} holds NaN or infinity; the file is damaged")
    return {name: _normal(value) for name, value in state.items()}


def load_into(module: torch.nn.Module, path: Path, apart: str | None = None) -> torch.nn.Module:
    """The module with the weights of a file, all of them and no others; raises :class:`UnsupportedCheckpointError`.

    ``apart`` is how the names of those weights begin that stay as they are, and are not in the file.
    """
    state = read_state(path)
    if apart:
        state |= {name: value for name, value in module.state_dict().items() if name.startswith(apart)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        details = " ".join(str(error).split())[:300]
        raise UnsupportedCheckpointError(f"{path}: is not a {type(module).__name__}: {details}") from error
    return module.eval()


def _normal(value: torch.Tensor) -> torch.Tensor:
    """Float32 with 0 for subnormal numbers: weight decay leaves thousands near 1e-41, which no result shows and a CPU takes fifty times as
    long to multiply."""
    import torch

    if not value.is_floating_point():
        return value
    value = value.float()
    return value.masked_fill(value.abs() < torch.finfo(torch.float32).tiny, 0)
