"""A pool behind HTTP; that a real pool is there is tested in test_pool.py."""

import http.client
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from tool_actors.errors import IrEnvError, ToolFailure, UnknownToolError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.gateway import RemoteExecutor
from tool_actors.gateway.server import Gateway
from tool_actors.gateway.wire import pack, unpack
from tool_actors.make_executor import make_executor
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "gamma.brighten", "x4.edge"]


class Broken(Tool):
    spec = ToolSpec("bench.broken", "denoise", "broken")

    def __call__(self, images):
        raise ValueError("too bright")


class Served:
    """A pool whose executors are local: what a gateway makes of it is the same."""

    name, absent = "served", ["weights.absent"]

    def __init__(self):
        self.toolbox = Toolbox([*(tool for tool in load_toolbox(TOOLS)), Broken()])

    def executor(self, quantize):
        return LocalExecutor(self.toolbox, quantize)


@pytest.fixture(scope="module")
def gateway():
    with Gateway(Served(), port=0, token="word") as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def states(crop):
    return [ImageState.from_pixels(np.roll(crop, turn, axis=0)) for turn in range(3)]


def test_messages_hold_words_and_arrays():
    arrays = [np.arange(12, dtype=np.uint8).reshape(2, 2, 3), np.zeros((0, 3), np.float32), np.ones((3, 2), np.float32).T]
    words, back = unpack(pack({"a": [1, "ä"]}, arrays))
    assert words == {"a": [1, "ä"]} and all(np.array_equal(one, other) for one, other in zip(arrays, back, strict=True))
    for wrong in (b"", b"\x80\x04pickle", pack({}, arrays)[:-1]):
        with pytest.raises(IrEnvError, match="no message"):
            unpack(wrong)


def test_the_same_pixels_as_here(gateway, states, monkeypatch):
    monkeypatch.setattr("tool_actors.gateway.client.PART_BYTES", 2 * states[0].pixels.nbytes)  # several messages
    for quantize in ("uint8", "none"):
        local, remote = LocalExecutor(load_toolbox(TOOLS), quantize), RemoteExecutor(gateway.url, quantize, TOOLS, token="word")
        assert [tool.spec for tool in remote.toolbox] == [tool.spec for tool in local.toolbox]
        ours = theirs = [ImageState.from_pixels(state.pixels, quantize) for state in states]
        for tools in (TOOLS, TOOLS[::-1]):
            ours, theirs = (
                [result.state for result in executor.run([Request(*pair) for pair in zip(each, tools, strict=True)])]
                for executor, each in ((remote, ours), (local, theirs))
            )
            for one, other in zip(ours, theirs, strict=True):
                assert one.pixels.dtype == other.pixels.dtype and np.array_equal(one.pixels, other.pixels) and one.key == other.key
        assert remote.stats.requests == 6 and remote.stats.failures == 0


def test_an_environment_runs_its_tools_there(gateway, monkeypatch):
    from ir_env.process import RestorationProcess

    monkeypatch.setenv("IR_ENV_POOL_TOKEN", "word")
    rewards = []
    for executor in ("local", f"pool:{gateway.url}"):
        settings = {"dataset": {"photos": "builtin", "split": "train", "crop_size": 32}, "toolbox": TOOLS, "metrics": ["psnry"]}
        process = RestorationProcess(**settings, executor=executor)
        rng = np.random.default_rng(0)
        episodes = process.start([process.dataset.draw(rng) for _ in range(3)])
        rewards.append([outcome.reward for outcome in process.step(episodes, [0, 1, 0])])
    assert rewards[0] == rewards[1]


def test_failures_and_unknown_tools_are_named(gateway, states):
    remote = RemoteExecutor(gateway.url, token="word")
    good, bad = remote.run([Request(states[0], "tv.denoise"), Request(states[0], "bench.broken")])
    assert good.error is None and isinstance(bad.error, ToolFailure) and "too bright" in bad.error.cause
    with pytest.raises(UnknownToolError, match=r"tv\.denoise"):
        remote.run([Request(states[0], "tv.denois")])
    with pytest.raises(IrEnvError, match=r"does not hold rain\.heavy"):
        RemoteExecutor(gateway.url, toolbox=["rain.heavy"], token="word")


def test_who_does_not_know_the_word_is_refused(gateway):
    for token in (None, "wrong", "wörd"):
        with pytest.raises(IrEnvError, match="refuses: set IR_ENV_POOL_TOKEN"):
            RemoteExecutor(gateway.url, token=token)
    with pytest.raises(IrEnvError, match="other machines"):
        Gateway(Served(), host="0.0.0.0", port=0)
    with pytest.raises(IrEnvError, match="cannot be listened on"):
        Gateway(Served(), port=gateway.server_port)


@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"garbage", {}, 400, "no message"),
        (pack({"quantize": "uint8"}, []), {}, 400, "needs `quantize`"),
        (pack({"quantize": "uint8", "requests": [[3, "tv.denoise"]]}, []), {}, 400, "IndexError"),
        (pack({"quantize": "int4", "requests": []}, []), {}, 400, "quantize must be"),
        (pack({"quantize": "uint8", "requests": []}, [np.zeros((4, 4), np.uint8)]), {}, 400, "an image must be"),
        (b"", {"Content-Length": str(1 << 40)}, 413, "fewer images"),
        (b"", {"Content-Length": "-1"}, 411, "Content-Length"),
    ],
    ids=["garbage", "no requests", "no such image", "quantize", "shape", "too large", "no length"],
)
def test_wrong_messages_are_named(gateway, body, headers, status, words):
    connection = http.client.HTTPConnection("127.0.0.1", gateway.server_port, timeout=60)
    connection.request("POST", "/run", body, {"Authorization": "Bearer word", **headers})
    answer = connection.getresponse()
    assert answer.status == status and words in json.loads(answer.read())["error"]
    connection.close()


def test_a_broken_connection_is_made_anew_and_an_absent_gateway_named(gateway, states, monkeypatch):
    monkeypatch.setattr("tool_actors.gateway.client.PAUSE_S", 0.0)
    remote = RemoteExecutor(gateway.url, token="word")
    remote._local.connection.sock.close()
    assert remote.run([Request(states[0], "tv.denoise")])[0].error is None
    with pytest.raises(IrEnvError, match=r"does not answer .* `ir-env pool serve`"):
        make_executor("pool:http://127.0.0.1:9", TOOLS)
    with pytest.raises(IrEnvError, match="no address"):
        RemoteExecutor("ftp://somewhere")


def test_a_gateway_without_room_is_asked_again(gateway, states, monkeypatch):
    monkeypatch.setattr("tool_actors.gateway.client.PAUSE_S", 0.0)
    remote = RemoteExecutor(gateway.url, token="word")
    full, room = SimpleNamespace(acquire=lambda blocking: False), gateway.room
    monkeypatch.setattr(gateway, "room", full)
    with pytest.raises(IrEnvError, match="64 messages are being worked on"):
        remote.run([Request(states[0], "tv.denoise")])
    taken = iter([False, True])
    monkeypatch.setattr(gateway, "room", SimpleNamespace(acquire=lambda blocking: next(taken), release=room.release))
    room.acquire()
    assert remote.run([Request(states[1], "tv.denoise")])[0].error is None
