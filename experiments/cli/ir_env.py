"""The `ir-env` command: restore and degrade photographs, compare policies, list tools and environments."""

from __future__ import annotations

import argparse
import sys

from experiments.benchmark import command as benchmark
from experiments.cli import mcp_command, pool, restore_command, tools
from experiments.cli.common import guarded, prepare_ray
from experiments.serve import command as serve


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ir-env", description="Restoration planning: restore photographs with a policy, and look at tools."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    restore_command.add_options(commands.add_parser("restore", help="restore photographs with a trained policy or a planner"))

    degrade = commands.add_parser("degrade", help="degrade a photograph")
    degrade.add_argument("image")
    degrade.add_argument("--combo", required=True, help="e.g. rain+haze, in order of application")
    degrade.add_argument("--seed", type=int, default=0)
    degrade.add_argument("--severity", type=float, help="0 (mild) to 1 (strong); drawn by default")
    degrade.add_argument("--depth", help="folder of depth maps, for haze (default: a synthetic depth)")
    degrade.add_argument("--out", help="file to write (default: NAME_COMBO.png here)")

    benchmark.add_bench(commands.add_parser("bench", help="compare policies on test sets: tables with intervals and paired tests"))
    benchmark.add_report(commands.add_parser("report", help="make one HTML page of what bench measured"))

    serve.add_options(commands.add_parser("serve", help="restore photographs as a service, with a web page"))

    tools.add_commands(commands.add_parser("tools", help="list, show, add, fetch and check tools"))

    pool.add_commands(commands.add_parser("pool", help="start, watch and stop a pool of tools on a Ray cluster"))

    mcp_command.add_options(commands.add_parser("mcp", help="serve the tools to an assistant, by the Model Context Protocol"))

    commands.add_parser("envs", help="list the environments, rewards, metrics and combinations")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)
    prepare_ray()
    commands = {
        "restore": restore_command.run,
        "degrade": _degrade,
        "bench": benchmark.bench,
        "report": benchmark.report,
        "serve": serve.run,
        "tools": tools.run,
        "pool": pool.run,
        "mcp": mcp_command.run,
        "envs": _envs,
    }
    return guarded(lambda: commands[options.command](options))


def _degrade(options: argparse.Namespace) -> int:
    from pathlib import Path

    from ir_env.degradations import degrade, load_depth_source, parse_combo, seed_for
    from ir_env.degradations.recipe import Scene
    from ir_env.images import load_image, save_image

    combo = parse_combo(options.combo)
    pixels = load_image(options.image)
    source = Path(options.image)
    scene = Scene(source.name, depth=load_depth_source(options.depth))
    result = degrade(pixels, combo, seed_for(source.name, combo, options.seed), severity=options.severity, scene=scene)
    path = save_image(options.out or f"{source.stem}_{'+'.join(combo)}.png", result.image)
    for name, parameters in result.parameters:
        print(f"{name}: {', '.join(f'{key} {_short(value)}' for key, value in parameters.items())}")
    print(path)
    return 0


def _envs(options: argparse.Namespace) -> int:
    import gymnasium

    import ir_env  # noqa: F401  registers the environments
    from ir_env.degradations import GROUPS
    from ir_env.metrics import METRICS
    from ir_env.plan_reward import PLAN_REWARDS
    from ir_env.rewards import REWARDS

    for name in sorted(name for name in gymnasium.registry if name.startswith("ir_env/")):
        print(f"environment  {name}   (RLlib: ir_env:{name})")
    print(f"rewards      {', '.join(REWARDS)}; of whole plans {', '.join(PLAN_REWARDS)}")
    for metric in METRICS.values():
        kind = "full-reference" if metric.needs_reference else "no-reference"
        print(f"metric       {metric.name:<11} {kind}{'' if metric.offline else ', weights are downloaded'}: {metric.description}")
    for group, combos in GROUPS.items():
        print(f"combos {group:<7} {', '.join(map('+'.join, combos))}")
    print("combos random:1:2:3, opera:1:3:5   all of one, two and three degradations; OPERA's 145; in a ratio")
    return 0


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
