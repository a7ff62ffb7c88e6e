"""Which device tools run on."""

from __future__ import annotations

from tool_actors.errors import IrEnvError

__all__ = ["DEVICES", "choose_device"]

DEVICES = ("auto", "cpu", "cuda", "mps")


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
