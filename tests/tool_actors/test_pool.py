"""The pool on real Ray actors, small."""

import asyncio
import json
import os
import signal
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from experiments.measurements.pool_tools import Counted, Identity, executions
from ir_env.metrics import MetricSuite
from ir_env.process import RestorationProcess
from tool_actors.errors import IrEnvError, ToolFailure, UnknownToolError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.gateway import RemoteExecutor
from tool_actors.gateway.server import Gateway
from tool_actors.pool import MCPool, Placement, PoolConfig
from tool_actors.pool.counters import plain
from tool_actors.pool.messages import Service
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox

pytestmark = pytest.mark.timeout(900)
TOOLS = ["noise.gaussian25", "jpeg.quality15", "gamma.brighten", "x4.fidelity"]
BIG, BY_REFERENCE = 200, {"reference_bytes": 100 << 10}
"""Images of this side go by reference in the pools here."""
PATIENCE_S = 240.0
"""For whatever the tests wait for, on a busy machine."""


class Broken(Tool):
    spec = ToolSpec("bench.broken", "denoise", "broken")

    def __call__(self, images):
        if images.mean() > 0.9:
            raise ValueError("too bright")
        return images


class Random(Tool):
    spec = ToolSpec("bench.random", "denoise", "random", deterministic=False)

    def __call__(self, images):
        import torch

        return torch.rand_like(images)


class Gate(Tool):
    """Works while a file is there, and waits for it."""

    spec = ToolSpec("bench.gate", "denoise", "gate")

    def __init__(self, file):
        self.file = file

    def __call__(self, images):
        # not the blank image that an instance warms up with
        while images.any() and not self.file.exists():
            time.sleep(0.01)
        return images


def wait_until(condition):
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def states(count, side=32, seed=0):
    return [ImageState.from_pixels(each) for each in np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)]


@pytest.fixture(scope="module")
def toolbox():
    return Toolbox([*load_toolbox(TOOLS), Broken(), Random(), Identity(), Identity("psnr")])


@pytest.fixture(scope="module")
def pool(ray_cluster, toolbox):
    pool = MCPool.start({"toolbox": toolbox, "placements": [{"replicas": 1, "num_cpus": 0.5}], "max_in_flight": 32, **BY_REFERENCE}, "test")
    yield pool
    pool.stop()


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    return tmp_path_factory.mktemp("gate") / "open"


@pytest.fixture(scope="module")
def sharded(ray_cluster, gate):
    config = PoolConfig(
        toolbox=Toolbox([Identity(), Gate(gate)]), placements=(Placement(replicas=2, num_cpus=0.1),), shards=2, **BY_REFERENCE
    )
    pool = MCPool.start(config, "sharded")
    yield pool
    pool.stop()


def test_same_pixels_as_the_local_executor_along_chains(pool):
    local, remote = LocalExecutor(load_toolbox(TOOLS)), pool.executor()
    ours = theirs = states(6) + states(3, 48)
    for tools in (TOOLS[:3] * 3, TOOLS[:3][::-1] * 3, ["x4.fidelity"] * 9):
        ours = remote.run([Request(state, tool) for state, tool in zip(ours, tools, strict=True)])
        theirs = local.run([Request(state, tool) for state, tool in zip(theirs, tools, strict=True)])
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.state.pixels, other.state.pixels) and one.state.key == other.state.key
        ours, theirs = [result.state for result in ours], [result.state for result in theirs]


def test_identical_requests_of_all_callers_run_once(pool):
    before = pool.status()["services"].get(Service("tool", "jpeg.quality15"), {"executions": 0})["executions"]
    requests = [Request(state, "jpeg.quality15") for state in states(4, seed=5)]
    callers = [pool.executor() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(lambda caller: caller.run(requests * 2), callers))
    assert pool.status()["services"][Service("tool", "jpeg.quality15")]["executions"] == before + 4
    assert sum(caller.stats.executions for caller in callers) == 4 and sum(caller.stats.hits for caller in callers) == 20
    for results in answers:
        for request, result in zip(requests * 2, results, strict=True):
            assert np.array_equal(result.state.pixels, answers[0][requests.index(request)].state.pixels)


def test_a_tools_own_failure_comes_back_and_hurts_nobody(pool):
    bright = ImageState.from_pixels(np.full((32, 32, 3), 250, np.uint8))
    good, bad, other = pool.executor().run(
        [Request(states(1)[0], "bench.broken"), Request(bright, "bench.broken"), Request(bright, TOOLS[0])]
    )
    assert good.error is None and other.error is None
    assert isinstance(bad.error, ToolFailure) and bad.error.tool == "bench.broken" and "too bright" in str(bad.error)
    assert pool.status()["services"][Service("tool", "bench.broken")]["retries"] == 0


def test_what_is_random_is_never_shared(pool):
    [state] = states(1)
    first, second = pool.executor().run([Request(state, "bench.random")] * 2)
    assert not np.array_equal(first.state.pixels, second.state.pixels) and first.state.key != second.state.key


def test_unknown_names_are_named(pool):
    with pytest.raises(UnknownToolError, match=r"noise\.gaussian25"):
        pool.executor().run([Request(states(1)[0], "noise.gaussian52")])
    with pytest.raises(IrEnvError, match="no pool named 'nobody'"):
        MCPool.connect("nobody")
    with pytest.raises(IrEnvError, match="runs already"):
        MCPool.start({}, "test")
    with pytest.raises(IrEnvError, match="does not hold"):
        pool.executor(toolbox=["tv.denoise"])
    with pytest.raises(IrEnvError, match="no setting 'max_bach'"):
        MCPool.start({"max_bach": 3})
    with pytest.raises(IrEnvError, match=r"no placement.*rain\.heavy"):
        MCPool.start({"toolbox": ["rain.heavy", "tv.denoise"], "placements": [Placement(tools=("tv.*",))]}, "uncovered")


def test_futures_and_streams(pool):
    executor = pool.executor()
    requests = [Request(state, "bench.identity") for state in states(100, 16, seed=9)]
    futures = [executor.submit(request) for request in requests]
    assert all(np.array_equal(f.result().state.pixels, r.state.pixels) for f, r in zip(futures, requests, strict=True))

    async def collect():
        return {index: result async for index, result in executor.stream(requests)}

    results = asyncio.run(collect())
    assert sorted(results) == list(range(100)) and all(result.cached for result in results.values())


def test_metrics_run_in_the_pool_and_are_kept(pool):
    suite, images = MetricSuite(["psnr", "psnry"]), states(4)
    references = [images[0].pixels, images[0].pixels, images[1].pixels, images[2].pixels]
    vectors = pool.executor().score(suite, images, references)
    wanted = suite.score([state.pixels for state in images], references)
    np.testing.assert_allclose(np.stack(vectors), wanted, rtol=1e-5)
    again = pool.executor().score(suite, images, [each.copy() for each in references])
    assert np.array_equal(np.stack(again), np.stack(vectors))
    stats = pool.status()["services"][Service("metrics", "psnr,psnry")]
    assert stats["executions"] == 4 and stats["hits"] == 4
    with pytest.raises(IrEnvError, match="there is none"):
        pool.executor().score(suite, images[:1], [None])


def test_an_environment_on_a_pool_is_the_environment(pool):
    settings = {"dataset": {"photos": "builtin", "split": "train", "crop_size": 32}, "toolbox": TOOLS, "metrics": ["psnry"]}
    rewards = []
    for executor in ("local", "pool:test"):
        process = RestorationProcess(**settings, executor=executor)
        rng = np.random.default_rng(0)
        episodes = process.start([process.dataset.draw(rng) for _ in range(4)])
        rewards.append([[outcome.reward for outcome in process.step(episodes, [step] * 4)] for step in (0, 1, 2)])
    np.testing.assert_allclose(rewards[0], rewards[1], rtol=1e-6)


def test_fast_sub_environments_go_on_while_one_waits(pool):
    from ir_env.async_vector_env import AsyncRestorationEnv

    with pytest.raises(IrEnvError, match="executor='pool'"):
        AsyncRestorationEnv(num_envs=2, toolbox=["tv.denoise"])
    env = AsyncRestorationEnv(
        num_envs=4, dataset={"split": "train", "crop_size": 32}, toolbox=TOOLS[:3], metrics=["psnry"], executor="pool:test", max_steps=3
    )
    env.async_reset(seed=0)
    first = env.recv(at_least=4)
    assert sorted(ready.env_id for ready in first) == [0, 1, 2, 3]
    # sub-environment 0 is left alone; the others finish their episodes and begin new ones
    steps = 0
    env.send({i: 0 for i in (1, 2, 3)})
    while steps < 12:
        ready = env.recv()
        steps += len(ready)
        assert all(each.env_id != 0 and each.observation["overview"].dtype == np.uint8 for each in ready)
        env.send({each.env_id: 1 for each in ready})
    with pytest.raises(IrEnvError, match="asked for"):
        env.recv(at_least=5)
    env.recv(at_least=3)
    env.close()


def kept(pool):
    """Mailboxes and bytes that it keeps for callers, and the threads of callers here."""
    status = pool.status()
    return status["mailboxes"], status["kept_bytes"], sum(thread.name == "pool connection" for thread in threading.enumerate())


def test_nothing_is_kept_for_callers_that_are_idle(pool):
    executors = [pool.executor() for _ in range(5)]
    for turn, executor in enumerate(executors):
        executor.run([Request(state, "bench.identity") for state in states(4, 64, seed=turn)])
    wait_until(lambda: kept(pool) == (0, 0, 0))
    assert all(result.error is None for result in executors[0].run([Request(state, "bench.identity") for state in states(4, seed=6)]))


def test_nothing_is_kept_for_callers_that_are_closed_or_dropped(pool, monkeypatch):
    wait_until(lambda: kept(pool) == (0, 0, 0))
    monkeypatch.setattr("tool_actors.pool.connection.IDLE_S", 3600.0)
    requests = [Request(state, "bench.identity") for state in states(4, 64, seed=7)]
    with pool.executor() as executor:
        executor.run(requests)
        mailboxes, size, threads = kept(pool)
        assert (mailboxes, threads) == (1, 2) and size >= requests[0].state.pixels.nbytes, "the last delivery"
    assert kept(pool) == (0, 0, 0)
    executor = pool.executor()
    executor.run(requests)
    assert kept(pool)[2] == 2
    del executor
    wait_until(lambda: kept(pool) == (0, 0, 0))


def test_what_waits_when_an_executor_is_closed_fails_and_its_answer_goes_nowhere(sharded, gate):
    wait_until(lambda: kept(sharded) == (0, 0, 0))
    gate.unlink(missing_ok=True)
    executor = sharded.executor()
    waiting = executor.submit(Request(states(1)[0], "bench.gate"))
    wait_until(lambda: sharded.status()["callers"] == 1)
    executor.close()
    assert isinstance(waiting.exception(PATIENCE_S), IrEnvError) and "was closed before" in str(waiting.exception())
    with pytest.raises(IrEnvError, match="executor is closed"):
        executor.run([Request(states(1)[0], "bench.gate")])
    assert kept(sharded) == (0, 0, 0) and sharded.status()["under_way"] == 1
    gate.touch()
    wait_until(lambda: sharded.status()["under_way"] == 0)
    assert kept(sharded) == (0, 0, 0)


def test_calls_of_all_callers_add_up_to_the_pools_batches(pool):
    batches = lambda: pool.status()["services"][Service("tool", "bench.identity")]["batches"]  # noqa: E731
    pool.executor().run([Request(states(1, seed=8)[0], "bench.identity")])
    before, callers = batches(), [pool.executor() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda i: callers[i].run([Request(state, "bench.identity") for state in states(20, seed=30 + i)]), range(3)))
    assert all(caller.stats.executions == 20 for caller in callers)
    calls = [caller.stats.calls for caller in callers]
    assert sum(calls) == pytest.approx(batches() - before) and min(calls) > 0 and sum(calls) < 60
    callers[0].run([Request(state, "bench.identity") for state in states(20, seed=30)])
    assert callers[0].stats.calls == calls[0] and callers[0].stats.hits == 20, "what is kept takes no call"


def test_a_tool_may_be_called_what_metrics_are(pool):
    [state], executor = states(1, seed=11), pool.executor()
    [result] = executor.run([Request(state, "psnr")])
    assert np.array_equal(result.state.pixels, state.pixels)
    [vector] = executor.score(MetricSuite(["psnr"]), [state], [states(1, seed=12)[0].pixels])
    assert vector.shape == (1,)
    services = pool.status()["services"]
    assert services[Service("tool", "psnr")]["executions"] == services[Service("metrics", "psnr")]["executions"] == 1
    assert plain(pool.status())["services"]["metrics"]["psnr"]["executions"] == 1


def test_killed_and_frozen_instances_lose_nothing(ray_cluster, tmp_path):
    """Chaos, small: ``python -m experiments.measurements.pool --only chaos`` is the large one."""
    tools = load_toolbox(TOOLS[:3])
    settings = {
        "toolbox": Toolbox([Counted(tool, tmp_path) for tool in tools]),
        "placements": [{"replicas": 2, "num_cpus": 0.1}],
        **BY_REFERENCE,
        "timeout_s": 6,
        "max_batch": 4,
    }
    requests = [Request(state, TOOLS[i % 3]) for i, state in enumerate(states(200, 48, seed=3))]
    pool, frozen = MCPool.start(settings, "chaos"), None
    try:
        wait_until(lambda: pool.status()["instances"] == 2)
        frozen, killed = pool.status()["pids"]
        os.kill(frozen, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as thread:
            answers = thread.submit(pool.executor().run, requests)
            wait_until(lambda: (tmp_path / f"{killed}.log").exists())
            os.kill(killed, signal.SIGKILL)
            results = answers.result(PATIENCE_S)
        status = pool.status()
    finally:
        pool.stop()
        if frozen is not None and os.path.exists(f"/proc/{frozen}"):
            os.kill(frozen, signal.SIGKILL)
    assert status["lost"] >= 2 and sum(stats["retries"] for stats in status["services"].values()) >= 2
    wanted = LocalExecutor(tools, cache_bytes=0).run(requests)
    for ours, theirs in zip(results, wanted, strict=True):
        assert ours.error is None and np.array_equal(ours.state.pixels, theirs.state.pixels)
    assert max(executions(tmp_path).values()) <= 3


def test_shards_answer_as_one(sharded):
    requests = [Request(state, "bench.identity") for state in states(40)]
    results = MCPool.connect("sharded").executor().run(requests)
    assert all(np.array_equal(result.state.pixels, request.state.pixels) for result, request in zip(results, requests, strict=True))
    status = sharded.status()
    assert status["shards"] == 2 and len(status["pids"]) == 2
    assert status["services"][Service("tool", "bench.identity")]["executions"] == 40


def test_a_lost_dispatcher_is_started_again_and_asked_again(sharded, gate):
    """What is under way is asked for again; so is what a new connection asks for."""
    gate.unlink(missing_ok=True)
    executor, first = sharded.executor(), sharded.status()["dispatcher_pids"]
    requests = [Request(state, "bench.gate") for state in states(20, seed=2)]
    answers = [executor.submit(request) for request in requests]
    wait_until(lambda: sharded.status()["under_way"] == 20)
    os.kill(first[0], signal.SIGKILL)
    gate.touch()
    results = [answer.result(PATIENCE_S) for answer in answers] + sharded.executor().run(requests)
    assert all(np.array_equal(result.state.pixels, request.state.pixels) for result, request in zip(results, requests * 2, strict=True))
    second = sharded.status()["dispatcher_pids"]
    assert second[0] != first[0] and second[1] == first[1]


# -- pixels by reference -----------------------------------------------------------------------------------------------------------


def test_big_images_go_by_reference_and_are_the_same(pool):
    """Some by reference, some not; a small one that becomes big; what is kept; metrics."""
    local, remote, tools = LocalExecutor(load_toolbox(TOOLS)), pool.executor(), [TOOLS[0], TOOLS[2], "x4.fidelity"]
    images = [*states(2, BIG, seed=40), *states(1, 32, seed=41), *states(1, 80, seed=42)]
    assert images[0].pixels.nbytes >= pool.config.reference_bytes > images[3].pixels.nbytes
    requests = [Request(state, tool) for state in images for tool in tools[: 2 if state.shape[0] == BIG else 3]]
    for turn in range(2):
        for ours, theirs in zip(remote.run(requests), local.run(requests), strict=True):
            assert np.array_equal(ours.state.pixels, theirs.state.pixels) and ours.state.key == theirs.state.key
            assert ours.cached == bool(turn) and ours.state.pixels.flags.owndata, "no view of what the object store would then keep"
    suite, references = MetricSuite(["psnr"]), [images[1].pixels, images[0].pixels]
    wanted = suite.score([state.pixels for state in images[:2]], references)
    np.testing.assert_allclose(np.stack(remote.score(suite, images[:2], references)), wanted, rtol=1e-5)


def test_a_gateway_serves_it(pool):
    """All that a gateway answers is in test_gateway.py; this is a real pool behind one."""
    with Gateway(pool, port=0, token="word") as gateway:
        thread = threading.Thread(target=gateway.serve_forever, args=(0.02,))
        thread.start()
        try:
            remote, requests = RemoteExecutor(gateway.url, token="word"), [Request(state, TOOLS[0]) for state in states(4, seed=60)]
            results, again = remote.run(requests), remote.run(requests)
            with urllib.request.urlopen(
                urllib.request.Request(f"{gateway.url}/status", headers={"Authorization": "Bearer word"})
            ) as answer:
                assert json.loads(answer.read())["services"]["tool"][TOOLS[0]]["hits"] >= 4
        finally:
            gateway.shutdown()
            thread.join()
    wanted = LocalExecutor(load_toolbox(TOOLS)).run(requests)
    for ours, theirs, kept_one in zip(results, wanted, again, strict=True):
        assert np.array_equal(ours.state.pixels, theirs.state.pixels) and ours.state.key == theirs.state.key and kept_one.cached


def in_store():
    """Bytes of Ray's object store that are in use."""
    import ray

    return ray.cluster_resources()["object_store_memory"] - ray.available_resources().get("object_store_memory", 0)


def test_the_object_store_holds_no_more_than_the_cache(ray_cluster):
    """Of many requests; and nothing when the pool is gone."""
    bound = 1 << 20
    settings = {"toolbox": Toolbox([Identity()]), "placements": [{"replicas": 1, "num_cpus": 0.1}], "cache_bytes": bound, **BY_REFERENCE}
    pool, before = MCPool.start({**settings, "max_in_flight": 8}, "bounded"), in_store()
    try:
        executor = pool.executor()
        for turn in range(12):
            requests = [Request(state, "bench.identity") for state in states(8, BIG, seed=100 + turn)]
            assert all(result.error is None for result in executor.run(requests))
        assert 0 < pool.status()["cache_bytes"] <= bound
        executor.close()
        wait_until(lambda: in_store() - before <= bound)
    finally:
        pool.stop()
    wait_until(lambda: in_store() <= before)


def test_an_instance_that_dies_with_references_in_its_hands_is_replaced(sharded, gate):
    gate.unlink(missing_ok=True)
    executor = sharded.executor()
    requests = [Request(state, "bench.gate") for state in states(6, BIG, seed=50)]
    answers = [executor.submit(request) for request in requests]
    wait_until(lambda: sharded.status()["busy"] == 2)
    os.kill(sharded.status()["pids"][0], signal.SIGKILL)
    wait_until(lambda: sharded.status()["lost"] >= 1)
    gate.touch()
    results = [answer.result(PATIENCE_S) for answer in answers]
    assert all(np.array_equal(result.state.pixels, request.state.pixels) for result, request in zip(results, requests, strict=True))
    assert sharded.status()["services"][Service("tool", "bench.gate")]["retries"] >= 1


def test_settings_are_checked():
    for wrong, message in (
        ({"placements": [{"replicas": 0}]}, "replicas"),
        ({"placements": [{"tools": [], "scores": False}]}, "does nothing"),
        ({"max_batch": 0}, "max_batch"),
        ({"timeout_s": 0}, "positive"),
        ({"reference_bytes": 10}, "reference_bytes"),
        ({"shards": 3, "placements": [{"replicas": 2}]}, "shards"),
    ):
        with pytest.raises(IrEnvError, match=message):
            PoolConfig.of(wrong)
