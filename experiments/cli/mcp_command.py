"""The `ir-env mcp` command: the tools, for an assistant."""

from __future__ import annotations

import argparse
import sys

from tool_actors.errors import IrEnvError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--http", action="store_true", help="serve streamable HTTP at /mcp (default: standard input and output)")
    parser.add_argument("--host", default="127.0.0.1", help="address for --http (default: this machine alone)")
    parser.add_argument("--port", type=int, default=8765, help="for --http (default: 8765)")
    parser.add_argument("--root", help="folder whose images clients may open, and save results in (default: no file is opened)")
    parser.add_argument("--policy", default="simplecall", help="what `restore` decides by, as of ir-env restore (default: simplecall)")
    parser.add_argument("--toolbox", help="name or file of a toolbox (default: the policy's own, or default)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--max-megabytes", type=float, default=32, help="largest file of an image (default: 32)")
    parser.add_argument("--max-megapixels", type=float, default=25, help="largest image, before and after a tool (default: 25)")


def run(options: argparse.Namespace) -> int:
    try:
        import mcp  # noqa: F401
    except ImportError:
        raise IrEnvError("the MCP SDK is not installed: `pip install 'ir-env[mcp]'` does it") from None
    from experiments.serve.client_images import ClientImages, Limits
    from experiments.serve.mcp import Desk, build_server

    limits = Limits(bytes=int(options.max_megabytes * (1 << 20)), pixels=int(options.max_megapixels * 1e6))
    desk = Desk(ClientImages(options.root, limits), policy=options.policy, toolbox=options.toolbox, device=options.device)
    desk.restorer()  # what is wrong with the policy is said now
    server = build_server(desk)
    if not options.http:
        server.run("stdio")
        return 0
    if options.host not in LOOPBACK:
        print(f"warning: whoever reaches {options.host}:{options.port} may use this; it asks for no password", file=sys.stderr)
    print(f"http://{options.host}:{options.port}/mcp", file=sys.stderr)
    # base64 in JSON, and two images in one call
    server.run("streamable-http", host=options.host, port=options.port, max_request_body_size=limits.bytes * 3)
    return 0
