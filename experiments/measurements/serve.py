"""The service under 16 clients that send valid, huge, corrupt, slow and hostile requests at once.

How to run
----------
    python -m experiments.measurements.serve --seconds 120
    python -m experiments.measurements.serve --seconds 120 --photos FOLDER --json serve.json

A service is started with its usual settings (but for the rate, since all clients have one address). Every photograph is first restored by
`ir-env restore`, under each of three requests; whatever the service answers must have those pixels. Printed are, per kind of request, how
many were sent, which status codes came, how many were right, and the median and longest time; and the memory of all processes of the
service together (each page that several share counts once), at its start, at most and at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import random
import re
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np

PLAN = ("noise.gaussian25", "haze.thin")
TOOL = "jpeg.quality15"
REQUESTS = {
    "policy": ("/v1/restore", "simplecall"),
    "plan": (f"/v1/restore?{urlencode({'plan': '+'.join(PLAN)})}", "fixed:" + "+".join(PLAN)),
    "tool": (f"/v1/tools/{TOOL}", f"fixed:{TOOL}"),
}
"""Name -> where it is asked of the service, and the policy of `ir-env restore` that is the same."""
CUT = 0
"""In place of a status code: the connection was closed, as is right where a head does not come."""
PATIENCE_S = 300.0
MEASURE_S = 3.0


@dataclass(frozen=True)
class Service:
    """One that runs."""

    host: str
    port: int
    process: subprocess.Popen | None = None

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> tuple[int, bytes]:
        """Status and body; :data:`CUT` if the connection ends without an answer."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            with contextlib.suppress(ConnectionError):  # an answer may be there before all was sent
                connection.request(method, path, body, dict(headers), encode_chunked=hasattr(body, "__next__"))
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return CUT, b""
        finally:
            connection.close()

    def raw(self, parts: Sequence[bytes], pause_s: float = 0.0) -> int:
        """Bytes as they are, with pauses between the parts; the status, or :data:`CUT`."""
        with socket.create_connection((self.host, self.port), timeout=PATIENCE_S) as made:
            answer = b""
            with contextlib.suppress(ConnectionError):
                for number, part in enumerate(parts):
                    if number and pause_s:
                        time.sleep(pause_s)
                    made.sendall(part)
            with contextlib.suppress(ConnectionError):
                answer = made.recv(64)
        found = re.match(rb"HTTP/1.1 (\d{3})", answer)
        return int(found[1]) if found else CUT

    def memory(self) -> float:
        """MiB of its processes."""
        import psutil

        assert self.process
        total = 0
        for each in [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += getattr(each.memory_full_info(), "pss", each.memory_info().rss)
        return total / 2**20


@contextlib.contextmanager
def started(*options: str) -> Iterator[Service]:
    """`ir-env serve` at a free port, for as long as the block runs."""
    command = [sys.executable, "-m", "experiments.cli.ir_env", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stdout
    try:
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
            if found := re.match(r"http://([\d.]+):(\d+)", line):
                break
        else:
            raise RuntimeError("the service did not start")
        # what it says later must not fill the pipe
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield Service(found[1], int(found[2]), process)
    finally:
        process.send_signal(subprocess.signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


# -- what is sent --------------------------------------------------------------------------------------------------------------------


def photographs(folder: str | None, count: int, side: int) -> list[np.ndarray]:
    """Degraded crops, each unlike all others."""
    from ir_env.datasets import BuiltinPhotos
    from ir_env.degradations import degrade, parse_combo
    from ir_env.images import find_images, load_image

    sources = [load_image(path) for path in find_images(folder)[:count]] if folder else [BuiltinPhotos("heldout").load("chelsea")]
    rng = np.random.default_rng(0)
    combos = ("noise", "haze", "rain+haze", "low_light", "jpeg", "noise+jpeg")
    made = []
    for number in range(count):
        clean = sources[number % len(sources)]
        width, height = side + 8 * number, side
        top, left = (int(rng.integers(0, max(1, have - want))) for have, want in zip(clean.shape, (height, width), strict=False))
        crop = np.ascontiguousarray(clean[top : top + height, left : left + width])
        made.append(degrade(crop, parse_combo(combos[number % len(combos)]), number).image)
    return made


def expected(images: Sequence[np.ndarray], folder: Path, requests: Mapping[str, tuple[str, str]]) -> dict[tuple[str, int], np.ndarray]:
    """What `ir-env restore` makes of each image under each request."""
    from experiments.cli import ir_env
    from ir_env.images import load_image, save_image

    for number, image in enumerate(images):
        save_image(folder / f"{number}.png", image)
    found = {}
    for name, (_, policy) in requests.items():
        out = folder / name
        names = [str(folder / f"{number}.png") for number in range(len(images))]
        with contextlib.redirect_stdout(io.StringIO()):
            code = ir_env.main(["restore", *names, "--policy", policy, "--out", str(out), "--scores", "off", "--processes", "1"])
        assert code == 0, "the command line failed"
        found |= {(name, number): load_image(out / f"{number}_restored.png") for number in range(len(images))}
    return found


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 65536)) + chunk(b"IEND", b"")


def form(data: bytes, filename: str, name: str = "photo") -> tuple[bytes, dict[str, str]]:
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"; filename="{filename}"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + data + b"\r\n--edge--\r\n", {"content-type": "multipart/form-data; boundary=edge"}


Attempt = Callable[[Service, random.Random], tuple[int, bool]]
"""Sends something; the status, and whether that was the right answer."""


@dataclass
class Kinds:
    """Requests of all kinds, made of some photographs and what the command line makes of them."""

    images: Sequence[np.ndarray]
    results: Mapping[tuple[str, int], np.ndarray]
    files: list[bytes] = field(default_factory=list)
    wrong_pixels: int = 0

    def __post_init__(self):
        self.files = [png(image) for image in self.images]

    def all(self) -> dict[str, list[Attempt]]:
        return {
            "valid": [self.valid, self.valid, self.valid, self.valid_form, self.valid_job],
            "huge": [self.declared_huge, self.endless, self.pixels],
            "corrupt": [self.truncated, self.noise, self.flipped],
            "slow": [self.slow_head, self.slow_body],
            "hostile": [
                self.traversal,
                self.wrong_type,
                self.json_bomb,
                self.unknown,
                self.long_plan,
                self.junk,
                self.stranger,
                self.paths,
            ],
        }

    # valid

    def valid(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        name, number = rng.choice(list(REQUESTS)), rng.randrange(len(self.files))
        status, body = service.ask("POST", REQUESTS[name][0], self.files[number], {"content-type": "image/png"})
        return status, status == 200 and self.same(body, name, number)

    def valid_form(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        number = rng.randrange(len(self.files))
        body, headers = form(self.files[number], "a.png")
        status, answer = service.ask("POST", REQUESTS["policy"][0], body, headers)
        return status, status == 200 and self.same(answer, "policy", number)

    def valid_job(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        number = rng.randrange(len(self.files))
        status, body = service.ask("POST", "/v1/jobs?previews=true", self.files[number], {"content-type": "image/png"})
        if status != 202:
            return status, False
        links = json.loads(body)["links"]
        _, told = service.ask("GET", links["events"])  # until it is over
        last = json.loads(told.decode().strip().split("\n\n")[-1].removeprefix("data: "))
        status, image = service.ask("GET", f"{links['self']}/image")
        steps = [service.ask("GET", step["preview"])[0] for step in last["steps"]]
        right = last["state"] == "done" and set(steps) == {200} and self.same(image, "policy", number)
        return status, right and service.ask("DELETE", links["self"])[0] == 204

    def same(self, body: bytes, name: str, number: int) -> bool:
        right = np.array_equal(pixels_of(body), self.results[name, number])
        self.wrong_pixels += not right
        return right

    # too much

    def declared_huge(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        status = service.raw([b"POST /v1/restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 100_000])
        return status, status == 413

    def endless(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        status, _ = service.ask("POST", "/v1/restore", (b"x" * (1 << 20) for _ in range(200)), {"transfer-encoding": "chunked"})
        return status, status == 413

    def pixels(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        width, height = rng.choice([(60_000, 60_000), (2**31 - 1, 2**31 - 1), (8000, 7000), (1 << 20, 64)])
        status, _ = service.ask("POST", "/v1/restore", bomb(width, height))
        return status, status == 413

    # not a photograph

    def truncated(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        data = self.files[rng.randrange(len(self.files))]
        status, _ = service.ask("POST", "/v1/restore", data[: rng.randrange(100, len(data) - 100)])
        return status, status == 422

    def noise(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        status, _ = service.ask("POST", "/v1/restore", rng.randbytes(rng.randrange(1, 20_000)))
        return status, status == 415

    def flipped(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        data = bytearray(self.files[rng.randrange(len(self.files))])
        for _ in range(20):
            data[rng.randrange(40, len(data))] ^= 1 << rng.randrange(8)
        status, _ = service.ask("POST", "/v1/restore", bytes(data))
        return status, status in (200, 415, 422)  # some readers take what others do not

    # slow

    def slow_head(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        parts = [b"POST /v1/restore HTTP/1.1\r\nHost: localhost\r\n", *(f"X-{number}: a\r\n".encode() for number in range(30))]
        status = service.raw(parts, pause_s=1.0)
        return status, status == CUT

    def slow_body(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        status = service.raw([b"POST /v1/restore HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n", b"x"], pause_s=1.0)
        return status, status == 408

    # hostile

    def traversal(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        number = rng.randrange(len(self.files))
        name = rng.choice(["../../../etc/passwd", "/etc/cron.d/x", "..\\..\\x.png", "a\0b.png", "x" * 5000, "file:///etc/passwd"])
        body, headers = form(self.files[number], name)
        status, answer = service.ask("POST", REQUESTS["policy"][0], body, headers)
        if status == 200:
            return status, self.same(answer, "policy", number)
        return status, status == 400 and (len(name) > 4000 or "\0" in name)  # such a form may be refused

    def wrong_type(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        kind = rng.choice(["application/json", "text/html", "application/zip", "multipart/mixed; boundary=x", "\xff\xfe"])
        status, _ = service.ask("POST", "/v1/restore", self.files[0], {"content-type": kind})
        return status, status == 415

    def json_bomb(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        kind = rng.choice(["application/json", "image/png"])
        status, _ = service.ask("POST", "/v1/jobs", b"[" * 500_000, {"content-type": kind})
        return status, status == 415

    def unknown(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        path, right = rng.choice(
            [
                ("/v1/tools/no.such", 404),
                ("/v1/tools/..%2f..%2fetc%2fpasswd", 404),
                ("/v1/restore?plan=no.such", 422),
                ("/v1/restore?policy=/etc/passwd", 422),
                ("/v1/restore?policy=hf:a/b", 422),
                ("/v1/restore?policy=remote:http://169.254.169.254/%23x", 422),
                ("/v1/restore?policy=fixed:noise.gaussian25", 422),
                ("/v1/restore?without=../x", 422),
                ("/v1/restore?format=../../x", 422),
                ("/v1/restore?format=pdf", 422),
                ("/v1/restore?scale=nan", 422),
                ("/v1/restore?scale=1e9", 422),
                ("/v1/restore?size=30000", 413),
                ("/v1/restore?max_steps=9999999999999999999999", 422),
            ]
        )
        status, _ = service.ask("POST", path, self.files[0], {"content-type": "image/png"})
        return status, status == right

    def long_plan(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        count = rng.choice([13, 60, 2000])
        path = "/v1/restore?plan=" + "+".join([TOOL] * count)
        status, _ = service.ask("POST", path, self.files[0], {"content-type": "image/png"})
        return status, status == 422

    def junk(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        start = b"POST /v1/restore HTTP/1.1\r\nHost: localhost\r\n"
        parts = rng.choice(
            [
                start + b"X: " + b"a" * 200_000 + b"\r\n\r\n",
                start + b"".join(b"X-%d: a\r\n" % number for number in range(20_000)) + b"\r\n",
                start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
                start + b"Content-Length: -5\r\n\r\n",
                start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
                start + b"Bad Header\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200) + b"\r\n\r\n",
                b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
                b"GET / HTTP/1.1\r\n\r\n",
            ]
        )
        status = service.raw([parts])
        return status, status in (400, CUT)

    def stranger(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        headers, right = rng.choice(
            [
                ({"host": "evil.example"}, 421),
                ({"origin": "https://evil.example"}, 403),
                ({"origin": "null"}, 403),
                ({"sec-fetch-site": "cross-site"}, 403),
            ]
        )
        status, _ = service.ask("POST", "/v1/restore", self.files[0], {"content-type": "image/png", **headers})
        return status, status == right

    def paths(self, service: Service, rng: random.Random) -> tuple[int, bool]:
        path = rng.choice(
            [
                "/../../etc/passwd",
                "/v1/jobs/..%2f..%2f..%2fetc%2fpasswd/image",
                "/v1/jobs/AAAAAAAAAAAAAAAAAAAAAA",
                "/v1/jobs/AAAAAAAAAAAAAAAAAAAAAA/steps/-1",
                "/page.js/../../command.py",
                "/%2e%2e/%2e%2e/x",
            ]
        )
        status, _ = service.ask("GET", path)
        return status, status in (404, 422)


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


# -- under load ----------------------------------------------------------------------------------------------------------------------


@dataclass
class Load:
    """What came of a while of requests."""

    codes: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    right: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: Counter[str] = field(default_factory=Counter)
    """What was answered wrongly: kind, attempt and status."""
    memory: list[float] = field(default_factory=list)

    def rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = []
        for kind, codes in self.codes.items():
            told = ", ".join(f"{count} x {code or 'closed'}" for code, count in sorted(codes.items()))
            times = self.seconds[kind]
            rows.append((kind, str(codes.total()), told, str(self.right[kind]), f"{statistics.median(times):.2f}", f"{max(times):.1f}"))
        return rows


def load(service: Service, kinds: Kinds, seconds: float, clients: int, seed: int = 0) -> Load:
    """Clients that send requests of random kinds, one after another, for so many seconds."""
    outcome, lock, end, over = Load(), threading.Lock(), time.monotonic() + seconds, threading.Event()

    def client(number: int) -> None:
        rng = random.Random(seed * 1000 + number)
        attempts = kinds.all()
        while time.monotonic() < end:
            kind = rng.choices(list(attempts), [4, 2, 2, 1, 3])[0]
            attempt = rng.choice(attempts[kind])
            start = time.perf_counter()
            status, right = attempt(service, rng)
            with lock:
                outcome.codes[kind][status] += 1
                outcome.right[kind] += right
                outcome.seconds[kind].append(time.perf_counter() - start)
                if not right:
                    outcome.wrong[f"{kind}: {attempt.__name__} {status}"] += 1

    def watch() -> None:
        while not over.wait(MEASURE_S):
            outcome.memory.append(service.memory())

    if service.process:
        outcome.memory.append(service.memory())
        watcher = threading.Thread(target=watch)
        watcher.start()
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client, number) for number in range(clients)]:
            done.result()
    over.set()
    if service.process:
        watcher.join()
        outcome.memory.append(service.memory())
    return outcome


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--photos", help="folder of clean photographs, which are degraded (default: one that comes with the packages)")
    parser.add_argument("--count", type=int, default=8, help="photographs (default: 8)")
    parser.add_argument("--side", type=int, default=128, help="their height, in pixels (default: 128)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args(arguments)
    from rich.console import Console
    from rich.table import Table

    with tempfile.TemporaryDirectory() as folder:
        images = photographs(options.photos, options.count, options.side)
        kinds = Kinds(images, expected(images, Path(folder), REQUESTS))
    start = time.perf_counter()
    with started("--rate", "1000000") as service:
        started_s = time.perf_counter() - start
        outcome = load(service, kinds, options.seconds, options.clients)
        healthy = service.ask("GET", "/v1/health")[0]
        alive = service.process is not None and service.process.poll() is None
    table = Table(title=f"{options.clients} clients, {options.seconds:g} s")
    for column in ("requests", "sent", "answers", "right", "median s", "longest s"):
        table.add_column(column, justify="left" if column in ("requests", "answers") else "right")
    for row in outcome.rows():
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    memory = outcome.memory
    figures = f"{memory[0]:.0f} at its start, {max(memory):.0f} at most, {memory[-1]:.0f} at the end"
    console.print(f"started in {started_s:.0f} s; memory, MiB: {figures}")
    console.print(f"answers with other pixels than the command line's: {kinds.wrong_pixels}; alive: {alive}; health at the end: {healthy}")
    if outcome.wrong:
        console.print("wrong: " + ", ".join(f"{told} x {count}" for told, count in outcome.wrong.most_common()))
    if options.json:
        rows = [dict(zip(("kind", "sent", "answers", "right", "median_s", "longest_s"), row, strict=True)) for row in outcome.rows()]
        options.json.write_text(json.dumps({"rows": rows, "memory_mib": memory, "wrong": outcome.wrong, "health": healthy}, indent=2))
    return 0 if alive and healthy == 200 and not outcome.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
