"""What the service refuses before anything is restored: on the real server, without Ray."""

import json
import random
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from experiments.measurements.serve import CUT, Kinds, bomb, form, photographs, png
from experiments.serve.app import make_app
from experiments.serve.guard import Guard, PatientProtocol
from experiments.serve.jobs import Jobs
from experiments.serve.limits import Limits, Refused
from experiments.serve.metrics import Metrics
from experiments.serve.uploads import inspect
from experiments.serve.wanted import Offer, Wanted
from tool_actors.errors import IrEnvError
from tool_actors.toolbox import ToolSpec

TOOLS = (ToolSpec("a.b", "denoise", "1"), ToolSpec("x4.c", "super_resolve", "1", 4))
OFFER = Offer(("simplecall",), {tool.name: tool for tool in TOOLS})
REFUSED = ("declared_huge", "endless", "pixels", "noise", "slow_body", "wrong_type", "json_bomb", "junk", "stranger", "paths")


@pytest.fixture(scope="module")
def limits():
    return Limits(max_bytes=1 << 20, max_pixels=1_000_000, upload_s=1.0, stall_s=0.5, rate=100_000, waiting=2, connections=24)


def make(limits, hosts=("localhost", "127.0.0.1")):
    metrics = Metrics()
    jobs = Jobs(None, limits, metrics, workers=0)  # what is taken waits
    return Guard(make_app(jobs, OFFER, limits, metrics), limits, metrics, hosts)


@pytest.fixture(scope="module")
def server(limits, running):
    patience, PatientProtocol.stall_s = PatientProtocol.stall_s, limits.stall_s
    with running(make(limits)) as made:
        yield made
    PatientProtocol.stall_s = patience


@pytest.fixture(scope="module")
def kinds():
    return Kinds(photographs(None, 2, 64), {})


@pytest.mark.parametrize("name", REFUSED)
def test_the_right_codes(server, kinds, name):
    for seed in range(12 if name != "slow_body" else 1):
        status, right = getattr(kinds, name)(server, random.Random(seed))
        assert right, (name, seed, status)


def test_a_head_that_does_not_come_ends_the_connection(server):
    with socket.create_connection((server.host, server.port), timeout=60) as made:
        made.sendall(b"POST /v1/restore HTTP/1.1\r\nHost: local")
        assert made.recv(10) == b""
    parts = [b"GET /v1/limits HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /v1/limits HTTP/1.1\r\nHost: lo", *[b"c"] * 40]
    with socket.create_connection((server.host, server.port), timeout=60) as made:  # after an answer, too, drop by drop
        made.sendall(parts[0])
        assert made.recv(4096).startswith(b"HTTP/1.1 200")
        with pytest.raises(ConnectionError):
            while True:
                made.sendall(b"x")
                time.sleep(0.02)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("plan=no.such", "unknown tool 'no.such'"),
        ("policy=/etc/passwd", "unknown policy"),
        ("policy=fixed:a.b", "unknown policy"),
        ("without=../x", "unknown task or tool"),
        ("tasks=derain", "unknown task or tool"),
        ("format=../x", "format"),
        ("format=pdf", "format 'pdf' is not written"),
        ("scale=nan", "scale"),
        ("scale=2&size=100", "say the same"),
        ("quality=0", "quality"),
        ("effort=all", "effort"),
        ("max_steps=99999999999999999999", "max_steps"),
        ("plan=" + "+".join(["a.b"] * 13), "at most 12 tools"),
        ("plan=" + "a.b+" * 600, "plan"),
    ],
)
def test_options_are_checked_before_the_photograph(server, kinds, query, text):
    status, body = server.ask("POST", f"/v1/restore?{query}", kinds.files[0], {"content-type": "image/png"})
    assert status == 422 and text in json.loads(body)["error"], body


def test_what_would_grow_too_large_is_refused(server):
    data = png(np.zeros((600, 800, 3), np.uint8))
    for query in ("scale=2", "size=5000", "plan=x4.c&scale=1.1", "plan=x4.c&scale=1"):
        status, body = server.ask("POST", f"/v1/restore?{query}", data, {"content-type": "image/png"})
        assert (status, "enlarged so" in json.loads(body)["error"]) == (413, True), query
    assert server.ask("POST", "/v1/tools/x4.c", data, {"content-type": "image/png"})[0] == 413


def test_forms(server, kinds):
    body, headers = form(b"", "a.png")
    assert server.ask("POST", "/v1/jobs", body, headers)[0] == 422
    body, headers = form(kinds.files[0], "a.png", name="other")
    assert server.ask("POST", "/v1/jobs", body, headers)[0] == 422
    assert server.ask("POST", "/v1/jobs", b"--edge\r\nrubbish", headers)[0] in (400, 422)
    assert server.ask("POST", "/v1/jobs", b"x", {"content-type": "multipart/form-data"})[0] == 400
    two = form(kinds.files[0], "a.png")[0].removesuffix(b"--edge--\r\n") + form(kinds.files[0], "b.png")[0]
    assert server.ask("POST", "/v1/jobs", two, headers)[0] == 400
    assert server.ask("POST", "/v1/jobs", b"", {"content-type": "image/png"})[0] == 422


def test_jobs_wait_are_refused_and_are_forgotten(limits, kinds, running):
    with running(guard := make(limits)) as server:
        begun = [server.ask("POST", "/v1/jobs", kinds.files[0], {"content-type": "image/png"}) for _ in range(3)]
        assert [status for status, _ in begun] == [202, 202, 503]
        first, second = (json.loads(body) for _, body in begun[:2])
        assert (first["state"], first["before"], second["before"]) == ("waiting", 0, 1)
        assert server.ask("GET", f"/v1/jobs/{first['id']}/image")[0] == 409
        folder = guard.app.state.jobs.folder
        assert len(list(folder.iterdir())) == 2 and folder.stat().st_mode & 0o077 == 0
        assert server.ask("DELETE", f"/v1/jobs/{first['id']}")[0] == 204
        assert server.ask("GET", f"/v1/jobs/{first['id']}")[0] == 404 and len(list(folder.iterdir())) == 1
        assert server.ask("GET", "/v1/health")[0] == 503
    assert not folder.exists()


def test_who_waits_for_a_job_that_is_ended_is_told(limits, kinds, running):
    with running(guard := make(limits)) as server, ThreadPoolExecutor(1) as client:
        answer = client.submit(server.ask, "POST", "/v1/restore", kinds.files[0])
        while not guard.app.state.jobs.waiting:
            time.sleep(0.01)
        [id] = guard.app.state.jobs._jobs
        assert server.ask("DELETE", f"/v1/jobs/{id}")[0] == 204
        assert answer.result()[0] == 410


def test_a_rate_by_address(kinds, running):
    with running(make(Limits(rate=3))) as server:
        codes = [server.ask("POST", "/v1/restore?plan=no.such", kinds.files[0])[0] for _ in range(5)]
        assert codes == [422, 422, 422, 429, 429] and server.ask("GET", "/v1/limits")[0] == 200


def test_connections_are_bounded(server, limits):
    held = [socket.create_connection((server.host, server.port)) for _ in range(2 * limits.connections)]
    try:
        while server.ask("GET", "/v1/limits")[0] == 200:  # the server has not met all of them yet
            pass
        assert server.ask("GET", "/v1/limits")[0] in (503, CUT)
    finally:
        for each in held:
            each.close()


def test_names_of_the_service(running):
    with running(make(Limits(), hosts=("pictures.example",))) as server:
        assert server.ask("GET", "/", headers={"host": "pictures.example:8000"})[0] == 200
        assert server.ask("GET", "/", headers={"host": "other.example"})[0] == 421


def test_the_page_the_metrics_and_the_description(server):
    for path in ("/", "/page.js", "/page.css", "/style.css", "/compare.js"):
        status, body = server.ask("GET", path)
        assert status == 200 and b"http" not in body.replace(b"https", b"http").replace(b"http-equiv", b""), path
    described = json.loads(server.ask("GET", "/openapi.json")[1])
    assert {"/v1/restore", "/v1/jobs", "/v1/tools/{tool}", "/v1/health"} <= set(described["paths"])
    assert {"413", "415", "429"} <= set(described["paths"]["/v1/restore"]["post"]["responses"])
    for number in range(3):
        server.ask("GET", f"/nowhere/{number}")
    text = server.ask("GET", "/metrics")[1].decode()
    assert 'route="none"' in text and "/nowhere" not in text and "ir_env_waiting" in text and "process_resident_memory_bytes" in text


def test_the_kinds_of_photographs(tmp_path, photo):
    path = tmp_path / "photograph"
    for kind, suffix in (("JPEG", ".jpg"), ("PNG", ".png"), ("TIFF", ".tif"), ("WEBP", ".webp"), ("GIF", ".gif"), ("BMP", ".bmp")):
        Image.fromarray(photo).save(path, kind)
        found = inspect(path, Limits())
        assert (found.suffix, found.width, found.height) == (suffix, photo.shape[1], photo.shape[0])
    import cv2

    path.write_bytes(cv2.imencode(".tif", photo.astype(np.float32) / 255)[1].tobytes())  # Pillow cannot open it
    assert inspect(path, Limits()).width == photo.shape[1]
    for data in (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg/>", b"%PDF-1.7", b"II*\0" + b"\xff" * 20, b""):
        path.write_bytes(data)
        with pytest.raises(Refused) as refused:
            inspect(path, Limits())
        assert refused.value.status == 415
    path.write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    with pytest.raises(Refused, match=r"heic|no photograph"):
        inspect(path, Limits())
    path.write_bytes(bomb(2**31 - 1, 2**31 - 1))
    with pytest.raises(Refused, match="million pixels"):
        inspect(path, Limits())


def test_results_make_room_for_others(tmp_path):
    import asyncio

    async def fill():
        jobs = Jobs(None, Limits(max_bytes=100, disk_bytes=400), Metrics(), 0)
        async with jobs.at_work():
            kept = [jobs.begin(100) for _ in range(4)]
            with pytest.raises(Refused, match="disk space"):
                jobs.begin(100)
            kept[1].state = "done"
            jobs.begin(100)
            with pytest.raises(Refused, match="no longer kept"):
                jobs.get(kept[1].id)

    asyncio.run(fill())


def test_settings_that_make_no_sense():
    with pytest.raises(IrEnvError, match="rate must be greater"):
        Limits(rate=0)
    assert Wanted("simplecall", ("a.b",)).check(OFFER, Limits()).plan == ("a.b",)


def test_a_missing_extra_and_a_taken_port_are_told(command, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = command("ir-env", "serve", "--port", taken.getsockname()[1], cwd=tmp_path)
    assert said.returncode == 2 and "choose another --host or --port" in said.stderr
    monkeypatch.setitem(__import__("sys").modules, "fastapi", None)
    said = command("ir-env", "serve", "--port", 0, cwd=tmp_path)
    assert said.returncode == 2 and "pip install 'ir-env[serve]'" in said.stderr
