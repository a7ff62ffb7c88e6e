"""Sub-environments that do not wait for one another, on tools of this process that wait for the test; on a pool: ``test_pool.py``."""

import threading

import pytest

from ir_env.async_vector_env import AsyncRestorationEnv
from tool_actors.errors import IrEnvError
from tool_actors.executor import LocalExecutor
from tool_actors.toolboxes import load_toolbox

PATIENCE_S = 60.0
TOOLS = ["tv.denoise", "nlm.light"]


class Gated:
    """A local executor that threads may share. The tools named in ``shut`` wait; those named in ``broken`` raise."""

    def __init__(self, toolbox):
        self.local, self.toolbox, self.quantize = LocalExecutor(toolbox), toolbox, "uint8"
        self.lock, self.open, self.shut, self.broken = threading.Lock(), threading.Event(), set(), set()

    @property
    def stats(self):
        return self.local.stats

    def run(self, requests):
        tools = {request.tool for request in requests}
        if tools & self.shut:
            assert self.open.wait(PATIENCE_S)
        if tools & self.broken:
            raise IrEnvError("the pool does not answer")
        with self.lock:
            return self.local.run(requests)

    def score(self, *arguments):
        with self.lock:
            return self.local.score(*arguments)


@pytest.fixture
def env():
    env = AsyncRestorationEnv(3, executor=Gated(load_toolbox(TOOLS)), dataset={"crop_size": 32}, metrics=["psnr"])
    yield env
    env.process.executor.open.set()
    env.close()


def begin(env):
    env.async_reset(seed=0)
    assert sorted(ready.env_id for ready in env.recv(3, PATIENCE_S)) == [0, 1, 2]


def test_a_time_out_loses_no_answer(env):
    begin(env)
    env.process.executor.shut = {TOOLS[1]}
    env.send({0: 0, 1: 1, 2: 0})
    while env._ready.qsize() < 2:
        threading.Event().wait(0.005)
    with pytest.raises(IrEnvError, match="2 of 3 sub-environments became ready within 0 s"):
        env.recv(3, 0)
    with pytest.raises(IrEnvError, match="sub-environment 0 is under way"):
        env.send({0: 0})
    assert sorted(ready.env_id for ready in env.recv(2, 0)) == [0, 2]
    env.process.executor.open.set()
    [last] = env.recv(1, PATIENCE_S)
    assert last.env_id == 1 and last.info["tool"] == TOOLS[1]
    with pytest.raises(IrEnvError, match="0 are under way"):
        env.recv()


def test_an_error_is_raised_once_names_its_sub_environment_and_loses_nothing_of_the_others(env):
    begin(env)
    env.process.executor.broken = {TOOLS[1]}
    for env_id, action in ((0, 0), (1, 1), (2, 0)):
        # one after the other, so that the failure lies between the others
        env.send({env_id: action})
        while env._ready.qsize() <= env_id:
            threading.Event().wait(0.005)
    with pytest.raises(IrEnvError, match="sub-environment 1 failed: the pool does not answer") as caught:
        env.recv(3, PATIENCE_S)
    assert isinstance(caught.value.__cause__, IrEnvError)
    assert [ready.env_id for ready in env.recv(2, PATIENCE_S)] == [0, 2]
    # it may be used again, and so may all
    group = env.episodes[1].sample, env._counts[1]
    env.send({1: 0})
    [again] = env.recv(1, PATIENCE_S)
    assert again.env_id == 1 and again.info["tool"] == "" and not again.terminated and env._counts[1] == group[1] + 1
    env.send({1: 0})
    assert env.recv(1, PATIENCE_S)[0].info["tool"] == TOOLS[0]
    begin(env)


def test_sub_environments_that_cannot_begin_may_try_again(env):
    env.async_reset(seed=0, options={"image": "no such picture.png"})
    failed = set()
    for _ in range(3):
        with pytest.raises(IrEnvError, match="no such picture") as caught:
            env.recv(1, PATIENCE_S)
        failed |= {env_id for env_id in range(3) if f"sub-environment {env_id} failed" in str(caught.value)}
    assert failed == {0, 1, 2}
    env.send({0: 0})
    assert env.recv(1, PATIENCE_S)[0].observation["overview"].any()
