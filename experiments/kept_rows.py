"""Policies on the same degraded photographs, row by row: a row that was measured is kept, and read when it is asked for again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ir_env.evaluation import Row, Table, photo_of, run_all, save_json, start_heldout, summarise
from ir_env.planner import Planner
from ir_env.process import RestorationProcess
from policies.loading import load_before_training, load_policy
from policies.planners import GreedyPlanner, NothingPlanner, search_fixed_plan
from tool_actors.errors import IrEnvError

GREEDY, FIXED = "greedy (oracle)", "best fixed plan"


class KeptRows:
    """The rows in ``rows.json`` of a folder, by name.

    Args:
        folder: of the file; made if it is not there.
        dataset: settings of a dataset of pairs, see :func:`ir_env.datasets.load_dataset`.
        samples: number of its images.
        seed: names them.
        metrics: of the rows.
        oracles: rows of greedy and of the best fixed plan, searched on these very images, are wanted, too.
    """

    def __init__(
        self, folder: Path, dataset: Mapping[str, Any], samples: int, seed: int, metrics: Sequence[str], oracles: bool, console: Console
    ):
        self._dataset, self._seed, self._metrics, self._oracles = dict(dataset), seed, metrics, oracles
        self._file, self._console = folder / "rows.json", console
        self.process = self._process("default")
        self._episodes = start_heldout(self.process, samples, seed)
        self.samples = [episode.sample for episode in self._episodes]
        folder.mkdir(parents=True, exist_ok=True)
        told = json.loads(self._file.read_text()) if self._file.is_file() else {"samples": self.samples, "rows": []}
        if told["samples"] != self.samples:
            raise IrEnvError(f"{self._file} has rows of other images; choose another --out, or repeat its options")
        self.rows = {row["policy"]: Row.of(row) for row in told["rows"]}

    def measure(self, wanted: Sequence[tuple[str, str, str]]) -> None:
        """Add what is missing of these rows, of doing nothing, and of the oracles.

        Args:
            wanted: name, policy as for :func:`policy_at`, and its toolbox, empty for the default one.
        """
        for name, policy, toolbox in (("nothing", "nothing", ""), *wanted):
            if name not in self.rows:
                process = self._process(toolbox) if toolbox else self.process
                self._add(name, NothingPlanner() if policy == "nothing" else policy_at(policy), process)
        for name, make in ((GREEDY, GreedyPlanner), (FIXED, lambda: search_fixed_plan(self.process, self._episodes))):
            if self._oracles and name not in self.rows:
                self._add(name, make(), self.process)

    def table(self, pairs: Sequence[tuple[list[str], str]], columns: Sequence[str]) -> Table:
        """The rows side by side, with what the first of each pair, or the mean of its rows, has more than the second."""
        table = Table(list(self.rows.values()), list(map(photo_of, self.samples)), f"metrics: {self.process.suite.describe()}")
        for first, second in pairs:
            table.differences.extend(table.difference(first, second, column) for column in columns)
        return table

    def _process(self, toolbox: str) -> RestorationProcess:
        # greedy runs every tool on every state, of which a later step wants most again
        return RestorationProcess(self._dataset, toolbox, metrics=list(self._metrics), cache_bytes=6 << 30 if self._oracles else 256 << 20)

    def _add(self, name: str, planner: Planner, process: RestorationProcess) -> None:
        own = process is self.process
        episodes = [each.fork() for each in self._episodes] if own else start_heldout(process, len(self.samples), self._seed)
        with self._console.status(f"measuring {name}"):
            run_all(process, planner, episodes)
        treated = [" ".join(process.actions[action].task for action in episode.applied) for episode in episodes]
        self.rows[name] = summarise(process, name, episodes, treated=treated)
        save_json({"samples": self.samples, "rows": [row.as_dict() for row in self.rows.values()]}, self._file)


def policy_at(place: str) -> Planner:
    """What ``ir-env restore`` takes as a policy, or with ``before:RUN`` that of a run as it was before its training."""
    if place.startswith("before:"):
        planner = load_before_training(place.removeprefix("before:"))
        if planner is None:
            raise IrEnvError(f"{place}: the run did not keep its policy of before the training")
        return planner
    return load_policy(place)


def parse_pairs(texts: Sequence[str]) -> list[tuple[list[str], str]]:
    """``"A,B"`` -> (["A"], "B"), ``"A+B+C,D"`` -> (["A", "B", "C"], "D")."""
    if wrong := [text for text in texts if text.count(",") != 1]:
        raise IrEnvError(f"--pair {wrong[0]!r}: write A,B, or A+B+C,D; names of rows hold neither comma nor plus then")
    sides = [text.split(",") for text in texts]
    return [([name.strip() for name in first.split("+")], second.strip()) for first, second in sides]
