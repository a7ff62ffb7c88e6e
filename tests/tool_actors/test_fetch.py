import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from tool_actors import fetch as module
from tool_actors.errors import IrEnvError
from tool_actors.fetch import FetchError, default_folder, fetch, verify
from tool_actors.manifest import Checkpoint

BODY = np.random.default_rng(0).bytes(2_500_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves BODY at /w.pth in the ways that `server` says."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.ranges.append(asked)
        if server.errors:
            return self.send_error(server.errors.pop(0))
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            return self.end_headers()
        if self.path != "/w.pth":
            return self.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.resumable else 0
        if start >= len(server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.body)}")
            return self.end_headers()
        rest = server.body[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + server.shift}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        rest = rest[: server.cuts.pop(0) if server.cuts else None]
        server.sent += len(rest)
        with suppress(ConnectionError):  # the client may have seen enough
            self.wfile.write(rest)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.body, server.resumable, server.content_type = BODY, True, "application/octet-stream"
        server.cuts, server.errors, server.redirects, server.ranges, server.sent, server.shift = [], [], {}, [], 0, 0
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def checkpoint(server, path="/w.pth", **facts) -> Checkpoint:
    return Checkpoint(**{"name": "net.denoise", "task": "denoise", "file": "net/w.pth", "url": server.address + path} | facts)


def test_whole_file_with_progress(server, tmp_path):
    seen = []
    path = fetch(checkpoint(server, size=len(BODY), sha256=SHA256.upper()), tmp_path, lambda *done: seen.append(done))
    assert path == tmp_path / "net/w.pth" and path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen) and len(seen) == 3
    assert [file.name for file in path.parent.iterdir()] == ["w.pth"]
    assert fetch(checkpoint(server, size=len(BODY), sha256=SHA256), tmp_path) == path and len(server.ranges) == 1


def test_broken_connections_are_resumed(server, tmp_path):
    server.cuts = [1_500_000, 600_000]
    path = fetch(checkpoint(server), tmp_path)
    assert path.read_bytes() == BODY and server.sent == len(BODY)
    assert server.ranges == [None, "bytes=1500000-", "bytes=2100000-"]


def test_a_later_call_resumes(server, tmp_path):
    server.cuts = [1_500_000]
    with pytest.raises(FetchError, match=r"net\.denoise.*1500000 bytes instead of 2500000.*1 attempts"):
        fetch(checkpoint(server), tmp_path, attempts=1)
    assert not (tmp_path / "net/w.pth").exists()
    assert fetch(checkpoint(server), tmp_path).read_bytes() == BODY and server.sent == len(BODY)


def test_a_complete_part_is_only_verified(server, tmp_path):
    part = tmp_path / "net/w.pth.part"
    part.parent.mkdir()
    part.write_bytes(BODY)
    assert fetch(checkpoint(server, sha256=SHA256), tmp_path).read_bytes() == BODY and server.sent == 0


@pytest.mark.parametrize("fault", ["no ranges", "another range", "part of a longer file"])
def test_parts_that_cannot_be_continued_are_dropped(server, tmp_path, fault):
    server.resumable, server.shift = fault != "no ranges", 5 * (fault == "another range")
    part = tmp_path / "net/w.pth.part"
    part.parent.mkdir()
    part.write_bytes(b"x" * (len(BODY) + 1 if fault == "part of a longer file" else 1000))
    assert fetch(checkpoint(server, sha256=SHA256), tmp_path).read_bytes() == BODY


def test_server_errors_pass_but_missing_files_do_not(server, tmp_path):
    server.errors = [503]
    assert fetch(checkpoint(server), tmp_path).read_bytes() == BODY and len(server.ranges) == 2
    with pytest.raises(FetchError, match=r"net\.denoise.*/other\.pth answers 404.*save it as .*net/v\.pth"):
        fetch(checkpoint(server, "/other.pth", file="net/v.pth"), tmp_path)
    assert len(server.ranges) == 3
    server.errors = [500, 502, 503]
    with pytest.raises(FetchError, match=r"503 .*3 attempts"):
        fetch(checkpoint(server, file="net/v.pth"), tmp_path)


def test_wrong_downloads_are_deleted(server, tmp_path):
    with pytest.raises(FetchError, match=f"net.denoise.*{SHA256}, not {'0' * 64}.*deleted"):
        fetch(checkpoint(server, sha256="0" * 64), tmp_path)
    assert not list((tmp_path / "net").iterdir())
    with pytest.raises(FetchError, match="2500000 bytes, not 7"):
        fetch(checkpoint(server, size=7), tmp_path)
    server.content_type = "text/html"
    with pytest.raises(FetchError, match="web page"):
        fetch(checkpoint(server), tmp_path)
    assert not list((tmp_path / "net").iterdir())


def test_recorded_hash_catches_changes(server, tmp_path):
    path = fetch(checkpoint(server), tmp_path)
    record = path.with_name("w.pth.sha256")
    assert record.read_text() == f"{SHA256}  w.pth\n"
    verify(checkpoint(server), path)
    path.write_bytes(BODY[:-1] + b"?")
    with pytest.raises(FetchError, match=rf"net\.denoise.*not {SHA256}.*w\.pth\.sha256.*Delete"):
        fetch(checkpoint(server), tmp_path)
    path.unlink()
    server.body = BODY[::-1]
    with pytest.raises(FetchError, match=f"not {SHA256}.*deleted"):
        fetch(checkpoint(server), tmp_path)
    assert not path.exists() and len(server.ranges) == 2


@pytest.mark.parametrize("url", ["http://example.org/w.pth", "ftp://127.0.0.1/w.pth", "file:///etc/hostname", "http://[", "w.pth"])
def test_only_https(url, tmp_path):
    with pytest.raises(FetchError, match=r"net\.denoise.*no https"):
        fetch(Checkpoint("net.denoise", "denoise", "w.pth", url=url), tmp_path)


def test_redirects(server, tmp_path):
    server.redirects = {"/here": server.address + "/w.pth", "/away": "http://example.org/w.pth", "/loop": "/loop"}
    server.cuts = [1_000_000]
    assert fetch(checkpoint(server, "/here"), tmp_path).read_bytes() == BODY and server.sent == len(BODY)
    for path, reason in (("/away", "sends on to http://example.org"), ("/loop", "302")):
        with pytest.raises(FetchError, match=reason):
            fetch(checkpoint(server, path, file="v.pth"), tmp_path)
    assert not module._allowed("http://127.0.0.1/w.pth", "https://example.org/w.pth")


@pytest.mark.parametrize("file", ["../w.pth", "net/../../w.pth", "/w.pth", "C:/w.pth", "..\\w.pth", "", "."])
def test_no_path_leads_out_of_the_folder(file, tmp_path):
    with pytest.raises(FetchError, match="no path below"):
        fetch(Checkpoint("net.denoise", "denoise", file, url="https://127.0.0.1/w.pth"), tmp_path / "weights")


def test_no_address(tmp_path):
    entry = Checkpoint("net.denoise", "denoise", "net/w.pth", note="Ask the authors.")
    with pytest.raises(IrEnvError, match=r"net\.denoise.*Ask the authors\..*net/w\.pth"):
        fetch(entry, tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "net/w.pth").write_bytes(b"brought by hand")
    assert fetch(entry, tmp_path) == tmp_path / "net/w.pth"


def test_unreachable_server(server, tmp_path):
    entry = checkpoint(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(FetchError, match=r"refused.*2 attempts.*net/w\.pth"):
        fetch(entry, tmp_path, attempts=2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk(server, tmp_path):
    (tmp_path / "net").mkdir()
    (tmp_path / "net/w.pth.part").symlink_to("/dev/full")
    with pytest.raises(FetchError, match=rf"net\.denoise.*{tmp_path}/net cannot be written.*space"):
        fetch(checkpoint(server), tmp_path)


def test_default_folder(server, tmp_path, monkeypatch):
    monkeypatch.setenv("IR_ENV_WEIGHTS", f"{tmp_path / 'mine'}:{tmp_path / 'other'}")
    monkeypatch.setenv("IR_ENV_ASSETS", str(tmp_path / "assets"))
    assert fetch(checkpoint(server)) == tmp_path / "mine/net/w.pth"
    monkeypatch.delenv("IR_ENV_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache/ir_env/weights"
