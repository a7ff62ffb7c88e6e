"""The pool when it loses a node of its cluster.

The nodes are raylets on this machine. Ray connects a process to one cluster only, and other tests hold one: so the scenario is this file,
run as a script.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}
TOOLS = ["noise.gaussian25", "jpeg.quality15", "gamma.brighten"]
COUNT = 240
PATIENCE_S = 120.0
"""For instances to start, and for all answers of a stream."""


def test_a_lost_node_loses_no_request_and_is_used_again_when_it_is_back():
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        # Ray's files are in a folder of their own, so that nobody else takes this cluster for the machine's
        environment = {**os.environ, "RAY_TMPDIR": folder, "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
        process = subprocess.run([sys.executable, __file__, folder], capture_output=True, text=True, env=environment, timeout=280)
    assert process.returncode == 0, process.stderr[-4000:]
    figures = json.loads(process.stdout.splitlines()[-1])
    for loss in figures["losses"]:
        assert loss["begun"] < COUNT / 2, "the node was lost too late"
        assert loss["failed"] == [] and loss["wrong"] == 0
        assert loss["instances"] == 1, "the node that is left holds one"
    first, second = figures["losses"]
    assert first["dispatcher_lost"] and not second["dispatcher_lost"]
    assert second["instances_lost"] == 1 and second["retries"] >= 1
    assert 2 <= figures["most_executions"] <= 3


def scenario(folder: Path) -> dict:
    """Two nodes, one instance on each. One node is lost in the middle of a stream of requests, with the dispatcher; it comes back, and is
    lost again, without the dispatcher."""
    import numpy as np
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from experiments.bench.pool_tools import Counted, executions
    from tool_actors.executor import ImageState, LocalExecutor, Request
    from tool_actors.pool import MCPool
    from tool_actors.threads import limit_threads
    from tool_actors.toolbox import Toolbox
    from tool_actors.toolboxes import load_toolbox

    class Slow(Counted):
        """So slow that a stream is under way for some seconds."""

        def __call__(self, images):
            time.sleep(0.02 * len(images))
            return super().__call__(images)

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

    def lose(node, seed: int) -> dict:
        images = np.random.default_rng(seed).integers(0, 256, (COUNT, 96, 96, 3), np.uint8)
        requests = [Request(ImageState.from_pixels(image), TOOLS[i % 3]) for i, image in enumerate(images)]
        before, status = begun(), pool.status()
        grown = lambda: [count - before.get(pid, 0) for pid, count in begun().items() if count > before.get(pid, 0)]  # noqa: E731
        stream = caller.submit(executor.run, requests)
        wait_until(lambda: len(grown()) == 2 and sum(grown()) > COUNT / 8, "both instances are at work")
        count = sum(grown())
        cluster.remove_node(node, allow_graceful=False)
        say("a node is lost")
        results = stream.result(PATIENCE_S)
        say("all requests are answered")
        after, wanted = pool.status(), local.run(requests)
        retries = [sum(service["retries"] for service in each["services"].values()) for each in (status, after)]
        return {
            "begun": count,
            "failed": [str(result.error) for result in results if result.error is not None],
            "wrong": sum(
                ours.error is None and not np.array_equal(ours.state.pixels, theirs.state.pixels)
                for ours, theirs in zip(results, wanted, strict=True)
            ),
            "instances": after["instances"],
            "instances_lost": after["lost"] - status["lost"],
            "retries": retries[1] - retries[0],
            "dispatcher_lost": after["dispatcher_pids"] != status["dispatcher_pids"],
        }

    start = time.monotonic()
    limit_threads(1)
    tools = load_toolbox(TOOLS)
    local, caller = LocalExecutor(tools, cache_bytes=0), ThreadPoolExecutor(1)
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    say("the head runs")
    worker = cluster.add_node(**NODE)
    settings = {"toolbox": Toolbox([Slow(tool, folder) for tool in tools]), "placements": [{"replicas": 2, "num_cpus": 1}], "max_batch": 4}
    # Ray starts an actor that needs no CPU on any node; here it shall be the one that will be lost
    there = NodeAffinitySchedulingStrategy(worker.node_id, soft=True)
    with patch("ray.remote", ray.remote(scheduling_strategy=there)):
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


if __name__ == "__main__":
    print(json.dumps(scenario(Path(sys.argv[1]))))
