"""The named toolboxes, toolbox files, and how to get a toolbox from either.

A package offers tools of its own through an entry point of the group ``ir_env.tools`` whose value is a callable that returns tools; they
are the toolbox ``plugins``. A user's own checkpoints, added with ``ir-env tools add``, are the toolbox ``user``.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from tool_actors.errors import IrEnvError, UnknownNameError, UnknownToolError
from tool_actors.manifest import FOLDER, Checkpoint, parse_entry, read_manifest
from tool_actors.toolbox import Deferred, Tool, Toolbox
from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing, find_weights

__all__ = ["ENTRY_POINT_GROUP", "NAMED_TOOLBOXES", "checkpoints", "deferred", "entries", "load_toolbox", "names_of", "user_file"]

ENTRY_POINT_GROUP = "ir_env.tools"
Entry = str | Checkpoint | Tool | Deferred
logger = logging.getLogger(__name__)


def user_file() -> Path:
    """The toolbox file that `ir-env tools add` writes: ``IR_ENV_TOOLS``, or ``~/.config/ir_env/tools.yaml``."""
    named = os.environ.get("IR_ENV_TOOLS")
    return Path(named) if named else Path.home() / ".config" / "ir_env" / "tools.yaml"


def _classical() -> Sequence[Entry]:
    from tool_actors.classical import classical_tools

    return classical_tools()


def _learned() -> Sequence[Entry]:
    from tool_actors.embedded import embedded_entries

    return embedded_entries()


def _published() -> Sequence[Entry]:
    from tool_actors.published import published_tools

    return [*published_tools(), *read_manifest(FOLDER / "maxim.yaml")]


def _rl_restore() -> Sequence[Entry]:
    from tool_actors.published import rl_restore_tools

    return rl_restore_tools()


def _all_in_one() -> Sequence[Entry]:
    """The project's own, the published ones that are written here, and those that are not."""
    from tool_actors.embedded import ALL_IN_ONE_FOLDER, embedded_entries
    from tool_actors.published import all_in_one_tools

    return [*embedded_entries(ALL_IN_ONE_FOLDER), *all_in_one_tools(), *read_manifest(FOLDER / "all_in_one.yaml")]


def _plugins() -> Sequence[Entry]:
    """The tools that installed packages offer through the entry point group ``ir_env.tools``."""
    tools: list[Entry] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            tools.extend(entry.load()())
        except Exception as error:
            raise IrEnvError(
                f"entry point {entry.name!r} of the group {ENTRY_POINT_GROUP!r} ({entry.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}. Mend or uninstall the package that declares it."
            ) from error
    return tools


def _user() -> Sequence[Entry]:
    return read_manifest(user_file()) if user_file().is_file() else []


NAMED_TOOLBOXES: dict[str, Callable[[], Sequence[Entry]]] = {
    "default": partial(read_manifest, FOLDER / "default.yaml"),
    "classical": _classical,
    "learned": _learned,
    "plugins": _plugins,
    "user": _user,
    "rl_restore": _rl_restore,
    "published": _published,
    "all_in_one": _all_in_one,
    "opera": partial(read_manifest, FOLDER / "opera.yaml"),
    "agenticir": partial(read_manifest, FOLDER / "agenticir.yaml"),
}


def load_toolbox(toolbox: str | Path | Sequence[str | Mapping] | Toolbox, only: Callable[[str], bool] = lambda name: True) -> Toolbox:
    """A toolbox by name, from a file, from a list, or as it is.

    Args:
        toolbox: one of :data:`NAMED_TOOLBOXES`; the path of a toolbox file (see :mod:`tool_actors.manifest`); or what such a file holds: a
            list of names of tools or toolboxes and of mappings that describe a checkpoint.
        only: which names to load; the others are left out as if the toolbox did not hold them.

    Returns:
        The tools in order. From a name or a file, tools whose weights are not there are left out and listed in ``Toolbox.absent``.

    Raises:
        UnknownNameError: no toolbox of that name.
        UnknownToolError: a name that no toolbox holds.
        WeightsMissing, UnsupportedCheckpointError: of a tool that a list names.
        IrEnvError: no tool of the toolbox is there.
    """
    if isinstance(toolbox, Toolbox):
        chosen = [name for name in toolbox.names if only(name)]
        return toolbox if len(chosen) == len(toolbox) else toolbox.select(chosen)
    if not isinstance(toolbox, str | Path):
        made = Toolbox()
        for entry in entries(toolbox):
            if only(_name(entry)):
                _add(made, entry)
        return made
    made = Toolbox(name=str(toolbox))
    for entry in entries(toolbox):
        if not only(_name(entry)):
            continue
        try:
            _add(made, entry)
        except (WeightsMissing, UnsupportedCheckpointError) as error:
            made.absent[_name(entry)] = error
    if made.absent and not len(made):
        first = next(iter(made.absent.values()))
        raise IrEnvError(f"none of the {len(made.absent)} tools of toolbox {made.name!r} is there. The first: {first}")
    if made.absent:
        logger.warning(
            "toolbox %s: %d tools; %d are left out, their weights are not there: %s. `ir-env tools list %s` tells more.",
            made.name,
            len(made),
            len(made.absent),
            ", ".join(made.absent),
            made.name,
        )
    return made


def _add(toolbox: Toolbox, entry: Tool | Deferred) -> None:
    if isinstance(entry, Deferred):
        described = {key: value for key, value in asdict(entry.checkpoint).items() if value} if entry.checkpoint else None
        toolbox.add(entry.build(), described)
    else:
        toolbox.add(entry)


def entries(toolbox: str | Path | Sequence[str | Mapping] | Toolbox) -> list[Tool | Deferred]:
    """What a toolbox holds (see :func:`load_toolbox`), without loading weights that are not the project's own."""
    if isinstance(toolbox, Toolbox):
        return list(toolbox)
    if not isinstance(toolbox, str | Path):
        listed = [parse_entry("the list of tools", position, entry) for position, entry in enumerate(toolbox, 1)]
        return _resolve(listed, Path())
    return _resolve(*_listed(toolbox))


def names_of(toolbox: str | Path | Sequence[str | Mapping] | Toolbox) -> list[str]:
    """The names of a toolbox's tools, those whose weights are absent included."""
    return [_name(entry) for entry in entries(toolbox)]


def _name(entry: Tool | Deferred) -> str:
    return entry.name if isinstance(entry, Deferred) else entry.spec.name


def checkpoints(toolbox: str | Path) -> list[Checkpoint]:
    """The checkpoints that a named toolbox or a toolbox file describes."""
    return [entry for entry in _listed(toolbox)[0] if isinstance(entry, Checkpoint)]


def _listed(toolbox: str | Path) -> tuple[Sequence[Entry], Path]:
    """The entries as they are written, and the folder that their relative paths start from."""
    if toolbox in NAMED_TOOLBOXES:
        return NAMED_TOOLBOXES[str(toolbox)](), Path()
    path = Path(toolbox)
    if path.suffix in (".yaml", ".yml"):
        return read_manifest(path), path.parent
    raise UnknownNameError("toolbox", str(toolbox), NAMED_TOOLBOXES, "A YAML file or a list of tools is a toolbox, too.")


def _resolve(listed: Sequence[Entry], beside: Path) -> list[Tool | Deferred]:
    """Names become the tools, or the toolboxes, that they name; checkpoints become tools that load when they are built."""
    resolved: list[Tool | Deferred] = []
    index: dict[str, Tool | Deferred] = {}
    rest = iter(NAMED_TOOLBOXES)
    for entry in listed:
        if isinstance(entry, Checkpoint):
            resolved.append(deferred(entry, beside))
        elif not isinstance(entry, str):
            resolved.append(entry)
        elif entry in NAMED_TOOLBOXES:
            resolved.extend(entries(entry))
        else:
            # toolboxes are opened one by one, until one holds the name
            while entry not in index and (name := next(rest, None)):
                # files are lists of the others' tools: of theirs, only the checkpoints are new
                for found in NAMED_TOOLBOXES[name]():
                    if isinstance(found, Checkpoint):
                        found = deferred(found, Path())
                    if not isinstance(found, str):
                        index.setdefault(_name(found), found)
            if entry not in index:
                raise UnknownToolError(entry, index)
            resolved.append(index[entry])
    return resolved


def deferred(checkpoint: Checkpoint, beside: Path) -> Deferred:
    """The tool of a checkpoint, which is found and loaded when it is built."""
    if (beside / checkpoint.file).is_file():
        checkpoint = replace(checkpoint, file=str((beside / checkpoint.file).resolve()))
    return Deferred(checkpoint.name, checkpoint.task, partial(_build, checkpoint), checkpoint.architecture, checkpoint)


def _build(checkpoint: Checkpoint) -> Tool:
    from tool_actors.embedded import has_card, load_embedded
    from tool_actors.fetch import FetchError, verify
    from tool_actors.spandrel_tools import recognise

    if checkpoint.note.startswith("unsupported"):
        raise UnsupportedCheckpointError(f"tool {checkpoint.name!r} cannot be chosen: {checkpoint.note}")
    path = Path(checkpoint.file)
    if not path.is_file():
        try:
            path = find_weights(checkpoint.file)
        except WeightsMissing as error:
            how = f"`ir-env tools fetch {checkpoint.name}` gets it from {checkpoint.url}." if checkpoint.url else checkpoint.note
            raise WeightsMissing(checkpoint.file, error.looked, f"tool {checkpoint.name!r}: ", how) from None
    try:
        verify(checkpoint, path)
    except FetchError as error:
        raise UnsupportedCheckpointError(str(error)) from error
    if has_card(path):
        return load_embedded(path.parent, path.stem, checkpoint.name, checkpoint.task)
    return recognise(path, checkpoint.name, checkpoint.task, note=checkpoint.note)
