"""`ir-env serve` with Ray Serve, a pool and the policy that comes with the project."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from experiments.measurements.serve import Kinds, expected, form, load, photographs, pixels_of
from ir_env.image_files import read_photograph
from ir_env.images import save_image

REQUESTS = {
    "policy": ("/v1/restore", "simplecall"),
    "plan": ("/v1/restore?plan=noise.gaussian25+haze.thin", "fixed:noise.gaussian25+haze.thin"),
    "tool": ("/v1/tools/jpeg.quality15", "fixed:jpeg.quality15"),
    "random": ("/v1/restore?policy=random", "random"),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    images = photographs(None, 4, 64)
    folder = tmp_path_factory.mktemp("command_line")
    return Kinds(
        images, expected(images[:1], folder, {"random": REQUESTS["random"]}) | expected(images, folder, dict(list(REQUESTS.items())[:3]))
    )


def test_the_pixels_are_the_command_lines_and_two_photographs_are_never_mixed(served, kinds):
    wanted = [(name, number) for name, number in kinds.results for _ in range(2)]

    def ask(name, number):
        status, body = served.ask("POST", REQUESTS[name][0], kinds.files[number], {"content-type": "image/png"})
        return status, pixels_of(body) if status == 200 else body

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, *zip(*wanted, strict=True)))
    for (name, number), (status, pixels) in zip(wanted, answers, strict=True):
        assert status == 200, (name, number, pixels)
        assert np.array_equal(pixels, kinds.results[name, number]), (name, number)


def test_the_trace_and_the_steps_of_a_job(served, kinds):
    status, body = served.ask(
        "POST", "/v1/jobs?plan=noise.gaussian25+tv.denoise&previews=true", kinds.files[0], {"content-type": "image/png"}
    )
    begun = json.loads(body)
    assert status == 202 and begun["state"] in ("waiting", "running")
    events = served.ask("GET", begun["links"]["events"])[1].decode().strip().split("\n\n")
    told = [json.loads(event.removeprefix("data: ")) for event in events]
    assert told[-1]["state"] == "done" and [len(each["steps"]) for each in told] == sorted(len(each["steps"]) for each in told)
    assert [step["tool"] for step in told[-1]["steps"]] == [None, "noise.gaussian25", "tv.denoise"]
    for step in told[-1]["steps"]:
        assert pixels_of(served.ask("GET", step["preview"])[1]).shape == kinds.images[0].shape
    trace = json.loads(served.ask("GET", f"{begun['links']['self']}/trace")[1])
    assert trace == told[-1]["trace"] and trace["policy"] == "fixed: noise.gaussian25 + tv.denoise" and "/" not in trace["image"]
    assert served.ask("GET", f"{begun['links']['self']}/steps/3")[0] == 404
    assert served.ask("DELETE", begun["links"]["self"])[0] == 204 and served.ask("GET", begun["links"]["self"])[0] == 404


def test_what_a_file_holds_is_kept(served, tmp_path):
    import cv2

    deep = np.random.default_rng(0).integers(0, 65536, (40, 50, 4), np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    status, body = served.ask("POST", "/v1/restore?plan=", (tmp_path / "deep.png").read_bytes())
    (tmp_path / "back.png").write_bytes(body)
    before, after = read_photograph(tmp_path / "deep.png"), read_photograph(tmp_path / "back.png")
    assert status == 200 and after.depth == 16 and np.array_equal(before.pixels, after.pixels) and np.array_equal(before.alpha, after.alpha)
    image = Image.new("RGB", (40, 30), "teal")
    image.save(tmp_path / "a.gif")
    for query, kind in (("plan=", "PNG"), ("plan=&format=webp", "WEBP"), ("plan=&format=jpg&quality=50", "JPEG")):
        status, body = served.ask("POST", f"/v1/restore?{query}", (tmp_path / "a.gif").read_bytes())
        (tmp_path / "b").write_bytes(body)
        assert status == 200 and Image.open(tmp_path / "b").format == kind


def test_a_tool_enlarges_what_is_large(served, tmp_path, photo):
    save_image(tmp_path / "a.png", photo[:, :320])
    status, body = served.ask("POST", "/v1/tools/x4.edge", (tmp_path / "a.png").read_bytes())
    assert status == 200 and pixels_of(body).shape == (1200, 1280, 3)


def test_errors_of_photographs_tell_no_path(served, kinds):
    body, headers = form(kinds.files[0][:3000], "../../x.png")
    status, body = served.ask("POST", "/v1/restore", body, headers)
    assert status == 422 and json.loads(body)["error"].startswith("photograph.png: not a readable image")


def test_a_client_that_leaves_is_not_restored_for(served, kinds):
    """Its place goes to others: as many leave as there are workers, again and again."""
    head = b"POST /v1/restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(kinds.files[0])
    import socket

    for _ in range(6):
        with socket.create_connection((served.host, served.port)) as made:
            made.sendall(head + kinds.files[0])
    assert served.ask("POST", "/v1/restore?plan=", kinds.files[0])[0] == 200


def test_health_and_metrics(served, kinds):
    served.ask("POST", "/v1/tools/tv.denoise", kinds.files[0])
    assert json.loads(served.ask("GET", "/v1/health")[1])["status"] == "ok"
    assert 'ir_env_tool_runs_total{tool="tv.denoise"}' in served.ask("GET", "/metrics")[1].decode()
    assert json.loads(served.ask("GET", "/v1/policies")[1]) == ["simplecall", "random"]


@pytest.mark.slow
def test_clients_of_all_kinds_at_once(served, kinds):
    outcome = load(served, kinds, seconds=20, clients=8)
    assert not outcome.wrong and kinds.wrong_pixels == 0, outcome.wrong
    assert set(outcome.right) == {"valid", "huge", "corrupt", "slow", "hostile"}
    assert served.ask("GET", "/v1/health")[0] == 200 and threading.active_count() < 100
