"""`ir-env pool`: start, watch and stop a tool pool on a Ray cluster."""

from __future__ import annotations

import argparse
import json


def add_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="pool_command", required=True)

    start = commands.add_parser("start", help="start a pool in the running Ray cluster, or on this machine for as long as this runs")
    start.add_argument("--toolbox", default="default", help="name or file of a toolbox (default: default)")
    start.add_argument("--settings", help="YAML file with the settings of PoolConfig, e.g. placements, max_batch, cache_bytes")
    start.add_argument("--replicas", type=int, help="instances, each with all tools (default: as many as are called for)")
    start.add_argument("--cpus", type=float, default=1.0, help="CPUs per instance (default: 1)")
    start.add_argument("--gpus", type=float, default=0.0, help="GPUs per instance, e.g. 0.25 (default: 0)")

    status = commands.add_parser("status", help="show what a pool is doing")
    status.add_argument("--json", action="store_true", help="all counters, as JSON")
    stop = commands.add_parser("stop", help="end a pool")
    serve = commands.add_parser("serve", help="offer a pool over HTTP to trainers in other environments or clusters")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    serve.add_argument("--port", type=int, default=8200, help="(default: 8200)")
    for command in (start, status, stop, serve):
        command.add_argument("--name", default="mc-pool", help="of the pool (default: mc-pool)")
        command.add_argument("--address", default=None if command is start else "auto", help="of Ray (default: the running cluster)")


def run(options: argparse.Namespace) -> int:
    return {"start": _start, "status": _status, "stop": _stop, "serve": _serve}[options.pool_command](options)


def _start(options: argparse.Namespace) -> int:
    import ray

    from tool_actors.pool import MCPool

    shared = _connect(options.address, required=False)
    pool = MCPool.start(_settings(options), options.name, detached=shared)
    print(f"pool {pool.name!r} runs: {len(pool.toolbox)} tools. Use it with executor='pool:{pool.name}'; `ir-env pool status` watches it.")
    if shared:
        return 0
    print(f"It ends with this command (Ctrl-C). Ray's address: {ray.get_runtime_context().gcs_address}")
    import signal

    try:
        signal.pause()
    except KeyboardInterrupt:
        pool.stop()
    return 0


def _settings(options: argparse.Namespace) -> dict:
    from tool_actors.errors import IrEnvError

    placement = {"num_cpus": options.cpus, "num_gpus": options.gpus, "replicas": options.replicas or "auto"}
    settings = {"toolbox": options.toolbox, "placements": [placement]}
    if options.settings:
        import yaml

        try:
            with open(options.settings) as file:
                given = yaml.safe_load(file)
        except (OSError, yaml.YAMLError) as error:
            raise IrEnvError(f"{options.settings}: cannot be read ({error})") from error
        if not isinstance(given, dict):
            raise IrEnvError(f"{options.settings}: must hold settings of a pool, e.g. max_batch: 32")
        settings.update(given)
    return settings


def _status(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from tool_actors.pool import MCPool
    from tool_actors.pool.counters import plain, summarise

    _connect(options.address, required=True)
    status = MCPool.connect(options.name).status()
    if options.json:
        print(json.dumps(plain(status), indent=2))
        return 0
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("", "requests", "executions", "batches", "hits", "joined", "retries", "failures", "mean wait ms", "ms per image"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=not column)
    for service, each in sorted(status["services"].items(), key=lambda item: -item[1]["busy_s"]):
        per = 1000 / max(each["executions"], 1)
        counts = [str(each[key]) for key in ("requests", "executions", "batches", "hits", "joined", "retries", "failures")]
        name = service.name if service.kind == "tool" else str(service)
        table.add_row(name, *counts, f"{each['wait_s'] * per:.1f}", f"{each['busy_s'] * per:.1f}")
    console = Console()
    console.print(table)
    figures = summarise(status)
    console.print(
        f"{status['instances']} instances ({status['busy']} busy, {status['starting']} starting, {status['lost']} lost), "
        f"utilisation {figures['utilisation']:.0%}; {figures['queued']} requests wait; cache {figures['cache_mb']:.0f} MiB; "
        f"{status['callers']} callers, {status['kept_bytes'] / 2**20:.0f} MiB of answers kept for them",
        soft_wrap=True,
    )
    return 0


def _stop(options: argparse.Namespace) -> int:
    from tool_actors.pool import MCPool

    _connect(options.address, required=True)
    MCPool.connect(options.name).stop()
    print(f"pool {options.name!r} has ended")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from tool_actors.gateway.server import Gateway
    from tool_actors.pool import MCPool

    _connect(options.address, required=True)
    with Gateway(MCPool.connect(options.name), options.host, options.port) as gateway:
        print(f"pool {options.name!r} is served at {gateway.url}. Use it with executor='pool:{gateway.url}'; Ctrl-C ends this.", flush=True)
        try:
            gateway.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _connect(address: str | None, required: bool) -> bool:
    """Connect to a running cluster; returns False if there is none, none is named (nor by ``RAY_ADDRESS``) and none is required."""
    import os

    import ray

    from tool_actors.errors import IrEnvError
    from tool_actors.pool.client import no_cluster

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    try:
        ray.init(address=address or "auto", **{key: value for key, value in quiet.items() if key != "include_dashboard"})
        return True
    except ConnectionError as error:
        if required or address or os.environ.get("RAY_ADDRESS"):
            raise no_cluster(address) from error
    except RuntimeError as error:
        if "Version mismatch" not in str(error):
            raise
        raise IrEnvError(
            "the Ray cluster here is of another version of Ray or Python: start another with `ray start --head`, give its --address, "
            "or reach a pool of the other through `ir-env pool serve`, with executor='pool:http://HOST:8200'"
        ) from error
    ray.init(address="local", **quiet)
    return False
