"""The `ir-env serve` command."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tool_actors.errors import IrEnvError

APPLICATION = "ir-env"
OBJECT_STORE_BYTES = 1 << 30
"""Of a cluster that the command starts: pixels on their way to the tools."""
POLICIES = ("simplecall",)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="(default: 8000; 0: any that is free)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a name under which it is asked for; * for any")
    parser.add_argument(
        "--policy", action="append", default=[], metavar="NAME=POLICY", help="a policy that may be asked for; the first is the default"
    )
    parser.add_argument("--toolbox", default="default", help="name or file of the toolbox of the pool (default: default)")
    parser.add_argument("--pool", metavar="NAME", help="share the pool of this name, which runs in the cluster at --address")
    parser.add_argument("--address", help="of a Ray cluster to use (default: one is started, on this machine alone)")
    parser.add_argument("--concurrency", type=int, default=2, help="photographs at once (default: 2)")
    parser.add_argument("--instances", type=int, help="of the tools, each on one CPU (default: as many as are called for)")
    bounds = parser.add_argument_group("limits")
    bounds.add_argument("--max-megabytes", type=float, default=64, help="of a photograph's file (default: 64)")
    bounds.add_argument("--max-megapixels", type=float, default=50, help="of a photograph, and of what it is enlarged to (default: 50)")
    bounds.add_argument("--timeout", type=float, default=300, metavar="S", help="for one restoration (default: 300)")
    bounds.add_argument("--waiting", type=int, default=64, help="photographs that wait (default: 64)")
    bounds.add_argument("--rate", type=int, default=240, help="photographs a minute from one address (default: 240)")
    bounds.add_argument("--keep", type=float, default=900, metavar="S", help="for which results are kept (default: 900)")


def run(options: argparse.Namespace) -> int:
    start = time.perf_counter()
    with listening(options.host, options.port) as socket:
        print("starting (Ray and torch take some seconds) ...", flush=True)
        with service(options) as app:
            port = socket.getsockname()[1]
            host = f"[{options.host}]" if ":" in options.host else options.host
            print(f"http://{host}:{port}  ({time.perf_counter() - start:.1f} s; Ctrl-C ends it)", flush=True)
            server_of(app).run([socket])
    return 0


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[Any]:
    """The socket, before anything else takes time; raises :class:`IrEnvError` where it cannot be had."""
    import socket

    try:
        made = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=512)
    except OSError as error:
        raise IrEnvError(f"{host}:{port} cannot be listened at ({error.strerror}): choose another --host or --port") from error
    with made:
        yield made


def server_of(app: Any) -> Any:
    """uvicorn's server of the guarded application."""
    import uvicorn

    from experiments.serve.guard import PatientProtocol

    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        log_level="error",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=app.limits.connections,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)


@contextlib.contextmanager
def service(options: argparse.Namespace) -> Iterator[Any]:
    """The guarded application, with Ray, pool and deployment behind it for as long as the block runs."""
    if not options.address and "ray" not in sys.modules:
        # Ray's processes listen at every address of the machine, and run what they are sent: a secret that only they share keeps others
        # out. Ray reads it as it is imported.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
        from ray import serve
    except ImportError as error:
        raise IrEnvError(f"the service needs {error.name}, which is not installed: `pip install 'ir-env[serve]'` does it") from error
    from experiments.serve.app import make_app
    from experiments.serve.guard import LOCAL, Guard
    from experiments.serve.jobs import Jobs
    from experiments.serve.limits import Limits
    from experiments.serve.metrics import Metrics
    from experiments.serve.restorers import GRACE_S, Restorers
    from experiments.serve.wanted import Offer

    limits = Limits(
        max_bytes=round(options.max_megabytes * 2**20),
        max_pixels=round(options.max_megapixels * 1e6),
        timeout_s=options.timeout,
        waiting=options.waiting,
        rate=options.rate,
        keep_s=options.keep,
        disk_bytes=max(Limits.disk_bytes, round(4 * options.max_megabytes * 2**20)),
    )
    if options.concurrency < 1:
        raise IrEnvError(f"--concurrency must be at least 1, not {options.concurrency}")
    policies = _policies(options.policy or POLICIES)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with _cluster(options.address) as own, _pool(options) as pool:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "ERROR", "enable_access_log": False})
        deployment = serve.deployment(
            Restorers,
            name="restorers",
            # pings come beside restorations
            max_ongoing_requests=options.concurrency + 8,
            graceful_shutdown_timeout_s=5,
            health_check_period_s=10,
            health_check_timeout_s=GRACE_S,
            ray_actor_options={"num_cpus": 0},
        )
        # one of a name that runs is another's
        if APPLICATION in serve.status().applications:
            raise IrEnvError(f"an application {APPLICATION!r} runs in this cluster already: end that service first")
        try:
            application = deployment.bind(policies, pool.name, options.concurrency, limits.timeout_s)
            try:
                handle = serve.run(application, name=APPLICATION, route_prefix=None)
            except RuntimeError as error:
                raise IrEnvError(f"the policies cannot be loaded: {_cause(error, serve)}") from error
            metrics = Metrics()
            jobs = Jobs(handle, limits, metrics, options.concurrency)
            offer = Offer(tuple(policies), {tool.spec.name: tool.spec for tool in pool.toolbox})
            hosts = {*LOCAL, *options.allow_host, *([options.host] if options.host not in ("0.0.0.0", "::") else [])}
            yield Guard(make_app(jobs, offer, limits, metrics), limits, metrics, hosts)
        finally:
            if not own:  # it ends with Ray
                serve.delete(APPLICATION)


def _policies(given: Any) -> Mapping[str, str]:
    policies = {}
    for each in given:
        name, _, policy = each.partition("=")
        # the processes of Ray have other folders
        policies[name] = str(Path(policy).resolve()) if policy and Path(policy).exists() else policy or name
    return policies


def _cause(error: Exception, serve: Any) -> str:
    """The last line that is not Ray's of why a deployment did not start."""
    status = serve.status().applications.get(APPLICATION)
    messages = [each.message for each in status.deployments.values()] if status else []
    lines = [line.strip() for line in "\n".join([*messages, str(error)]).splitlines() if "Error: " in line]
    return lines[0] if lines else str(error)


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[bool]:
    """Ray: at an address, or one of this command's own, with which nobody else can speak; whether it is that."""
    import ray

    from experiments.cli.common import start_ray

    if ray.is_initialized():
        yield False
        return
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except ConnectionError as error:
            raise IrEnvError(f"no Ray cluster runs at {address!r}: leave out --address, or start one with `ray start --head`") from error
    else:
        start_ray(address="local", _node_ip_address="127.0.0.1", object_store_memory=OBJECT_STORE_BYTES)
    try:
        yield not address
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _pool(options: argparse.Namespace) -> Iterator[Any]:
    """The pool of a name, or one for as long as this runs."""
    from tool_actors.pool import MCPool

    if options.pool:
        yield MCPool.connect(options.pool)
        return
    placement = {"replicas": options.instances or "auto"}
    toolbox = str(Path(options.toolbox).resolve()) if Path(options.toolbox).is_file() else options.toolbox
    pool = MCPool.start({"toolbox": toolbox, "placements": [placement], "timeout_s": options.timeout}, name=f"{APPLICATION}-serve")
    try:
        yield pool
    finally:
        pool.stop()
