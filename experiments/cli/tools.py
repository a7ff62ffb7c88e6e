"""The `ir-env tools` commands: list, show, add, fetch, check."""

from __future__ import annotations

import argparse
from pathlib import Path

from tool_actors.errors import IrEnvError, UnknownToolError


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="tools_command", required=True)

    listing = commands.add_parser("list", help="the tools of a toolbox, and those whose weights are not there")
    listing.add_argument("toolbox", nargs="?", default="default", help="a name, or a toolbox file (default: default)")

    show = commands.add_parser("show", help="what one tool does: parameters, source, cost, fingerprint")
    show.add_argument("tool")
    show.add_argument("--toolbox", help="where to look (default: every named toolbox)")

    add = commands.add_parser("add", help="make a tool of a checkpoint, and keep it in a toolbox file")
    add.add_argument("task", help="what it undoes, e.g. derain")
    add.add_argument("file", type=Path, help="a weight file of an architecture that spandrel recognises, or of X-Restormer or MAXIM")
    add.add_argument("--name", required=True, help="family.variant, e.g. restormer.derain")
    add.add_argument("--toolbox", type=Path, help="toolbox file to write to (default: the toolbox `user`)")
    add.add_argument("--note", default="", help="licence and the like")

    fetch = commands.add_parser("fetch", help="download the weights of a toolbox, or of one of its tools")
    fetch.add_argument("names", nargs="+", metavar="TOOLBOX_OR_TOOL", help="opera, agenticir, a toolbox file, or names of their tools")
    fetch.add_argument("--folder", type=Path, help="where to put them (default: IR_ENV_WEIGHTS, or the user's cache)")

    check = commands.add_parser("check", help="run each tool on each degradation: gains, harm and milliseconds")
    check.add_argument("toolbox", nargs="*", default=["default"], help="a toolbox, or names of tools (default: default)")
    check.add_argument("--photos", default="builtin", help="folder of clean photographs (default: those of the packages)")
    check.add_argument("--count", type=int, default=24, help="crops per degradation (default: 24)")
    check.add_argument("--side", type=int, default=128, help="of the crops, in pixels (default: 128)")
    check.add_argument("--seed", type=int, default=0)
    check.add_argument("--json", type=Path, help="also write the matrix here")
    check.add_argument("--picture", type=Path, help="also draw the heat-map here (.png, .pdf, .svg)")


def run(options: argparse.Namespace) -> int:
    commands = {"list": _list, "show": _show, "add": _add, "fetch": _fetch, "check": _check}
    return commands[options.tools_command](options)


def _list(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from tool_actors.toolbox import Deferred
    from tool_actors.toolboxes import NAMED_TOOLBOXES, entries
    from tool_actors.weight_files import UnsupportedCheckpointError, WeightsMissing

    rows, absent = [], 0
    for entry in entries(options.toolbox):
        told = entry if isinstance(entry, Deferred) else entry.spec
        try:
            if isinstance(entry, Deferred) and not entry.scale:  # only its weights tell
                told = entry.build().spec
            rows.append((told.name, told.task, f"x{told.scale}", escape(told.summary)))
        except (WeightsMissing, UnsupportedCheckpointError) as error:
            absent += 1
            state = "weights absent" if isinstance(error, WeightsMissing) else "not usable"
            rows.append((told.name, told.task, "", f"[dim]{state}: {escape(told.summary)}[/]"))
    table = Table(title=f"toolbox {options.toolbox}: {len(rows) - absent} tools" + (f", {absent} absent" if absent else ""))
    for column in ("tool", "task", "scale", "what it is"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print(f"toolboxes: {', '.join(NAMED_TOOLBOXES)}; `ir-env tools show TOOL` tells more of one")
    return 0


def _show(options: argparse.Namespace) -> int:
    from tool_actors.toolbox import Deferred
    from tool_actors.toolboxes import entries, load_toolbox

    if options.toolbox:
        named = {entry.name if isinstance(entry, Deferred) else entry.spec.name: entry for entry in entries(options.toolbox)}
        if options.tool not in named:
            raise UnknownToolError(options.tool, named)
        entry = named[options.tool]
        tool = entry.build() if isinstance(entry, Deferred) else entry
    else:
        [tool] = load_toolbox([options.tool])
    spec = tool.spec
    tiles = f"tiles of {spec.tile} px" if spec.tile else "the whole image at once"
    gradient = "differentiable" if spec.differentiable else "no gradient"
    print(f"{spec.name}: {spec.task}, x{spec.scale}, {tiles}, {gradient}\n\n{spec.description}\n\nfingerprint {spec.fingerprint}")
    return 0


def _add(options: argparse.Namespace) -> int:
    import yaml

    from tool_actors.manifest import Checkpoint, read_manifest
    from tool_actors.spandrel_tools import recognise
    from tool_actors.toolboxes import user_file
    from tool_actors.weight_files import file_sha256

    if not options.file.is_file():
        raise IrEnvError(f"{options.file}: no such file")
    # everything that can be wrong with the file is found now, not in the middle of a training
    Checkpoint(options.name, options.task, str(options.file))
    tool = recognise(options.file, options.name, options.task, note=options.note)
    book = options.toolbox or user_file()
    listed = read_manifest(book) if book.is_file() else []
    if options.name in {entry.name if isinstance(entry, Checkpoint) else entry for entry in listed}:
        raise IrEnvError(f"{book} already holds a tool named {options.name!r}: choose another --name, or take it out there")
    entry = {"name": options.name, "task": options.task, "file": str(options.file.resolve()), "sha256": file_sha256(options.file)}
    entry |= {"architecture": tool.spec.summary} | ({"note": options.note} if options.note else {})
    book.parent.mkdir(parents=True, exist_ok=True)
    with book.open("a") as file:
        file.write(yaml.safe_dump([entry], sort_keys=False, allow_unicode=True))
    print(f"{options.name}: {tool.spec.task}, x{tool.spec.scale}, {tool.spec.summary}; kept in {book}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    import sys

    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from tool_actors.fetch import fetch

    failures = 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for checkpoint in _checkpoints(options.names):
            if not checkpoint.url:
                print(f"{checkpoint.name}: by hand. {checkpoint.note}")
                continue
            bar = progress.add_task(checkpoint.name, total=checkpoint.size)
            try:
                path = fetch(checkpoint, options.folder, lambda done, total, bar=bar: progress.update(bar, completed=done, total=total))
                print(f"{checkpoint.name}: {path}")
            except IrEnvError as error:
                failures += 1
                progress.update(bar, description=f"{checkpoint.name} (failed)")
                print(f"error: {error}", file=sys.stderr)
    return 2 if failures else 0


def _checkpoints(names: list[str]) -> list:
    """The checkpoints behind toolboxes and tools, each file once."""
    from tool_actors.toolboxes import NAMED_TOOLBOXES, checkpoints

    found = {}
    for name in names:
        if name in NAMED_TOOLBOXES or name.endswith((".yaml", ".yml")):
            chosen = checkpoints(name)
            if not chosen:
                raise IrEnvError(f"toolbox {name!r} holds nothing to fetch")
        else:
            known = {entry.name: entry for book in NAMED_TOOLBOXES for entry in checkpoints(book)}
            if name not in known:
                raise UnknownToolError(name, known)
            chosen = [known[name]]
        for checkpoint in chosen:
            if not checkpoint.note.startswith("unsupported"):
                found.setdefault(checkpoint.file, checkpoint)
    return list(found.values())


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from ir_env.gain_matrix import measure
    from tool_actors.tasks import DEGRADATIONS
    from tool_actors.toolboxes import NAMED_TOOLBOXES, load_toolbox

    [one, *more] = options.toolbox
    named = not more and (one in NAMED_TOOLBOXES or one.endswith((".yaml", ".yml")))
    toolbox = load_toolbox(one if named else options.toolbox)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{len(toolbox)} tools on {len(DEGRADATIONS)} degradations", total=len(toolbox) * len(DEGRADATIONS))
        matrix = measure(
            toolbox, options.photos, count=options.count, side=options.side, seed=options.seed, progress=lambda: progress.advance(bar)
        )
    Console(width=None if Console().is_terminal else 140).print(matrix.render())
    if options.json:
        matrix.save(options.json)
    if options.picture:
        matrix.picture(options.picture)
    return 0
