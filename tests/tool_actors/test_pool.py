"""The pool on real Ray actors, small."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from experiments.measurements.pool_tools import Counted, Identity, executions
from ir_env.metrics import MetricSuite
from ir_env.process import RestorationProcess
from tool_actors.errors import IrEnvError, ToolFailure, UnknownToolError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.pool import MCPool, Placement, PoolConfig
from tool_actors.pool.messages import Service
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox

TOOLS = ["noise.gaussian25", "jpeg.quality15", "gamma.brighten", "x4.fidelity"]


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


def states(count, side=32, seed=0):
    return [ImageState.from_pixels(each) for each in np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)]


@pytest.fixture(scope="module")
def toolbox():
    return Toolbox([*load_toolbox(TOOLS), Broken(), Random(), Identity()])


@pytest.fixture(scope="module")
def pool(ray_cluster, toolbox):
    pool = MCPool.start({"toolbox": toolbox, "placements": [{"replicas": 1, "num_cpus": 0.5}], "max_in_flight": 32}, "test")
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
    suite, images = MetricSuite(["psnry", "ssim"]), states(4)
    references = [images[0].pixels, images[0].pixels, images[1].pixels, images[2].pixels]
    vectors = pool.executor().score(suite, images, references)
    wanted = suite.score([state.pixels for state in images], references)
    np.testing.assert_allclose(np.stack(vectors), wanted, rtol=1e-5)
    again = pool.executor().score(suite, images, [each.copy() for each in references])
    assert np.array_equal(np.stack(again), np.stack(vectors))
    stats = pool.status()["services"][Service("metrics", "psnry,ssim")]
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
        rewards.append([process.step(episodes, [step] * 4) for step in (0, 1, 2)])
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
        assert all(each.env_id != 0 and each.observation["image"].dtype == np.uint8 for each in ready)
        env.send({each.env_id: 1 for each in ready})
    with pytest.raises(IrEnvError, match="asked for"):
        env.recv(at_least=5)
    env.recv(at_least=3)
    env.close()


def test_killed_and_frozen_instances_lose_nothing(ray_cluster, tmp_path):
    """Chaos, small: ``python -m experiments.measurements.pool --only chaos`` is the large one."""
    tools = load_toolbox(TOOLS[:3])
    settings = {
        "toolbox": Toolbox([Counted(tool, tmp_path) for tool in tools]),
        "placements": [{"replicas": 2, "num_cpus": 0.1}],
        "timeout_s": 4,
        "max_batch": 4,
    }
    pool = MCPool.start(settings, "chaos")
    done, killed, frozen = threading.Event(), [], []
    try:
        requests = [Request(state, TOOLS[i % 3]) for i, state in enumerate(states(600, 48, seed=3))]

        def disturb():
            while not done.wait(0.4) and len(killed) < 3:
                fresh = [pid for pid in pool.status()["pids"] if pid not in killed + frozen]
                if fresh and not frozen:
                    frozen.append(fresh[0])
                    os.kill(fresh[0], signal.SIGSTOP)
                elif fresh:
                    killed.append(fresh[-1])
                    os.kill(fresh[-1], signal.SIGKILL)

        thread = threading.Thread(target=disturb)
        thread.start()
        executor = pool.executor()
        results = executor.run(requests)
        while len(killed) < 1:  # a fast machine may be done before anything was killed
            time.sleep(0.1)
        results += executor.run([Request(state, TOOLS[0]) for state in states(100, 48, seed=4)])
        done.set()
        thread.join()
        assert pool.status()["lost"] >= 1
    finally:
        done.set()
        pool.stop()
        for pid in frozen:
            if os.path.exists(f"/proc/{pid}"):
                os.kill(pid, signal.SIGKILL)
    requests += [Request(state, TOOLS[0]) for state in states(100, 48, seed=4)]
    wanted = LocalExecutor(tools, cache_bytes=0).run(requests)
    for ours, theirs in zip(results, wanted, strict=True):
        assert ours.error is None and np.array_equal(ours.state.pixels, theirs.state.pixels)
    assert max(executions(tmp_path).values()) <= 3


def test_a_lost_dispatcher_is_started_again_and_asked_again(ray_cluster):
    pool = MCPool.start({"toolbox": Toolbox([Identity()]), "placements": [{"replicas": 1, "num_cpus": 0.1}]}, "restarted")
    try:
        executor = pool.executor()
        executor.run([Request(states(1)[0], "bench.identity")])
        os.kill(pool.status()["dispatcher_pids"][0], signal.SIGKILL)
        results = executor.run([Request(state, "bench.identity") for state in states(50, seed=2)])
        assert all(result.error is None for result in results)
    finally:
        pool.stop()


def test_shards_answer_as_one(ray_cluster):
    config = PoolConfig(toolbox=Toolbox([Identity()]), placements=(Placement(replicas=2, num_cpus=0.1),), shards=2)
    pool = MCPool.start(config, "sharded")
    try:
        requests = [Request(state, "bench.identity") for state in states(40)]
        results = MCPool.connect("sharded").executor().run(requests)
        assert all(np.array_equal(result.state.pixels, request.state.pixels) for result, request in zip(results, requests, strict=True))
        status = pool.status()
        assert (
            status["shards"] == 2 and status["services"][Service("tool", "bench.identity")]["executions"] == 40 and len(status["pids"]) == 2
        )
    finally:
        pool.stop()


def test_settings_are_checked():
    for wrong, message in (
        ({"placements": [{"replicas": 0}]}, "replicas"),
        ({"placements": [{"tools": [], "scores": False}]}, "does nothing"),
        ({"max_batch": 0}, "max_batch"),
        ({"timeout_s": 0}, "positive"),
        ({"shards": 3, "placements": [{"replicas": 2}]}, "shards"),
    ):
        with pytest.raises(IrEnvError, match=message):
            PoolConfig.of(wrong)
