"""What results depend on besides the settings: the machine, the packages, the tools."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ir_env.process import RestorationProcess

PACKAGES = ("ir-env", "torch", "torchvision", "numpy", "scipy", "opencv-python-headless", "scikit-image", "pyiqa")
PACKAGES += ("gymnasium", "ray", "transformers", "spandrel", "pillow")


def machine() -> dict[str, Any]:
    """Processor, cores, memory, GPUs, system."""
    import torch

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown")


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on, as far as they are installed."""
    told = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            told[name] = version(name)
        except PackageNotFoundError:
            continue
    return told


def tools_of(process: RestorationProcess) -> dict[str, str]:
    """Name of each tool -> its fingerprint."""
    return {tool.spec.name: tool.spec.fingerprint for tool in process.executor.toolbox}
