"""The table that ends a training and that `rllib evaluate` prints: policies side by side on held-out photographs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ir_env.datasets.base import fixed_samples
from ir_env.episode import Episode
from ir_env.planner import Planner, run
from ir_env.process import RestorationProcess
from policies.planners import FixedPlan, GreedyPlanner, NothingPlanner, RandomPlanner, search_fixed_plan

HELDOUT_SEED = 20_000
BATCH = 32


@dataclass(frozen=True)
class Row:
    """One policy over the samples."""

    policy: str
    reward: float
    """Mean total reward of an episode."""
    reward_error: float
    """Standard error of that mean."""
    metrics: dict[str, float]
    """Mean metrics of the last images."""
    tools: float
    """Mean number of tools applied per image."""
    worse: float
    """Share of images that ended with a negative total reward."""


@dataclass(frozen=True)
class Table:
    """Policies side by side on the same samples."""

    rows: list[Row]
    samples: int
    seed: int
    note: str
    """The dataset, the metrics with their version, and what is an oracle."""

    def row(self, policy: str) -> Row:
        return next(row for row in self.rows if row.policy.startswith(policy))

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2))

    def render(self):
        """A rich table."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table as RichTable

        names = list(self.rows[0].metrics)
        table = RichTable(
            title=f"{self.samples} held-out images",
            caption=escape(self.note),
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
        )
        table.add_column("policy", no_wrap=True)
        for name in ("mean reward", *names, "tools", "worse"):
            table.add_column(name, justify="right", no_wrap=True)
        best = max(row.reward for row in self.rows)
        for row in self.rows:
            table.add_row(
                escape(row.policy),
                f"{row.reward:+.3f} ± {row.reward_error:.3f}",
                *(f"{row.metrics[name]:.4g}" for name in names),
                f"{row.tools:.2f}",
                f"{row.worse:.0%}",
                style="bold" if row.reward == best else None,
            )
        return table


def evaluation_settings(env_config: Mapping[str, Any], combos: str | None = None, split: str = "heldout") -> dict[str, Any]:
    """The arguments of :class:`RestorationProcess` for an evaluation: those of the training, on the held-out photographs."""
    other = ("group_size", "observation_size", "render_mode", "num_envs", "executor")
    settings = {key: value for key, value in env_config.items() if key not in other}
    dataset = dict(settings.get("dataset") or {})
    if "mio100" not in dataset:
        dataset["split"] = split
    if combos is not None:
        dataset["combos"] = combos
    settings["dataset"] = dataset
    return settings


def start_heldout(process: RestorationProcess, count: int, seed: int = HELDOUT_SEED) -> list[Episode]:
    """Fresh episodes on the held-out samples that ``seed`` names."""
    samples = fixed_samples(process.dataset, count, seed)
    return [episode for start in range(0, count, BATCH) for episode in process.start(samples[start : start + BATCH])]


def measure(
    process: RestorationProcess, planner: Planner, episodes: Sequence[Episode], name: str, progress: Callable[[], None] = lambda: None
) -> Row:
    """Run a policy on fresh episodes."""
    for start in range(0, len(episodes), BATCH):
        for _ in run(process, planner, episodes[start : start + BATCH]):
            progress()
    rewards = np.array([episode.total_reward for episode in episodes])
    scores = np.stack([episode.scores[-1] for episode in episodes]).mean(0)
    return Row(
        policy=name,
        reward=float(rewards.mean()),
        reward_error=float(rewards.std(ddof=1) / np.sqrt(len(rewards))) if len(rewards) > 1 else 0.0,
        metrics=dict(zip(process.suite.names, map(float, scores), strict=True)),
        tools=float(np.mean([len(episode.states) - 1 for episode in episodes])),
        worse=float((rewards < -1e-9).mean()),
    )


def compare(
    env_config: Mapping[str, Any],
    policies: Mapping[str, Planner],
    samples: int,
    combos: str | None = None,
    seed: int = HELDOUT_SEED,
    progress: Callable[[str], None] = lambda what: None,
) -> Table:
    """The given policies beside nothing, random, the best fixed plan and greedy.

    The fixed plan is searched on the very images of the table, which favours it: a policy that beats it beats every fixed plan.
    """
    process = RestorationProcess(**evaluation_settings(env_config, combos))
    fresh, rows = start_heldout(process, samples, seed), []

    def begin() -> list[Episode]:
        return [episode.fork() for episode in fresh]

    for name, planner in {**policies, "nothing": NothingPlanner(), "random": RandomPlanner(seed)}.items():
        progress(name)
        rows.append(measure(process, planner, begin(), name))
    progress("best fixed plan")
    best: FixedPlan = search_fixed_plan(process, begin())
    rows.append(measure(process, best, begin(), "best fixed plan"))
    progress("greedy")
    rows.append(measure(process, GreedyPlanner(), begin(), "greedy (oracle)"))
    dataset = evaluation_settings(env_config, combos)["dataset"]
    note = (
        f"The fixed plan, {' + '.join(best.tools) or 'nothing'}, was chosen on these very images; greedy looks one step ahead on the true "
        f"metric. tools: mean number applied; worse: share of images with a negative reward. {process.suite.describe()}; seed {seed}; "
        f"dataset {json.dumps(dataset, default=str)}."
    )
    return Table(rows, samples, seed, note)
