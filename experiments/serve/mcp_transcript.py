"""A client of ``ir-env mcp`` that restores one photograph, and prints what it asks and what it is told.

How to run
----------
    python -m experiments.serve.mcp_transcript PHOTO                                    # starts `ir-env mcp`, and talks by its streams
    python -m experiments.serve.mcp_transcript PHOTO --url http://127.0.0.1:8765/mcp    # talks to one that runs: ir-env mcp --http
    python -m experiments.serve.mcp_transcript PHOTO --out restored.png                 # keeps the better of the two restorations

It does by rule what an assistant does by looking: takes the tool that the policy thinks of first, compares, and keeps the result if NIQE
says that it is better; then lets the policy restore the photograph, and compares the two.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

from mcp import Client, StdioServerParameters

SHOWN = 240
"""Characters of a text that are printed."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", help="of a server that runs (default: start one)")
    parser.add_argument("--out", type=Path, help="file to write the better restoration to")
    options = parser.parse_args(arguments)
    command = StdioServerParameters(command=sys.executable, args=["-m", "experiments.cli.ir_env", "mcp"])
    return asyncio.run(converse(options.url or command, options.photo, options.out))


async def converse(server: Any, photo: Path, out: Path | None = None) -> int:
    """The conversation with a server, as :class:`mcp.Client` takes it; the exit status."""
    async with Client(server) as client:
        print(f"tools: {', '.join(tool.name for tool in (await client.list_tools()).tools)}")
        try:
            best = await restore(client, photo)
            print(f"\nthe better one by NIQE: {best['image']}, by {' + '.join(best['tools_so_far']) or 'nothing'}")
            if out:
                [file] = await call(client, "get_image", image=best["image"])
                out.write_bytes(base64.b64decode(file.data))
        except Refused:
            return 2
    return 0


async def restore(client: Client, photo: Path) -> dict[str, Any]:
    """What the server told of the better of two restorations."""
    await call(client, "list_tools", task="denoise")
    seen = await told(client, "assess", image=base64.b64encode(photo.read_bytes()).decode())
    best, first = seen, next(iter(seen.get("first_tools", {})), "stop")
    if first != "stop":
        tried = await told(client, "apply_tool", image=seen["image"], tool=first)
        await call(client, "compare", image=tried["image"], other=seen["image"])
        best = min(tried, seen, key=niqe)
    planned = await told(client, "restore", image=seen["image"])
    await call(client, "compare", image=planned["image"], other=best["image"])
    return min(planned, best, key=niqe)


def niqe(told: dict[str, Any]) -> float:
    value = told["scores"]["niqe"]
    return float("inf") if value is None else value


class Refused(Exception):
    """The server answered with an error."""


async def told(client: Client, name: str, /, **arguments: Any) -> dict[str, Any]:
    return json.loads((await call(client, name, **arguments))[0].text)


async def call(client: Client, name: str, /, **arguments: Any) -> list[Any]:
    """The content blocks of one call, which is printed."""
    print(f"\n> {name}({', '.join(f'{key}={shortened(str(value))}' for key, value in arguments.items())})")
    result = await client.call_tool(name, arguments)
    for block in result.content:
        if block.type == "image":
            print(f"  [{block.mime_type}, {len(block.data) * 3 // 4:,} bytes]")
        elif block.type == "text":
            print(f"  {shortened(block.text)}")
    if result.is_error:
        raise Refused
    return list(result.content)


def shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


if __name__ == "__main__":
    sys.exit(main())
