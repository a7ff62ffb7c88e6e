"""`ir-env mcp`: an assistant's tools by the SDK's own client, over its transports, and what a hostile client is answered."""

import asyncio
import base64
import http.client
import io
import json
import os
import socket
import struct
import sys
import threading
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mcp")
import uvicorn
from mcp import Client, StdioServerParameters

from experiments.serve.client_images import ClientImages, Limits
from experiments.serve.mcp import Desk, build_server
from experiments.serve.mcp_transcript import converse
from ir_env.image_files import read_photograph, software_of
from ir_env.images import load_image, save_image
from policies import restore

PIXELS = 400_000
BYTES = 1 << 20


@pytest.fixture(scope="module")
def root(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("root")
    save_image(folder / "photo.png", photo)
    os.symlink("/etc", folder / "out")
    os.symlink("circle", folder / "circle")
    os.mkfifo(folder / "pipe.png")
    (folder / "big.png").write_bytes(bytes(BYTES + 1))
    (folder / "text.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def server(root):
    return build_server(Desk(ClientImages(root, Limits(BYTES, PIXELS, 8 << 20)), device="cpu"))


def told(result):
    assert not result.is_error, result.content[0].text
    return json.loads(result.content[0].text)


def pixels_of(block):
    assert block.type == "image"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(block.data))))


def in_base64(pixels, kind="PNG"):
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return base64.b64encode(data.getvalue()).decode()


def asked(server, *calls):
    """The results of calls of one client, each a tool and its arguments."""

    async def ask():
        async with Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(ask())


# -- what it is for ------------------------------------------------------------------------------------------------------------------


def test_an_assistant_restores_a_photograph_tool_by_tool(server, root, photo):
    async def ask():
        async with Client(server) as client:
            names = [tool.name for tool in (await client.list_tools()).tools]
            assert names == ["list_tools", "assess", "apply_tool", "restore", "compare", "get_image", "save_image"]
            tools = told(await client.call_tool("list_tools", {"task": "denoise"}))["tools"]
            assert {tool["task"] for tool in tools} == {"denoise"}
            seen = await client.call_tool("assess", {"image": "photo.png"})
            assert np.abs(pixels_of(seen.content[1]).astype(int) - photo).mean() < 4, "the picture of it"
            first = told(seen)
            assert sum(first["first_tools"].values()) <= 1.001 and first["scores"]["niqe"] > 0
            second = told(await client.call_tool("apply_tool", {"image": first["image"], "tool": "tv.denoise"}))
            third = told(await client.call_tool("apply_tool", {"image": second["image"], "tool": "gamma.brighten", "strength": 0.5}))
            assert third["tools_so_far"] == ["tv.denoise", "gamma.brighten"]
            compared = await client.call_tool("compare", {"image": third["image"], "other": first["image"]})
            assert 5 < told(compared)["difference"]["psnr"] < 40 and pixels_of(compared.content[1]).shape == (300, 904, 3)
            file = await client.call_tool("get_image", {"image": second["image"]})
            assert np.array_equal(pixels_of(file.content[0]), restore(photo, "fixed:tv.denoise", device="cpu", threads=1).array)
            saved = await client.call_tool("save_image", {"image": third["image"], "path": "mended.png"})
            assert saved.content[0].text == "saved as mended.png"

    asyncio.run(ask())
    assert software_of(root / "mended.png").startswith("ir_env ") and load_image(root / "mended.png").shape == photo.shape


def test_the_policy_restores_as_the_command_does(server, photo):
    image = in_base64(photo)
    whole, few, large = asked(
        server,
        ("restore", {"image": f"data:image/png;base64,{image}"}),
        ("restore", {"image": image, "effort": "fast", "without": ["derain"]}),
        ("restore", {"image": in_base64(photo[:64, :64]), "scale": 2}),
    )
    expected = restore(photo, device="cpu")
    assert told(whole)["tools_so_far"] == list(expected.tools)
    assert len(told(few)["tools_so_far"]) <= 2 and told(large)["width"] == 128


def test_16_bits_go_through_a_chain(server, root):
    import cv2

    deep = np.random.default_rng(0).integers(0, 65536, (40, 48, 3)).astype(np.uint16)
    cv2.imwrite(str(root / "deep.png"), deep)
    [first] = asked(server, ("apply_tool", {"image": "deep.png", "tool": "tv.denoise", "strength": 0.1}))
    _, file = asked(server, ("save_image", {"image": told(first)["image"], "path": "deep2.png"}), ("get_image", {"image": "deep.png"}))
    assert told(first)["bits"] == 16 and read_photograph(root / "deep2.png").depth == 16
    assert not file.is_error


def test_the_transcript_restores_a_photograph(server, root, capsys, tmp_path):
    assert asyncio.run(converse(server, root / "photo.png", tmp_path / "better.png")) == 0
    printed = capsys.readouterr().out
    assert "> restore(image=image-" in printed and "the better one by NIQE: image-" in printed
    assert load_image(tmp_path / "better.png").shape[2] == 3


# -- hostile clients -----------------------------------------------------------------------------------------------------------------


def png_header(width, height):
    content = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(content)) + b"IHDR" + content
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + struct.pack(">I", 400) + b"IDAT" + bytes(400)


HOSTILE = {
    "a path above": ("../photo.png", "not below the folder"),
    "an absolute path": ("/etc/passwd", "not below the folder"),
    "a link out": ("out/passwd", "not below the folder"),
    "links in a circle": ("circle", "not below the folder|no such file"),
    "a null byte": ("photo.png\0.txt", "not below the folder"),
    "a name that is too long": ("x" * 300 + ".png", "no such file|not below"),
    "a surrogate": ("\udcff.png", "no such file|not below"),
    "a pipe": ("pipe.png", "no such file"),
    "a folder": (".", "no such file"),
    "a large file": ("big.png", "at most"),
    "no image": ("text.png", "no readable image"),
    "nothing": ("", "no such file"),
    "no base64": ("data:image/png;base64,%%%", "not base64"),
    "too much base64": ("data:image/png;base64," + "A" * (BYTES * 2), "at most"),
    "PostScript": (f"data:image/png;base64,{base64.b64encode(b'%!PS-Adobe-3.0 EPSF-3.0').decode()}", "no readable image"),
    "SVG": (f"data:image/svg;base64,{base64.b64encode(b'<svg/>').decode()}", "no readable image"),
    "a huge header": (f"data:;base64,{base64.b64encode(png_header(30000, 30000)).decode()}", "at most|exceeds limit"),
    "a large header": (f"data:;base64,{base64.b64encode(png_header(3000, 3000)).decode()}", "at most"),
    "a header alone": (f"data:;base64,{base64.b64encode(png_header(300, 300)).decode()}", "not a readable image|no readable image"),
    "an id that is guessed": ("image-000000000000", "no such image"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_images_are_refused_by_an_error_that_tells_no_path_of_the_server(kind, server, root):
    image, why = HOSTILE[kind]
    for tool, more in (("assess", {}), ("apply_tool", {"tool": "tv.denoise"}), ("compare", {"other": "photo.png"})):
        [result] = asked(server, (tool, {"image": image, **more}))
        text = result.content[0].text
        assert result.is_error and any(part in text for part in why.split("|")), text
        assert str(root) not in text and len(text) < 1000


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("apply_tool", {"image": "photo.png", "tool": "rm -rf"}, "unknown tool 'rm -rf'"),
        ("apply_tool", {"image": "photo.png", "tool": "x4.fidelity"}, "the result has 1792x1200 pixels"),
        ("apply_tool", {"image": "photo.png", "tool": "tv.denoise", "strength": 7}, "less than or equal to 1"),
        ("apply_tool", {"image": "photo.png", "tool": "tv.denoise", "strength": float("nan")}, "strength"),
        ("apply_tool", {"image": 7, "tool": None}, "valid string"),
        ("apply_tool", {}, "image"),
        ("restore", {"image": "photo.png", "policy": "results/evil", "scale": 16}, "the result has"),
        ("restore", {"image": "photo.png", "scale": 1e300}, "less than or equal to 16"),
        ("restore", {"image": "photo.png", "tasks": ["nonsense"]}, "unknown task or tool 'nonsense'"),
        ("restore", {"image": "photo.png", "without": ["x"] * 1000}, "at most 64"),
        ("restore", {"image": "photo.png", "effort": "__import__('os')"}, "'fast' or 'best'"),
        ("list_tools", {"task": "x" * 10000}, "no tool of the task"),
        ("save_image", {"image": "photo.png", "path": "photo.png"}, "nothing is overwritten"),
        ("save_image", {"image": "photo.png", "path": "../a.png"}, "not below the folder"),
        ("save_image", {"image": "photo.png", "path": "out/a.png"}, "not below the folder"),
        ("save_image", {"image": "photo.png", "path": "a.exe"}, "cannot be written"),
        ("save_image", {"image": "photo.png", "path": "gone/a.png"}, "no such folder"),
        ("shutdown", {}, "Unknown tool"),
    ],
)
def test_hostile_arguments_are_errors_of_the_tool_and_the_server_goes_on(name, arguments, why, server):
    refused, next_one = asked(server, (name, arguments), ("list_tools", {}))
    assert refused.is_error and why in refused.content[0].text, refused.content[0].text
    assert told(next_one)["tools"]


def test_without_a_folder_no_path_is_opened(root, photo):
    server = build_server(Desk(ClientImages(None), device="cpu", policy="nothing"))
    path, long_path, sent, saved = asked(
        server,
        ("assess", {"image": str(root / "photo.png")}),
        ("assess", {"image": f"{root}/{'./' * 200}photo.png"}),
        ("assess", {"image": in_base64(photo[:64, :64])}),
        ("save_image", {"image": "photo.png", "path": "a.png"}),
    )
    assert "send its data in base64" in path.content[0].text and "not base64" in long_path.content[0].text
    assert told(sent)["width"] == 64 and "Unknown tool" in saved.content[0].text


def test_what_is_remembered_is_bounded(root, photo):
    images = ClientImages(root, Limits(kept=photo.nbytes * 3))
    photograph = images.find("photo.png").photograph
    first, *others = [images.keep(photograph) for _ in range(4)]
    assert all(images.find(name).photograph is photograph for name in others)
    with pytest.raises(Exception, match="forgotten"):
        images.find(first)


# -- transports ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(server):
    """Of the server behind HTTP, on this machine alone."""
    held = socket.create_server(("127.0.0.1", 0))
    port = held.getsockname()[1]
    app = server.streamable_http_app(host="127.0.0.1", max_request_body_size=BYTES * 3)
    running = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [held]})
    thread.start()
    yield f"http://127.0.0.1:{port}/mcp"
    running.should_exit = True
    thread.join()


def test_http_serves_several_clients_and_mixes_nothing(url, photo):
    parts = [np.ascontiguousarray(photo[:, start : start + 64]) for start in (0, 100, 200, 300)]

    async def ask(part):
        async with Client(url) as client:
            made = told(await client.call_tool("apply_tool", {"image": in_base64(part), "tool": "tv.denoise"}))
            return pixels_of((await client.call_tool("get_image", {"image": made["image"]})).content[0])

    async def ask_all():
        return await asyncio.gather(*map(ask, parts))

    for part, got in zip(parts, asyncio.run(ask_all()), strict=True):
        assert np.array_equal(got, restore(part, "fixed:tv.denoise", device="cpu").array)


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"Content-Length": str(BYTES * 4)}, b"", 413),
        ({"Host": "evil.example"}, b"{}", 421),
        ({"Origin": "http://evil.example"}, b"{}", 403),
        ({"Content-Type": "text/plain"}, b"{}", 400),
        ({}, b"\xff\xfe not JSON", 400),
    ],
)
def test_http_refuses_what_is_too_large_and_what_other_sites_send(headers, body, code, url):
    connection = http.client.HTTPConnection(url.split("/")[2], timeout=60)
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    connection.request("POST", "/mcp", body, sent)
    assert connection.getresponse().status == code
    connection.close()


def test_the_command_serves_its_standard_streams(root):
    """A process of its own, which prints nothing into the stream of messages, and says what it was asked wrongly."""

    async def ask():
        command = StdioServerParameters(
            command=sys.executable,
            args=["-m", "experiments.cli.ir_env", "mcp", "--root", str(root), "--policy=nothing", "--device=cpu"],
            env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        async with Client(command) as client:
            refused = await client.call_tool("assess", {"image": "/etc/passwd"})
            made = await client.call_tool("apply_tool", {"image": "photo.png", "tool": "tv.denoise"})
            return refused, made

    refused, made = asyncio.run(ask())
    assert refused.is_error and told(made)["tools_so_far"] == ["tv.denoise"] and pixels_of(made.content[1]).shape[2] == 3


def test_the_command_names_what_is_wrong(capsys, tmp_path):
    from experiments.cli.ir_env import main

    assert main(["mcp", "--root", str(tmp_path / "gone")]) == 2
    assert "no such folder" in capsys.readouterr().err
