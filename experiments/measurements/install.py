"""What an installation of the package takes, with and without its extras: bytes, seconds, and how long ``import ir_env`` takes.

How to run
----------
    uv run python -m experiments.measurements.install --extras none,all --out results/install.json

Builds the wheel, and installs it into a fresh environment for each set of extras (``,`` between sets, ``+`` within one; ``none`` is the
slim installation) by ``uv pip install`` with an empty cache, so that the seconds include the downloads and depend on the network. Bytes
are those of ``site-packages``, and of torch and the libraries of CUDA in it, which the package index decides: PyTorch's own index has
builds for CPUs alone (``UV_TORCH_BACKEND=cpu``).

``import`` is the median of nine fresh processes, less a process that imports nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from experiments.cli.common import guarded
from tool_actors.errors import IrEnvError

ROOT = Path(__file__).parents[2]
TORCH = ("torch", "torchgen", "nvidia", "triton", "functorch", "cuda", "cusparselt")
"""Folders of site-packages that are torch's and CUDA's."""
IMPORTS = 9


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", default="none,rllib,vlm,all", help="sets of extras, with commas between them and + within")
    parser.add_argument("--work", type=Path, help="keep the environments in this folder (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        wheel = build(work)
        rows = []
        for extras in options.extras.split(","):
            rows.append(measure(wheel, "" if extras == "none" else extras.replace("+", ","), work))
            show(rows[-1:])
    show(rows)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def build(work: Path) -> Path:
    """The wheel of this source tree."""
    run("uv", "build", "--quiet", "--wheel", str(ROOT), "--out-dir", str(work / "wheel"))
    [wheel] = (work / "wheel").glob("*.whl")
    return wheel


def measure(wheel: Path, extras: str, work: Path) -> dict:
    """Install with these extras, separated by commas, into a fresh environment."""
    place = work / f"env-{extras or 'slim'}"
    run("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(place))
    python = place / "bin" / "python"
    with tempfile.TemporaryDirectory() as cache:
        began = time.perf_counter()
        asked = f"ir-env[{extras}] @ {wheel.as_uri()}" if extras else f"ir-env @ {wheel.as_uri()}"
        run("uv", "pip", "install", "--quiet", "--python", str(python), "--cache-dir", cache, asked, cwd=ROOT)
        seconds = time.perf_counter() - began
    packages = next((place / "lib").glob("python*/site-packages"))
    sizes = {child.name: size_of(child) for child in packages.iterdir()}
    return {
        "extras": extras,
        "wheel_mb": wheel.stat().st_size / 1e6,
        "packages": sum(name.endswith(".dist-info") for name in sizes),
        "installed_mb": sum(sizes.values()) / 1e6,
        "torch_mb": sum(size for name, size in sizes.items() if name.partition("-")[0] in TORCH) / 1e6,
        "seconds": seconds,
        "import_s": import_seconds(python),
        "absent": [name for name in ("ray", "basicsr", "peft", "datasets", "transformers", "pyiqa") if name not in sizes],
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of all in a folder; compiled bytecode, which the first use makes, is left out."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink() and file.suffix != ".pyc")


def import_seconds(python: Path) -> float:
    """Of ``import ir_env``, warm: median of fresh processes, less one that imports nothing."""

    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([python, "-c", code], check=True, cwd=python.parent)
        return time.perf_counter() - began

    seconds("import ir_env")
    nothing, imported = (statistics.median(seconds(code) for _ in range(IMPORTS)) for code in ("pass", "import ir_env"))
    return imported - nothing


def run(*command: str, cwd: Path | None = None) -> None:
    """Run a command; raises :class:`IrEnvError` with what it said if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "VIRTUAL_ENV": ""})
    if done.returncode:
        raise IrEnvError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")


def show(rows: list[dict]) -> None:
    table = Table("extras", "wheel, MB", "packages", "installed, MB", "of which torch", "install, s", "import, s", "without")
    for row in rows:
        figures = [f"{row[name]:.{digits}f}" for name, digits in (("installed_mb", 0), ("torch_mb", 0), ("seconds", 0), ("import_s", 3))]
        table.add_row(row["extras"] or "none", f"{row['wheel_mb']:.1f}", str(row["packages"]), *figures, ", ".join(row["absent"]))
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
