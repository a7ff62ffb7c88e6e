"""The pool when it loses a node of its cluster.

The nodes are raylets on this machine. Ray connects a process to one cluster only, and other tests hold one: so the scenario is this file,
run as a script.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import ray
from ray._private import services
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError, ObjectLostError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from experiments.measurements.pool_tools import Counted, executions
from tool_actors.executor import ImageState, Request
from tool_actors.pool import MCPool, PoolConfig, PoolFailure
from tool_actors.pool.connection import Connection
from tool_actors.pool.dispatcher import Dispatcher
from tool_actors.pool.messages import UNKNOWN, Delivery, Outcome, Service, Work
from tool_actors.pool.pixels import PixelsLost
from tool_actors.toolbox import Tool, Toolbox, ToolSpec

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
TOOLS = ["bench.one", "bench.two", "bench.three"]
COUNT = 40
PATIENCE_S = 300.0
"""For instances to start, and for all answers of a stream, on a busy machine."""


@pytest.mark.timeout(900)
@pytest.mark.slow  # a cluster of several nodes takes most of a minute to start, and to notice that one is gone
def test_a_lost_node_loses_no_request_and_is_used_again_when_it_is_back():
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # Ray's files are in a folder of their own, so that nobody else takes this cluster for the machine's
        environment = {**os.environ, "RAY_TMPDIR": folder}
        process = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True, env=environment, timeout=840)
    assert process.returncode == 0, process.stderr[-4000:]
    figures = json.loads(process.stdout.splitlines()[-1])
    for loss in figures["losses"]:
        assert loss["begun"] <= 8, "a batch on each instance"
        assert loss["failed"] == [] and loss["wrong"] == 0
        assert loss["instances"] == 1, "the node that is left holds one"
    first, second = figures["losses"]
    assert first["dispatcher_lost"] and not second["dispatcher_lost"]
    assert second["instances_lost"] == 1 and second["retries"] >= 1
    assert figures["most_executions"] <= 3


class Scripted:
    """A dispatcher whose deliveries are a list: what :meth:`collect` returns or raises, one after the other."""

    def __init__(self, deliveries, ready=None):
        self.deliveries, self.failure, self.posted, self.works = list(deliveries), ready, [], []
        self.begun, self.released = threading.Event(), False

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *arguments: partial(getattr(self, f"on_{method}"), *arguments))

    def on_ready(self):
        if self.failure is not None:
            raise self.failure

    def on_post(self, address, works, scorers):
        self.posted.append(list(works))
        self.works.extend(works.values())
        self.begun.set()

    def on_collect(self, address, received):
        self.begun.wait()
        self.begun.clear()
        delivery = self.deliveries.pop(0)
        if isinstance(delivery, Exception):
            raise delivery
        return delivery

    def on_release(self, address):
        self.released = True


def ask(monkeypatch, dispatcher, runs=True) -> Outcome:
    """The outcome of a job on a connection to a scripted dispatcher; whether Ray still runs when it ends."""
    monkeypatch.setattr("tool_actors.pool.connection.ray", SimpleNamespace(get=lambda call: call(), is_initialized=lambda: runs))
    monkeypatch.setattr("tool_actors.pool.connection.PAUSE_S", 0.001)
    connection = Connection(dispatcher, PoolConfig(start_timeout_s=0.1))
    try:
        return connection.send(Work(Service("tool", "any"), None, None, 0)).result(PATIENCE_S)
    finally:
        connection.close()


ANSWER = Delivery(1, {1: Outcome("answer")})


@pytest.mark.parametrize(
    "loss",
    [ActorUnavailableError("its node is lost", b"0" * 16), ObjectLostError("0" * 56, None, ""), UNKNOWN],
    ids=["lost", "lost with an answer in its memory", "back before anybody noticed"],
)
def test_what_a_lost_dispatcher_was_sent_is_sent_again(monkeypatch, loss):
    dispatcher = Scripted([loss, loss, ANSWER])
    assert ask(monkeypatch, dispatcher).value == "answer"
    assert dispatcher.posted == [[1], [1], [1]]


def test_pixels_that_were_lost_are_asked_for_again_and_not_for_ever(monkeypatch):
    """Their node was lost, with what an instance had made; or their caller, with what an identical request had sent."""
    lost = PixelsLost("gone")
    monkeypatch.setattr("tool_actors.pool.connection.fetch", lambda values: [lost if value == "lost" else value for value in values])
    dispatcher = Scripted([Delivery(1, {1: Outcome("lost")}), Delivery(2, {2: Outcome(error=lost)}), Delivery(3, {3: Outcome("answer")})])
    assert ask(monkeypatch, dispatcher).value == "answer"
    assert dispatcher.posted == [[1], [2], [3]] and [work.again for work in dispatcher.works] == [False, True, True]
    outcome = ask(monkeypatch, Scripted([Delivery(number, {number: Outcome("lost")}) for number in (1, 2, 3)]))
    assert outcome.error is lost and outcome.value is None


@pytest.mark.parametrize("runs", [True, False])
def test_the_dispatcher_is_told_of_the_end_unless_that_would_start_ray_again(monkeypatch, runs):
    dispatcher = Scripted([ANSWER])
    ask(monkeypatch, dispatcher, runs)
    assert dispatcher.released == runs


def test_a_dispatcher_that_does_not_come_back_or_cannot_start_is_named(monkeypatch):
    loss = ActorUnavailableError("its node is lost", b"0" * 16)
    for deliveries, ready, message in (
        ([loss] * 3, None, "does not answer"),
        ([loss], loss, "does not answer"),
        ([loss], PoolFailure("no room"), "no room"),
    ):
        with pytest.raises(PoolFailure, match=message):
            ask(monkeypatch, Scripted(deliveries, ready))


def test_a_dispatcher_that_had_no_room_starts_when_there_is_and_grows_with_the_cluster(monkeypatch):
    class Instance:
        pid, specs = 0, []

        async def ready(self):
            if room == 0:
                raise PoolFailure("no room")

        def kill(self): ...

    async def main():
        nonlocal room
        dispatcher = Dispatcher([PoolConfig(toolbox=["tv.denoise"])], 0)
        with pytest.raises(PoolFailure, match="no room"):
            await dispatcher.ready()
        room = 1
        await dispatcher.ready()
        assert dispatcher._scheduler.bounds == [(1, 1)]
        room = 3
        await asyncio.sleep(0.1)
        assert dispatcher._scheduler.bounds == [(1, 3)]
        await dispatcher.stop()

    room = 0
    monkeypatch.setattr("tool_actors.pool.dispatcher.ROOM_S", 0.01)
    monkeypatch.setattr("tool_actors.pool.dispatcher._room", lambda placement: room)
    monkeypatch.setattr(Dispatcher, "_launch", lambda self, placement: Instance())
    asyncio.run(main())


def scenario(folder: Path) -> dict:
    """Two nodes, one instance on each. One node is lost in the middle of a stream of requests, with the dispatcher; it comes back, and is
    lost again, without the dispatcher."""

    class Negative(Tool):
        """Works while a file is there, and waits for it: a node is lost while its instance is at work."""

        def __init__(self, name: str):
            self.spec = ToolSpec(name, "denoise", name)

        def __call__(self, images):
            while images.any() and not gate.exists():
                time.sleep(0.01)
            return 1 - images

    def say(event: str) -> None:
        print(f"{time.monotonic() - start:5.1f} s: {event}", file=sys.stderr)

    def wait_until(condition, event: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"waited in vain: {event}"
            time.sleep(0.05)
        say(event)

    def begun() -> dict[str, int]:
        """Images per instance, by its pid."""
        return {path.stem: path.read_text().count("\n") for path in folder.glob("*.log")}

    def runs(pid: str) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
        except FileNotFoundError:
            return False

    def lose(node, seed: int) -> dict:
        images = np.random.default_rng(seed).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
        gate.unlink(missing_ok=True)
        before, status = begun(), pool.status()
        grown = lambda: {pid: count - before.get(pid, 0) for pid, count in begun().items() if count > before.get(pid, 0)}  # noqa: E731
        answers = [executor.submit(Request(ImageState.from_pixels(image), TOOLS[i % 3])) for i, image in enumerate(images)]
        wait_until(lambda: len(grown()) == 2, "both instances are at work")
        at_work = grown()
        cluster.remove_node(node, allow_graceful=False)
        wait_until(lambda: not all(map(runs, at_work)), "a node is lost, and its instance with it")
        gate.touch()
        results = [answer.result(PATIENCE_S) for answer in answers]
        say("all requests are answered")
        after = pool.status()
        retries = [sum(service["retries"] for service in each["services"].values()) for each in (status, after)]
        return {
            "begun": sum(at_work.values()),
            "failed": [str(result.error) for result in results if result.error is not None],
            "wrong": sum(
                result.error is None and not np.array_equal(result.state.pixels, 255 - image)
                for result, image in zip(results, images, strict=True)
            ),
            "instances": after["instances"],
            "instances_lost": after["lost"] - status["lost"],
            "retries": retries[1] - retries[0],
            "dispatcher_lost": after["dispatcher_pids"] != status["dispatcher_pids"],
        }

    start, gate = time.monotonic(), folder / "open"
    # a lost node is found out after 5 s, not 15
    head = {**NODE, "include_dashboard": False, "_system_config": {"health_check_period_ms": 1000}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    worker = cluster.add_node(**NODE)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    say("two nodes run")
    settings = {
        "toolbox": Toolbox([Counted(Negative(name), folder) for name in TOOLS]),
        "placements": [{"replicas": 2, "num_cpus": 1}],
        "max_batch": 4,
        "max_in_flight": COUNT,
    }
    # Ray starts an actor that needs nothing on any node; one that needs a byte goes where it is told, here to the node that will be lost
    there = NodeAffinitySchedulingStrategy(worker.node_id, soft=True)
    place = ray.remote(num_cpus=0, memory=1, scheduling_strategy=there)(lambda: ray.get_runtime_context().get_node_id())
    wait_until(lambda: ray.get(place.remote()) == worker.node_id, "the other node is known")
    with patch("ray.remote", ray.remote(memory=1, scheduling_strategy=there)):
        pool = MCPool.start(settings, "nodes")
    say("the pool runs")
    executor = pool.executor()
    losses = []
    for seed in range(2):
        wait_until(lambda: pool.status()["instances"] == 2, "there are two instances")
        losses.append(lose(worker, seed))
        worker = cluster.add_node(**NODE) if seed == 0 else None
    figures = {"losses": losses, "most_executions": max(executions(folder).values())}
    pool.stop()
    ray.shutdown()
    cluster.shutdown()
    say("the end")
    return figures


def patient_get_node(*arguments, get_node=services.get_node):
    """Ray gives a node 30 s to start, whatever else the machine is doing."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return get_node(*arguments)
        except RuntimeError:
            if time.monotonic() > end:
                raise


if __name__ == "__main__":
    with patch.object(services, "get_node", patient_get_node):
        print(json.dumps(scenario(Path(sys.argv[1]))))
