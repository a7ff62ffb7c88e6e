"""The `ir-env restore` command."""

from __future__ import annotations

import argparse

from tool_actors.devices import PRECISIONS
from tool_actors.errors import IrEnvError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="photographs, folders of them, or patterns such as 'photos/**/*.jpg'")
    parser.add_argument("-i", "--input", action="append", default=[], metavar="IMAGE", help="the same; repeatable")
    parser.add_argument(
        "--policy",
        default="simplecall",
        help="simplecall (the policy that comes with ir-env, and the default), a checkpoint, the folder of a run, hf:OWNER/NAME, or a "
        "planner: nothing, random, fixed:TOOL+TOOL, all_in_one, rl_restore, traversal, mair, agenticir, 4kagent, restore_agent, q_agent, "
        "remote:URL#MODEL",
    )
    parser.add_argument("--toolbox", help="name or file of a toolbox, for planners (default: the policy's own, or default)")
    parser.add_argument("--max-steps", type=int, help="most tools per photograph (default: as the policy was trained, or 6)")
    parser.add_argument("--seed", type=int, default=0, help="for planners that draw")
    parser.add_argument("--tasks", type=_names, default=(), metavar="TASK,...", help="use only tools of these tasks")
    parser.add_argument("--without", type=_names, default=(), metavar="NAME,...", help="use no tools of these names or tasks")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--fast", dest="effort", action="store_const", const="fast", help="at most two tools, where the policy is sure")
    effort.add_argument("--best", dest="effort", action="store_const", const="best", help="as many tools as the policy likes")
    parser.add_argument("--strength", type=float, default=1.0, help="of the tools that do not enlarge: 0 (nothing) to 1 (default)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--scale", type=float, help="enlarge so many times")
    size.add_argument("--size", type=int, help="longer side of the result, in pixels")

    files = parser.add_argument_group("files")
    files.add_argument("-o", "--out", "--output", default="restored", help="folder for the results (default: restored)")
    files.add_argument("--suffix", default="_restored", help="what is added to names (default: _restored)")
    files.add_argument("--format", help="png, jpg, tif, webp, avif, jp2, ... (default: that of the photograph)")
    files.add_argument("--quality", type=int, help="1 to 100, of jpg, webp and avif (default: 95)")
    files.add_argument("--grey", choices=("rgb", "keep"), default="rgb", help="keep: a grey photograph stays grey")
    files.add_argument("--frames", choices=("all", "first"), default="all", help="of animations, and of files of pages (default: all)")
    files.add_argument("--skip-existing", action="store_true", help="leave out photographs whose results are there")
    files.add_argument("--again", action="store_true", help="restore results of an earlier restoration, too")
    files.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing (the tools run all the same)")

    speed = parser.add_argument_group("speed")
    speed.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    speed.add_argument(
        "--precision", choices=PRECISIONS, help="of the networks: fp16 on GPUs, bf16 on newer CPUs, too (default: the tool's)"
    )
    speed.add_argument("--tile", type=int, help="side of the parts that a tool gets of a large image; 0: all at once (default: the tool's)")
    speed.add_argument("--processes", type=_processes, default=None, help="photographs at a time (default: auto)")
    speed.add_argument("--scores", choices=("view", "full", "off"), default="view", help="quality metrics of the trace (default: view)")


def run(options: argparse.Namespace) -> int:
    from experiments.restore import restore_all
    from experiments.restore_files import Output

    images = [*options.images, *options.input]
    if not images:
        raise IrEnvError("nothing to restore: give photographs, folders or patterns")
    output = Output(
        options.out,
        options.suffix,
        options.format,
        options.quality,
        options.grey == "keep",
        options.frames,
        options.scores,
        options.skip_existing,
        options.again,
        options.dry_run,
    )
    names = ("toolbox", "max_steps", "seed", "tasks", "without", "effort", "scale", "size", "device", "tile", "precision", "strength")
    settings = {name: getattr(options, name) for name in names}
    return restore_all(images, options.policy, output, options.processes, **settings)


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.replace("+", ",").split(",")))


def _processes(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of at least 1")
    return int(text)
