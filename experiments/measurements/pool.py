"""MC-Pool measured: against other ways to serve tools, alone, under fire, and simulated at the size of a cluster.

    uv run --extra bench python -m experiments.measurements.pool --json pool.json
    python -m experiments.measurements.pool --only chaos memory

Parts: ``executors`` (five ways to run the rollouts of a GRPO iteration, side by side), ``throughput`` (against a plain loop, and the
overhead of a lone request), ``scaling`` (two instances over one), ``sleeping`` (32 instances that sleep as GPU tools would), ``chaos`` (an
instance killed every second, one frozen), ``exhaustive`` (all plans over four tools), ``memory`` (100,000 requests), ``callers`` (what
stays of 50 callers), ``capacity`` (requests per second of one dispatcher), ``references`` (big images in messages and by reference),
``simulation`` (32 to 1,024 GPUs in virtual time, with the overhead that the last two measured).

Instances compute on one thread each. Ray runs its workers at a lower priority than other programs: measure on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.cli.common import guarded, prepare_ray
from experiments.measurements.pool_rivals import HttpWorkers, LockedActors, Pooled, RayServe, Rival, SubprocessPerCall, wait_for_instances
from experiments.measurements.pool_simulation import rows as simulated_rows
from experiments.measurements.pool_tools import Counted, Identity, Sleeping, executions
from ir_env.datasets import load_dataset
from ir_env.datasets.base import fixed_samples
from tool_actors.errors import IrEnvError
from tool_actors.executor import ImageState, LocalExecutor, Request, run_tool
from tool_actors.tasks import TASK_OF
from tool_actors.threads import limit_threads
from tool_actors.toolbox import Toolbox
from tool_actors.toolboxes import load_toolbox

IMAGES, ROLLOUTS, ROUNDS = 16, 8, 5
OUT_OF_SCOPE = 0.3
"""Share of rollouts with a task whose degradation is not there."""
IDENTICAL = 0.35
"""Share of rollouts of a group that repeat another's trajectory (TIR-Agent, section 3.4)."""
CORES = 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts to run")
    parser.add_argument("--side", type=int, default=128, help="of the images")
    parser.add_argument("--subprocess-calls", type=int, default=12, help="calls of the slowest way to measure; the rest is extrapolated")
    parser.add_argument("--any-tool", action="store_true", help="rollouts draw from the whole toolbox, so that they share less")
    parser.add_argument("--requests", type=int, default=100_000, help="of the memory part")
    parser.add_argument("--json", type=Path, help="also write the figures here, part by part")
    options = parser.parse_args(arguments)
    prepare_ray()
    limit_threads(1)
    import ray

    ray.init(address="local", num_cpus=64, include_dashboard=False, log_to_driver=False, logging_level="error")
    console = Console()
    report: dict = {}
    try:
        for part in options.only:
            console.rule(part)
            report[part] = PARTS[part](options, console, report)
            if options.json:
                options.json.write_text(json.dumps(report, indent=2))
    finally:
        ray.shutdown()
    return 0


# -- against others ----------------------------------------------------------------------------------------------------------------


def executors(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """The rollouts of one GRPO iteration, 128 at once, each asking for its next tool with the last one's result: median of rounds."""
    states, plans = workload(options.side, options.any_tool)
    total = sum(map(len, plans))
    local = LocalExecutor(load_toolbox("default"))
    # other pixels every round, so that no cache remembers the last one
    rounds = [[ImageState.from_pixels(np.roll(state.pixels, 5 * turn, axis=1)) for state in states] for turn in range(ROUNDS)]
    references = [[_chain(local, images[index // ROLLOUTS], plan) for index, plan in enumerate(plans)] for images in rounds]
    makers: list[Callable[[], Rival]] = [
        lambda: SubprocessPerCall(CORES),
        lambda: HttpWorkers(CORES),
        lambda: LockedActors(CORES),
        lambda: RayServe(CORES, 16),
        lambda: Pooled(CORES, 16),
    ]
    results: list[dict[str, Any]] = []
    for make in makers:
        try:
            rival = make()
        except ImportError as error:
            raise IrEnvError(f"Ray Serve is not installed ({error}): run with `uv run --extra bench`") from error
        try:
            if isinstance(rival, SubprocessPerCall):
                calls = [(states[index // ROLLOUTS], plan[0]) for index, plan in enumerate(plans)][
                    :: len(plans) // options.subprocess_calls
                ]
                start = time.perf_counter()
                with ThreadPoolExecutor(CORES) as threads:
                    list(threads.map(lambda call, rival=rival: rival.call(*call), calls))
                seconds = (time.perf_counter() - start) * total / len(calls)
                results.append({"executor": rival.name, "seconds": seconds, "executions": total, "extrapolated_from": len(calls)})
                continue
            for tool in load_toolbox("default").names:  # every instance has run every tool, nobody pays for loading
                with ThreadPoolExecutor(4 * CORES) as threads:
                    list(threads.map(lambda _, tool=tool, rival=rival: rival.call(_noise(options.side), tool), range(4 * CORES)))
            before, taken, wrong = rival.executions, [], 0
            for images, reference in zip(rounds, references, strict=True):
                start = time.perf_counter()
                with ThreadPoolExecutor(len(plans)) as threads:
                    jobs = [(images[index // ROLLOUTS], plan) for index, plan in enumerate(plans)]
                    ends = list(threads.map(lambda job, rival=rival: _rollout(rival, *job), jobs))
                taken.append(time.perf_counter() - start)
                wrong += sum(not np.array_equal(end.pixels, wanted.pixels) for end, wanted in zip(ends, reference, strict=True))
            executions = (rival.executions - before) // ROUNDS
            row = {
                "executor": rival.name,
                "seconds": float(np.median(taken)),
                "executions": executions,
                "rounds": taken,
                "wrong_images": wrong,
            }
            results.append(row)
        finally:
            rival.close()
    pool = results[-1]["seconds"]
    table = Table("executor", "seconds", "executions", "MC-Pool is faster by", "images that differ from local", title=f"{total} calls")
    for row in results:
        row["ratio"] = row["seconds"] / pool
        note = f" (from {row['extrapolated_from']} calls)" if "extrapolated_from" in row else ""
        wrong = str(row.get("wrong_images", ""))
        table.add_row(row["executor"], f"{row['seconds']:.2f}{note}", str(row["executions"]), f"{row['ratio']:.2f}", wrong)
    console.print(table)
    identical = 1 - len({(index // ROLLOUTS, plan) for index, plan in enumerate(plans)}) / len(plans)
    console.print(
        f"{len(plans)} rollouts of {IMAGES} images, {identical:.0%} repeat another of their group; {options.side} px; {CORES} instances"
    )
    return {"calls": total, "identical": identical, "rows": results}


def workload(side: int, any_tool: bool = False, seed: int = 0) -> tuple[list[ImageState], list[tuple[str, ...]]]:
    """Degraded images, and a plan per rollout, in the order of groups.

    As of a policy that perceives the degradations: the rollouts of an image undo them in any order, with any tool of the task, sometimes
    with a further one; so many of them as TIR-Agent measured are identical, the others differ.

    Args:
        side: of the images.
        any_tool: draw from the whole toolbox instead.
        seed: of all of it.
    """
    dataset = load_dataset({"photos": "builtin", "split": "heldout", "crop_size": side, "combos": "A,B,C"})
    samples = [sample for sample in fixed_samples(dataset, 6 * IMAGES, seed) if "low_resolution" not in sample.combo][:IMAGES]
    states = [ImageState.from_pixels(dataset.load(sample).degraded) for sample in samples]
    rng = np.random.default_rng(seed)
    toolbox = [tool.spec for tool in load_toolbox("default") if tool.spec.scale == 1]
    plans: list[tuple[str, ...]] = []
    repeats = round(IDENTICAL * IMAGES * ROLLOUTS)
    repeating = set(rng.choice([i for i in range(IMAGES * ROLLOUTS) if i % ROLLOUTS], repeats, replace=False).tolist())
    for index in range(IMAGES * ROLLOUTS):
        group = plans[index // ROLLOUTS * ROLLOUTS :]
        plan = group[int(rng.integers(len(group)))] if index in repeating else None
        while plan is None or (index not in repeating and plan in group):
            tasks = [TASK_OF[name] for name in samples[index // ROLLOUTS].combo]
            if rng.random() < OUT_OF_SCOPE:
                tasks.append(str(rng.choice([task for task in sorted({spec.task for spec in toolbox}) if task not in tasks])))
            rng.shuffle(tasks)
            plan = tuple(str(rng.choice([spec.name for spec in toolbox if any_tool or spec.task == task])) for task in tasks)
        plans.append(plan)
    return states, plans


def _chain(executor, state: ImageState, plan: tuple[str, ...]) -> ImageState:
    for tool in plan:
        [result] = executor.run([Request(state, tool)])
        state = result.state
    return state


def _rollout(rival: Rival, state: ImageState, plan: tuple[str, ...]) -> ImageState:
    for tool in plan:
        state = rival.call(state, tool)
    return state


def _noise(side: int) -> ImageState:
    return ImageState.from_pixels(np.random.default_rng().integers(0, 256, (side, side, 3), np.uint8))


# -- alone -------------------------------------------------------------------------------------------------------------------------


def throughput(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """One instance against a plain loop over the same batches in this process, in turns; and a lone request that costs nothing."""
    names, batch, batches = ["noise.gaussian25", "motion.long", "rain.heavy", "jpeg.quality15"], 16, 12
    toolbox = load_toolbox(names)
    pool = _pool({"toolbox": names, "placements": [{"replicas": 1}], "max_batch": batch, "cache_bytes": 0})
    ratios = []
    try:
        executor = pool.executor()
        work = [(names[i % len(names)], [_noise(options.side) for _ in range(batch)]) for i in range(batches)]
        requests = [[Request(state, tool) for state in states] for tool, states in work]
        executor.run([each for part in requests[:4] for each in part])
        for _ in range(7):
            start = time.perf_counter()
            for tool, states in work:
                run_tool(toolbox[tool], [state.pixels for state in states])
            loop = time.perf_counter() - start
            start = time.perf_counter()
            executor.run([each for part in requests for each in part])
            ratios.append(loop / (time.perf_counter() - start))
    finally:
        pool.stop()
    pool = _pool({"toolbox": Toolbox([Identity()]), "placements": [{"replicas": 1}], "cache_bytes": 0})
    try:
        executor = pool.executor()
        taken = []
        for index in range(600):
            state = _noise(64)
            start = time.perf_counter()
            executor.run([Request(state, "bench.identity")])
            if index >= 100:
                taken.append(1000 * (time.perf_counter() - start))
    finally:
        pool.stop()
    figures = {
        "of_plain_loop": float(np.median(ratios)),
        "lone_request_ms": {"median": float(np.median(taken)), "p99": float(np.percentile(taken, 99))},
    }
    console.print(f"throughput over a plain loop: {figures['of_plain_loop']:.2f} (rounds {', '.join(f'{r:.2f}' for r in ratios)})")
    console.print(f"a lone request to a tool that does nothing: median {np.median(taken):.2f} ms, p99 {np.percentile(taken, 99):.2f} ms")
    return figures


def scaling(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """The same requests on one instance and on two."""
    names = ["noise.gaussian25", "motion.long", "rain.heavy", "jpeg.quality15"]
    requests = [Request(_noise(options.side), names[i % len(names)]) for i in range(640)]
    seconds = {}
    pools = {count: _pool({"toolbox": names, "placements": [{"replicas": count}], "cache_bytes": 0}, count) for count in (1, 2)}
    try:
        rounds: dict[int, list[float]] = {1: [], 2: []}
        for pool in pools.values():
            pool.executor().run(requests[:64])
        for _ in range(3):
            for count, pool in pools.items():
                start = time.perf_counter()
                pool.executor().run(requests)
                rounds[count].append(time.perf_counter() - start)
        seconds = {count: float(np.median(each)) for count, each in rounds.items()}
    finally:
        for pool in pools.values():
            pool.stop()
    console.print(f"one instance {seconds[1]:.2f} s, two {seconds[2]:.2f} s: {seconds[1] / seconds[2]:.2f} times as fast")
    return {"seconds": seconds, "speed_up": seconds[1] / seconds[2]}


def sleeping(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """32 instances, 128 rollouts in flight, tools that sleep as a GPU would compute."""
    instances, rollouts, window = 32, 128, 20.0
    toolbox = Toolbox([Sleeping(f"bench.sleep{i}", 0.05, 0.2) for i in range(8)])
    settings = {"toolbox": toolbox, "placements": [{"replicas": instances, "num_cpus": 0.01}], "cache_bytes": 0}
    pool = _pool(settings, instances)
    try:
        executor = pool.executor()
        over = threading.Event()

        def rollout(seed: int) -> None:
            rng = np.random.default_rng(seed)
            state = ImageState.from_pixels(rng.integers(0, 256, (64, 64, 3), np.uint8))
            while not over.is_set():
                state = executor.submit(Request(state, f"bench.sleep{rng.integers(8)}")).result().state

        with ThreadPoolExecutor(rollouts) as threads:
            running = [threads.submit(rollout, seed) for seed in range(rollouts)]
            time.sleep(3)  # all are in flight, and every instance has begun
            before = pool.status()["services"]
            time.sleep(window)
            after = pool.status()["services"]
            over.set()
            for each in running:
                each.result()
    finally:
        pool.stop()

    def difference(counter: str) -> float:
        return sum(after[name][counter] - before[name][counter] for name in after)

    figures = {
        "busy": difference("busy_s") / (instances * window),
        "requests_per_s": difference("executions") / window,
        "images_per_batch": difference("executions") / difference("batches"),
        "mean_wait_ms": 1000 * difference("wait_s") / difference("executions"),
    }
    console.print(
        f"{instances} instances, {rollouts} rollouts in flight: busy {figures['busy']:.1%}, {figures['requests_per_s']:.0f} "
        f"requests/s in batches of {figures['images_per_batch']:.1f}, mean wait {figures['mean_wait_ms']:.0f} ms"
    )
    return figures


def exhaustive(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """All plans of length 1 to 4 over four tools, each run from the start by a caller that knows nothing of the others."""
    from itertools import product

    tools = ["noise.gaussian25", "jpeg.quality15", "tv.denoise", "dark.gamma"]
    plans = [plan for length in range(1, 5) for plan in product(tools, repeat=length)]
    pool = _pool({"toolbox": tools, "placements": [{"replicas": CORES}]}, CORES)
    try:
        executor = pool.executor()
        state = _noise(64)
        with ThreadPoolExecutor(64) as threads:
            list(threads.map(lambda plan: _chain(executor, state, plan), plans))
        services = pool.status()["services"].values()
    finally:
        pool.stop()
    figures = {key: sum(each[key] for each in services) for key in ("requests", "executions")} | {"plans": len(plans)}
    console.print(f"{len(plans)} plans: {figures['requests']} requests, {figures['executions']} executions")
    return figures


# -- under fire --------------------------------------------------------------------------------------------------------------------


def chaos(options: argparse.Namespace, console: Console, report: dict, count: int = 5000, instances: int = 4) -> dict:
    """A random instance killed every second, one frozen; every answer compared with the local executor's."""
    side = 64
    inner = [tool for tool in load_toolbox("default") if tool.spec.scale == 1][:20]
    rng = np.random.default_rng(0)
    photos = [state.pixels for state in workload(side)[0]]
    states = [
        ImageState.from_pixels(np.roll(photos[i % len(photos)], int(rng.integers(side)), axis=i // len(photos) % 2)) for i in range(count)
    ]
    requests = [Request(state, inner[i % len(inner)].spec.name) for i, state in enumerate(states)]
    killed: list[int] = []
    frozen: list[int] = []
    done = threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        toolbox = Toolbox([Counted(tool, folder) for tool in inner])
        settings = {"toolbox": toolbox, "placements": [{"replicas": instances, "num_cpus": 0.5}], "timeout_s": 5, "max_batch": 8}
        pool = _pool(settings, instances)

        def kill() -> None:
            while not done.wait(1.0):
                pids = [pid for pid in pool.status()["pids"] if pid not in killed]
                if not pids:
                    continue
                pid = int(rng.choice(pids))
                if not frozen:
                    frozen.append(pid)
                    os.kill(pid, signal.SIGSTOP)
                elif pid not in frozen:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

        killer = threading.Thread(target=kill, daemon=True)
        try:
            executor = pool.executor()
            killer.start()
            start = time.perf_counter()
            results = executor.run(requests)
            seconds = time.perf_counter() - start
            done.set()
            killer.join()
            lost = pool.status()["lost"]
        finally:
            done.set()
            pool.stop()
            for pid in frozen:
                _kill(pid)
        most = max(executions(folder).values())
    local = LocalExecutor(Toolbox(inner), cache_bytes=0)
    wanted = local.run(requests)
    failed = [result.error for result in results if result.error is not None]
    wrong = sum(
        result.error is None and not np.array_equal(result.state.pixels, expected.state.pixels)
        for result, expected in zip(results, wanted, strict=True)
    )
    figures = {
        "requests": count,
        "seconds": seconds,
        "killed": len(killed),
        "frozen": len(frozen),
        "lost_instances": lost,
        "failed": len(failed),
        "wrong": wrong,
        "most_executions_of_one": most,
    }
    console.print(
        f"{count} requests in {seconds:.0f} s, {len(killed)} instances killed and {len(frozen)} frozen: {len(failed)} failed, {wrong} "
        f"wrong, no request begun more than {most} times"
    )
    if failed:
        console.print(str(failed[0]))
    return figures


def memory(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """Many requests for different images through a small cache: resident memory of the pool's processes, and the object store."""
    import ray

    bound = 16 << 20
    settings = {"toolbox": Toolbox([Identity()]), "placements": [{"replicas": CORES}], "cache_bytes": bound, "max_batch": 64}
    pool = _pool(settings, CORES)
    rng = np.random.default_rng(0)
    marks: list[dict[str, Any]] = []
    try:
        executor = pool.executor()

        def mark(done: int) -> None:
            status = pool.status()
            used = ray.cluster_resources().get("object_store_memory", 0) - ray.available_resources().get("object_store_memory", 0)
            resident = {"dispatcher": _resident(status["dispatcher_pids"]), "instances": _resident(status["pids"])}
            kept = {key: status[key] for key in ("cache_bytes", "under_way", "queued", "at_callers")}
            marks.append(
                {"requests": done, "resident_mb": resident, "object_store_mb": used / 2**20, "caller_mb": _resident([os.getpid()]), **kept}
            )

        part, start = 2000, time.perf_counter()
        for done in range(0, options.requests, part):
            pixels = rng.integers(0, 256, (part, 32, 32, 3), np.uint8)
            executor.run([Request(ImageState.from_pixels(each), "bench.identity") for each in pixels])
            if done % (5 * part) == 0:
                mark(done + part)
        seconds = time.perf_counter() - start
        mark(options.requests)
    finally:
        pool.stop()
    table = Table(
        "requests", "cache MiB", "dispatcher MiB", "instances MiB", "object store MiB", "caller MiB", title=f"cache bound {bound >> 20} MiB"
    )
    for each in marks:
        resident = each["resident_mb"]
        figures = (each["cache_bytes"] / 2**20, resident["dispatcher"], resident["instances"], each["object_store_mb"], each["caller_mb"])
        table.add_row(str(each["requests"]), *(f"{figure:.1f}" for figure in figures))
    console.print(table)
    warm = next(each for each in marks if each["cache_bytes"] > 0.9 * bound)
    grown = sum(marks[-1]["resident_mb"].values()) - sum(warm["resident_mb"].values())
    console.print(f"{options.requests} requests in {seconds:.0f} s; after the cache was full the pool's processes grew by {grown:.1f} MiB")
    return {"bound_mb": bound >> 20, "seconds": seconds, "grown_mb": grown, "marks": marks}


def callers(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """50 callers that each get 16 images of 512 px: what the dispatcher keeps for them, and the threads of this process."""
    count, images, side = 50, 16, 512
    pool = _pool({"toolbox": Toolbox([Identity()]), "placements": [{"replicas": 1}], "cache_bytes": 0})
    table = Table("", "dispatcher MiB", "answers kept MiB", "mailboxes", "threads here", title=f"{count} callers x {images} answers")
    marks = {}

    def mark(when: str) -> None:
        status = pool.status()
        marks[when] = {
            "dispatcher_mb": _resident(status["dispatcher_pids"]),
            "kept_mb": status["kept_bytes"] / 2**20,
            "mailboxes": status["mailboxes"],
            "threads": sum(thread.name == "pool connection" for thread in threading.enumerate()),
        }
        mb, kept, *counts = marks[when].values()
        table.add_row(when, f"{mb:.0f}", f"{kept:.0f}", *map(str, counts))

    try:
        photos = [_noise(side).pixels for _ in range(images)]
        mark("before")
        executors = [pool.executor() for _ in range(count)]
        for turn, executor in enumerate(executors):
            results = executor.run([Request(ImageState.from_pixels(np.roll(each, turn, axis=1)), "bench.identity") for each in photos])
            assert all(result.error is None for result in results)
        del results
        mark("all answered")
        time.sleep(3)
        mark("3 s later")
        for executor in executors:
            executor.close()
        mark("closed")
    finally:
        pool.stop()
    console.print(table)
    return marks


# -- at the size of a cluster ------------------------------------------------------------------------------------------------------


def capacity(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """What one dispatcher can do: requests for a tool that does nothing, one by one and in calls of 64; and its own CPU time for each."""
    pool = _pool({"toolbox": Toolbox([Identity()]), "placements": [{"replicas": CORES}], "cache_bytes": 0, "max_in_flight": 256}, CORES)
    figures = {}
    try:
        executor = pool.executor()
        states = [_noise(64) for _ in range(4000)]
        requests = [Request(state, "bench.identity") for state in states]
        executor.run(requests[:500])
        pids = pool.status()["dispatcher_pids"]
        for name, send in (
            ("calls of one request", lambda: [future.result() for future in [executor.submit(each) for each in requests]]),
            ("calls of many requests", lambda: executor.run(requests)),
        ):
            cpu, start = _cpu_seconds(pids), time.perf_counter()
            send()
            seconds, spent = time.perf_counter() - start, _cpu_seconds(pids) - cpu
            figures[name] = {"requests_per_s": len(requests) / seconds, "dispatcher_us": 1e6 * spent / len(requests)}
            console.print(
                f"{name}: {len(requests) / seconds:.0f} requests/s on {CORES} cores that also run caller and instances; the dispatcher's "
                f"own time {1e6 * spent / len(requests):.0f} µs each, so it is full at {len(requests) / spent:.0f} requests/s"
            )
    finally:
        pool.stop()
    return figures


def references(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """The dispatcher's own time for an image, by its side, that goes through it and that goes by reference; and what stays in the store."""
    import ray

    from tool_actors.pool.config import INLINE_BYTES

    sides = {192: 400, 256: 400, 512: 200, 1024: 80}
    rows: list[dict[str, Any]] = []
    table = Table(
        "side", "way", "dispatcher ms", "caller ms", "images/s of a full dispatcher", "images that differ", "object store MiB after"
    )
    for way, least in (("messages", None), ("references", INLINE_BYTES)):
        settings = {"toolbox": Toolbox([Identity()]), "placements": [{"replicas": CORES}], "cache_bytes": 0, "max_in_flight": 64}
        pool = _pool({**settings, "reference_bytes": least}, CORES)
        try:
            executor, pids = pool.executor(), pool.status()["dispatcher_pids"]
            for side, count in sides.items():
                requests = [Request(_noise(side), "bench.identity") for _ in range(count)]
                executor.run(requests[:32])
                spent, own = _cpu_seconds(pids), time.process_time()
                results = executor.run(requests)
                spent, own = _cpu_seconds(pids) - spent, time.process_time() - own
                wrong = sum(not np.array_equal(a.state.pixels, b.state.pixels) for a, b in zip(requests, results, strict=True))
                time.sleep(3)  # the connection has ended by then, and Ray has told what is in use
                used = ray.cluster_resources()["object_store_memory"] - ray.available_resources()["object_store_memory"]
                row = {"side": side, "way": way, "dispatcher_ms": 1000 * spent / count, "caller_ms": 1000 * own / count}
                row |= {"requests_per_s": count / spent, "wrong": wrong, "store_mb": used / 2**20}
                rows.append(row)
                figures = (row["dispatcher_ms"], row["caller_ms"], row["requests_per_s"], wrong, row["store_mb"])
                table.add_row(str(side), way, *(f"{figure:.3g}" for figure in figures))
        finally:
            pool.stop()
    console.print(table)
    return {"rows": rows}


def simulation(options: argparse.Namespace, console: Console, report: dict) -> dict:
    """Clusters in virtual time."""
    measured = report.get("capacity") or capacity(options, console, report)
    overhead = measured["calls of one request"]["dispatcher_us"] / 1e6
    table = Table(title=f"simulated, {1e6 * overhead:.0f} µs of the dispatcher per request where no other is given")
    big = (report.get("references") or references(options, console, report))["rows"]
    ways = {f"1024 px, {row['way']}": row["dispatcher_ms"] / 1000 for row in big if row["side"] == 1024}
    lines = simulated_rows(overhead, {"64 px": overhead, **ways})
    for name in lines[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for line in lines:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in line.values()))
    console.print(table)
    return {"overhead_us": 1e6 * overhead, "rows": lines}


PARTS = {
    "executors": executors,
    "throughput": throughput,
    "scaling": scaling,
    "sleeping": sleeping,
    "chaos": chaos,
    "exhaustive": exhaustive,
    "memory": memory,
    "callers": callers,
    "capacity": capacity,
    "references": references,
    "simulation": simulation,
}


def _pool(settings: dict, instances: int = 1):
    from tool_actors.pool import MCPool

    pool = MCPool.start(settings, f"bench-{time.monotonic_ns()}")
    wait_for_instances(pool, instances)
    return pool


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _resident(pids: list[int]) -> float:
    """MiB of memory that the processes hold for themselves."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                total += int(line.split()[1])
    return total / 1024


def _cpu_seconds(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
