"""Which device tools run on."""

from __future__ import annotations

from typing import Literal

from tool_actors.errors import IrEnvError, UnknownNameError

__all__ = ["DEVICES", "PRECISIONS", "Precision", "check_precision", "choose_device"]

DEVICES = ("auto", "cpu", "cuda", "mps")
Precision = Literal["fp32", "fp16", "bf16"]
PRECISIONS = ("fp32", "fp16", "bf16")


def choose_device(name: str = "auto") -> str:
    """The device of that name, or of ``auto`` the fastest that is there; raises :class:`IrEnvError` if it is not there."""
    import torch

    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    if name == "auto":
        return next(device for device, found in there.items() if found())
    kind = name.partition(":")[0]
    if kind not in there:
        raise IrEnvError(f"device {name!r} is not known: choose one of {', '.join(DEVICES)}")
    if not there[kind]():
        raise IrEnvError(f"device {name!r}: torch {torch.__version__} finds none here. Use --device cpu, or install torch for it.")
    return name


def check_precision(precision: str, device: str) -> None:
    """Raise :class:`IrEnvError` if networks are not to compute in a precision on a device.

    A CPU has no arithmetic of its own for fp16: the project's networks take 5 to 9 times as long in it as in fp32. For bf16 many have, and
    then they take half as long.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    if precision == "fp16" and device == "cpu":
        raise IrEnvError(
            "fp16 is slower than fp32 on a CPU: give --precision bf16, which is faster on CPUs that know it, or another --device"
        )
