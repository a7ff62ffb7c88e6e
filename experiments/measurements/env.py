"""What the vector environment costs beyond the tools and metrics it runs.

    python -m experiments.measurements.env

Every vector step of a random agent is followed by the same tool calls and metric calls made bare, on the same images; the ratio of the two
times is the figure, so a slow machine slows both. Cache and episode ends are off, since either would make the environment look better or
worse than its overhead.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ir_env.vector_env import RestorationVectorEnv
from tool_actors.threads import limit_threads

LIMIT = 1.15


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=60, help="vector steps per row")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the median ratio is reported")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    limit_threads(1)
    rows = [measure(size, crop, options.steps, options.rounds) for size, crop in ((8, 64), (8, 128), (32, 64))]
    table = Table(title=f"vector step over bare tools and metrics (limit {LIMIT})")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    report = {"limit": LIMIT, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(report, indent=2))
    return report


def measure(num_envs: int, crop_size: int, steps: int, rounds: int, seed: int = 0) -> dict:
    """One row: ``num_envs`` sub-environments on crops of ``crop_size``."""
    env = RestorationVectorEnv(
        num_envs=num_envs, dataset={"split": "train", "crop_size": crop_size}, max_steps=steps * rounds + 10, cache_bytes=0
    )
    env.reset(seed=seed)
    executor, suite = env.process.executor, env.process.suite
    recorded: list[list] = []
    run, score = executor.run, suite.score

    def recording_run(requests):
        recorded.append(list(requests))
        return run(requests)

    executor.run = recording_run
    rng = np.random.default_rng(seed)
    ratios, env_seconds, bare_seconds, calls, distinct = [], 0.0, 0.0, 0, 0
    for round_number in range(rounds + 1):
        spent, bare = 0.0, 0.0
        for _ in range(steps if round_number else 3):
            masks = np.stack([episode.mask for episode in env.episodes])[:, :-1]
            actions = [int(rng.choice(np.flatnonzero(mask))) for mask in masks]
            recorded.clear()
            before = executor.stats.calls
            start = time.perf_counter()
            env.step(actions)
            spent += time.perf_counter() - start
            requests = recorded[0]
            calls += executor.stats.calls - before
            distinct += len({(request.tool, request.state.shape) for request in requests})
            references = [episode.reference for episode in env.episodes]
            start = time.perf_counter()
            _bare(executor.toolbox, requests, references, score)
            bare += time.perf_counter() - start
        if round_number:  # the first round warms up
            ratios.append(spent / bare)
            env_seconds, bare_seconds = env_seconds + spent, bare_seconds + bare
    count = steps * rounds
    return {
        "envs": num_envs,
        "crop": crop_size,
        "step, ms": 1000 * env_seconds / count,
        "bare, ms": 1000 * bare_seconds / count,
        "ratio": float(np.median(ratios)),
        "worst": float(np.max(ratios)),
        "calls / (tool, shape)": calls / distinct,
    }


def _bare(toolbox, requests, references, score) -> None:
    """The least that must be done: each tool once per shape, on one batch, and one scoring of the rounded results."""
    groups = defaultdict(list)
    for index, request in enumerate(requests):
        groups[request.tool, request.state.shape].append(index)
    outputs: list = [None] * len(requests)
    for (tool, _), indices in groups.items():
        batch = torch.from_numpy(np.stack([requests[i].state.pixels for i in indices])).permute(0, 3, 1, 2).float() / 255.0
        restored = toolbox[tool](batch).clamp(0, 1).mul(255.0).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        for index, pixels in zip(indices, restored, strict=True):
            outputs[index] = pixels
    score(outputs, references)


if __name__ == "__main__":
    main()
