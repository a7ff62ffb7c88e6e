"""Planners side by side on the same held-out photographs: means, intervals by photograph, paired differences.

>>> from ir_env import compare
>>> table = compare({"dataset": {"photos": "builtin"}}, {"mine": Mine()}, samples=32)
>>> table.row("mine").reward

Images of one photograph are not independent of one another: crops share their scene. So intervals come from a bootstrap over photographs,
and tests flip whole photographs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ir_env.datasets import Photos, Sample
from ir_env.datasets.base import fixed_samples
from ir_env.episode import Episode
from ir_env.plan_reward import PLAN_REWARDS
from ir_env.planner import Planner, run
from ir_env.process import RestorationProcess
from tool_actors.errors import IrEnvError, UnknownNameError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Contender",
    "Difference",
    "Row",
    "Table",
    "bootstrap",
    "compare",
    "evaluate",
    "evaluation_settings",
    "photo_of",
    "run_all",
    "save_json",
    "sign_flips",
    "start_heldout",
    "summarise",
]

HELDOUT_SEED = 20_000
BATCH = 32
RESAMPLES = 10_000
EXACT = 13
"""Signs of up to so many photographs are flipped in every way, of more at random."""
FEW_PHOTOGRAPHS = 10

Contender = Planner | Callable[[RestorationProcess, Sequence[Episode]], Planner]
"""A planner, or a function that makes one for the fresh episodes, which it must not change (the search of a plan on these very images)."""


# -- what is told --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One policy over the images. None stands for what is not defined."""

    policy: str
    images: int
    reward: float | None
    """Mean total reward of an episode."""
    interval: list[float] | None
    """Of that mean, 95 %, by photograph; None for a single photograph."""
    gain: float | None
    """Mean gain in the reward's quality from the first image to the last; the total reward where the reward has no quality."""
    normalised: float | None
    """Mean over the images of the sum over the metrics, oriented so that higher is better, of what each gained in units of its standard
    deviation over the degraded images."""
    metrics: dict[str, float | None]
    """Mean metrics of the last images, over those that have one."""
    tools: float
    """Mean number of tools applied per image."""
    executions: float
    """Mean number of tools run per image, those that a planner tried and did not take too."""
    calls: float
    """Mean number of decisions asked of the policy per image."""
    worse: float
    """Share of images that ended worse than they began: with a negative gain."""
    failures: int
    """Images whose restoration ended with a tool's failure."""
    per_image: dict[str, list[float | None]]
    """Image by image what the means above are of: ``reward``, ``gain``, ``normalised``, ``tools``, ``executions``, ``calls``, and each
    metric by name."""
    more: dict[str, Any] = field(default_factory=dict)
    """What a caller knows besides, in JSON's types."""

    def as_dict(self) -> dict[str, Any]:
        """In JSON's types, with ``more`` among the rest; :meth:`of` reads it back."""
        told = asdict(self)
        more = told.pop("more")
        return {**told, **more}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Row:
        known = ({each.name for each in fields(cls)} - {"more"}) & told.keys()
        return cls(**{name: told[name] for name in known}, more={name: value for name, value in told.items() if name not in known})


@dataclass(frozen=True)
class Difference:
    """How much more one row of a table has than another, image by image."""

    first: str
    second: str
    column: str
    """A key of :attr:`Row.per_image`."""
    mean: float
    interval: list[float] | None
    """95 %, by photograph."""
    p: float
    """Of a sign-flip test over photographs, two-sided: how often differences as large come of chance alone."""

    def __str__(self) -> str:
        return f"{self.first} less {self.second}, {self.column}: {_signed(self.mean, self.interval)}, p = {self.p:.2g}"


@dataclass(frozen=True)
class Table:
    """Policies side by side on the same images."""

    rows: list[Row]
    photographs: list[str]
    """Image by image the photograph that it is of."""
    note: str = ""
    """The dataset, the metrics with their version, the seed, and what was chosen on these very images."""
    differences: list[Difference] = field(default_factory=list)

    def row(self, policy: str) -> Row:
        """The row of that name, or else the first whose name begins so."""
        found = [row for row in self.rows if row.policy == policy] or [row for row in self.rows if row.policy.startswith(policy)]
        if not found:
            raise UnknownNameError("row", policy, [row.policy for row in self.rows])
        return found[0]

    def difference(self, first: str | Sequence[str], second: str, column: str = "reward") -> Difference:
        """What the first row has more than the second; images on which either has none are left out.

        Args:
            first: name as for :meth:`row`, or names, as of one training with several seeds: then the mean of these rows, image by image.
            second: name.
            column: a key of :attr:`Row.per_image`; metrics are in their own orientation.
        """
        rows = [self.row(name) for name in ([first] if isinstance(first, str) else first)]
        other = self.row(second)
        name = rows[0].policy if len(rows) == 1 else f"the mean of {', '.join(row.policy for row in rows)}"
        if column not in other.per_image:
            raise UnknownNameError("column", column, other.per_image)
        # None becomes NaN
        values = np.mean([np.array(row.per_image[column], np.float64) for row in rows], axis=0) - np.array(
            other.per_image[column], np.float64
        )
        defined = np.isfinite(values)
        if not defined.any():
            raise IrEnvError(f"no image has {column!r} in both rows, {name!r} and {other.policy!r}")
        values, photographs = values[defined], np.array(self.photographs)[defined]
        interval = bootstrap(values, photographs)
        return Difference(name, other.policy, column, float(values.mean()), interval, sign_flips(values, photographs))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "rows": [row.as_dict() for row in self.rows]}

    def save(self, path: str | Path) -> None:
        """Write it as JSON, a list of numbers a line."""
        save_json(self.as_dict(), path)

    def show(
        self, console: Console | None = None, title: str | None = None, more: Mapping[str, Callable[[Row], str]] | None = None
    ) -> None:
        """Print :meth:`render`, as wide as its columns are: where the terminal is narrower, lines run over and no figure is cut."""
        from rich.console import Console

        console = console or Console()
        table = self.render(title, more)
        table.width = console.measure(table, options=console.options.update(max_width=1000)).maximum
        console.print(table, crop=False)

    def render(self, title: str | None = None, more: Mapping[str, Callable[[Row], str]] | None = None):
        """A rich table.

        Args:
            title: above it.
            more: further columns, by heading.
        """
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table as RichTable

        number = len(set(self.photographs))
        names = list(self.rows[0].metrics)
        caption = [
            f"Intervals: 95 %, a bootstrap over the {number} photographs"
            + (", which are too few to trust them" if number < FEW_PHOTOGRAPHS else "")
            + "; p: sign flips of photographs. norm.: sum over the metrics of what each gained in its standard deviations; tools, run: "
            "mean number applied, and run at all; worse: share of images that ended worse than they began."
        ]
        caption += [f"{difference}." for difference in self.differences]
        undefined = sum(value is None for row in self.rows for name in names for value in row.per_image[name])
        if undefined:
            caption.append(f"{undefined} scores are not defined, of images too small or too flat, and left out of the means.")
        failures = sum(row.failures for row in self.rows)
        if failures:
            caption.append(f"{failures} restorations ended with a tool's failure.")
        table = RichTable(
            title=escape(title or f"{len(self.photographs)} images of {number} photographs"),
            caption=escape("\n".join([*caption, self.note])),
            caption_justify="left",
            box=SIMPLE_HEAD,
            padding=(0, 0, 0, 1),
            pad_edge=False,
        )
        columns: dict[str, Callable[[Row], str]] = {
            "mean reward": lambda row: _signed(row.reward, row.interval),
            "norm.": lambda row: _signed(row.normalised),
            **{name: lambda row, name=name: "" if row.metrics[name] is None else f"{row.metrics[name]:.4g}" for name in names},
            "tools": lambda row: f"{row.tools:.2f}",
            "run": lambda row: f"{row.executions:.2f}",
            "worse": lambda row: f"{row.worse:.0%}",
            **(more or {}),
        }
        table.add_column("policy", no_wrap=True)
        for name in columns:
            table.add_column(escape(name), justify="right", no_wrap=True)
        best = max((row.reward for row in self.rows if row.reward is not None), default=None)
        for row in self.rows:
            cells = [escape(tell(row)) for tell in columns.values()]
            table.add_row(escape(row.policy), *cells, style="bold" if row.reward is not None and row.reward == best else None)
        return table


def save_json(told: Any, path: str | Path) -> None:
    """Write JSON that every reader takes, without NaN or infinity, a list of numbers or names a line."""
    text = json.dumps(told, indent=2, allow_nan=False)
    # the innermost lists, those without braces or brackets; a line's end within quotes is written \n, so that none is in a name
    flat = re.sub(r"\[\n[^\[\]{}]*?\n\s*\]", lambda found: re.sub(r"\n\s*", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text)
    Path(path).write_text(flat + "\n")


# -- measuring -----------------------------------------------------------------------------------------------------------------------


def compare(
    env_config: Mapping[str, Any],
    planners: Mapping[str, Contender],
    samples: int,
    combos: str | None = None,
    seed: int = HELDOUT_SEED,
    pairs: Sequence[tuple[str, str]] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    photos: str | Path | None = None,
    whole: bool = False,
) -> Table:
    """Planners on held-out photographs.

    Args:
        env_config: the arguments of the environment; see :func:`evaluation_settings`.
        planners: by the name of their row. None is added: :func:`policies.planners.baselines` has the usual ones.
        samples: number of images.
        combos: other degradations than those of ``env_config``.
        seed: names the images.
        pairs: rows whose difference is told.
        progress: told what is measured, how many of its images are done, and of how many.
        photos: folder of other photographs, all of which are used.
        whole: whole photographs instead of crops.
    """
    settings = evaluation_settings(env_config, combos, photos=photos, whole=whole)
    process = RestorationProcess(**settings)
    note = f"seed {seed}; dataset {_describe(env_config.get('dataset'), settings['dataset'])}."
    return evaluate(process, planners, start_heldout(process, samples, seed), pairs, note, progress)


def evaluate(
    process: RestorationProcess,
    planners: Mapping[str, Contender],
    episodes: Sequence[Episode],
    pairs: Sequence[tuple[str, str]] = (),
    note: str = "",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Table:
    """Planners on the same fresh episodes, which are not changed; the arguments are those of :func:`compare`."""
    if not episodes:
        raise IrEnvError("there is nothing to evaluate on: give at least one image")
    rows, notes = [], []
    for name, planner in planners.items():
        progress(name, 0, len(episodes))
        if not isinstance(planner, Planner):
            planner = planner(process, episodes)
            notes.append(f"{name} ({planner.name}) was chosen on these very images")
        elif planner.needs_reference:
            notes.append(f"{name} looks at the clean image")
        own = [episode.fork() for episode in episodes]
        run_all(process, planner, own, lambda done, name=name: progress(name, done, len(episodes)))
        row = summarise(process, name, own)
        if planner.plans_whole:
            row = replace(row, calls=1.0, per_image={**row.per_image, "calls": [1.0] * len(own)})
        rows.append(row)
    notes.append(f"metrics: {process.suite.describe()}")
    table = Table(rows, [photo_of(episode.sample) for episode in episodes], f"{'; '.join(notes)}; {note}".removesuffix("; "))
    table.differences.extend(table.difference(*pair) for pair in pairs)
    return table


def run_all(
    process: RestorationProcess, planner: Planner, episodes: Sequence[Episode], progress: Callable[[int], None] = lambda done: None
) -> None:
    """Run episodes to their end, in batches; ``progress`` is told how many have ended."""
    for start in range(0, len(episodes), BATCH):
        batch = episodes[start : start + BATCH]
        for live in run(process, planner, batch):
            progress(start + len(batch) - live)


def summarise(process: RestorationProcess, policy: str, episodes: Sequence[Episode], **more: Any) -> Row:
    """The row of a policy from its finished episodes; ``more`` is kept beside it."""
    first, last = (np.stack([episode.scores[at] for episode in episodes]).astype(np.float64) for at in (0, -1))
    spread = first.std(0)
    # a metric that is the same for all images has no unit to measure gains in
    measured = spread > 0
    signs = process.suite.signs[measured]
    normalised = (signs * (last - first)[:, measured] / spread[measured]).sum(1) if measured.any() else np.full(len(episodes), np.nan)
    gains = np.array([process.gain(episode) for episode in episodes], np.float64)
    columns = {
        "reward": [episode.total_reward for episode in episodes],
        "gain": gains,
        "normalised": normalised,
        "tools": [len(episode.applied) for episode in episodes],
        "executions": [episode.executions for episode in episodes],
        "calls": [len(episode.history) for episode in episodes],
        **dict(zip(process.suite.names, last.T, strict=True)),
    }
    per_image = {name: [_defined(value) for value in values] for name, values in columns.items()}
    means = {name: _mean(values) for name, values in per_image.items()}
    return Row(
        policy=policy,
        images=len(episodes),
        reward=means["reward"],
        interval=bootstrap(per_image["reward"], [photo_of(episode.sample) for episode in episodes]),
        gain=means["gain"],
        normalised=means["normalised"],
        metrics={name: means[name] for name in process.suite.names},
        tools=float(np.mean(columns["tools"])),
        executions=float(np.mean(columns["executions"])),
        calls=float(np.mean(columns["calls"])),
        worse=float((gains < -1e-9).mean()),
        failures=sum(bool(episode.error) for episode in episodes),
        per_image=per_image,
        more=more,
    )


def evaluation_settings(
    env_config: Mapping[str, Any],
    combos: str | None = None,
    split: str = "heldout",
    photos: str | Path | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """The arguments of :class:`RestorationProcess` for an evaluation: those of the training, on the held-out photographs or on others.

    A dataset that is an object is taken as it is, or its ``heldout`` if it has one: a dataset, or a method that gives one. The settings of
    whole plans become those of single steps, with the usual reward, in which policies of both kinds are compared.
    """
    other = ("group_size", "view", "render_mode", "num_envs", "executor", "judge", "judge_options")
    settings = {key: value for key, value in env_config.items() if key not in other}
    if "max_plan" in settings:
        settings["max_steps"] = settings.pop("max_plan")
    if settings.get("reward") in PLAN_REWARDS:
        settings = {key: value for key, value in settings.items() if key not in ("reward", "reward_weights")}
    dataset = settings.get("dataset")
    if dataset is None or isinstance(dataset, str | Path | Mapping):
        dataset = dict(dataset) if isinstance(dataset, Mapping) else {"photos": str(dataset or "builtin")}
        if photos is not None:
            dataset = {**{key: value for key, value in dataset.items() if key != "mio100"}, "photos": str(photos), "split": "all"}
        elif "mio100" not in dataset:
            dataset["split"] = split
        if combos is not None:
            dataset["combos"] = combos
        if whole:
            dataset["crop_size"] = None
    elif combos is not None or photos is not None or whole:
        told = {"combos": combos, "photos": photos, "whole": whole or None}
        given = ", ".join(f"{name}={value!r}" for name, value in told.items() if value is not None)
        raise IrEnvError(
            f"the dataset is an object ({type(dataset).__name__}) with images of its own: leave out {given}, or give a mapping"
        )
    elif hasattr(dataset, split):
        dataset = getattr(dataset, split)
        dataset = dataset() if callable(dataset) else dataset
    settings["dataset"] = dataset
    return settings


def _describe(given: Any, used: Any) -> str:
    """The dataset that an evaluation uses, and whether it is held out."""
    unknown = " as it is: no held-out part of it is known"
    if isinstance(used, Mapping):
        return json.dumps(used, default=lambda value: type(value).__name__) + (unknown if isinstance(used.get("photos"), Photos) else "")
    return type(used).__name__ + (unknown if used is given else ", the held-out part")


def start_heldout(process: RestorationProcess, count: int, seed: int = HELDOUT_SEED) -> list[Episode]:
    """Fresh episodes on the held-out samples that ``seed`` names."""
    samples = fixed_samples(process.dataset, count, seed)
    return [episode for start in range(0, count, BATCH) for episode in process.start(samples[start : start + BATCH])]


def photo_of(sample: str) -> str:
    """The photograph of a sample by its identifier; an image that is no sample is its own."""
    try:
        return Sample.parse(sample).photo
    except IrEnvError:
        return sample


# -- statistics ----------------------------------------------------------------------------------------------------------------------


def bootstrap(
    values: Sequence[float | None] | np.ndarray, photographs: Sequence[str] | np.ndarray, share: float = 0.95, seed: int = 0
) -> list[float] | None:
    """The interval of a mean over images, by a bootstrap over photographs: all images of a photograph are drawn together.

    With few photographs it is too narrow, as any bootstrap is of few draws.

    Args:
        values: one per image; those that are not defined (None, NaN) are left out.
        photographs: the photograph of each image.
        share: that the interval holds of the resampled means, the same beyond either end.
        seed: of the draws.

    Returns:
        Its ends, or None where less than two photographs have values.
    """
    sums, counts = _by_photograph(values, photographs)
    number = len(sums)
    if number < 2:
        return None
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), RESAMPLES)
    means = (drawn @ sums) / (drawn @ counts)
    return [float(end) for end in np.quantile(means, [(1 - share) / 2, (1 + share) / 2])]


def sign_flips(values: Sequence[float | None] | np.ndarray, photographs: Sequence[str] | np.ndarray, seed: int = 0) -> float:
    """Two-sided p of paired differences: the share of ways to flip the signs of whole photographs that give as large a mean.

    Exact for up to :data:`EXACT` photographs; then by :data:`RESAMPLES` random flips, and the one that is there.
    """
    sums, _ = _by_photograph(values, photographs)
    if len(sums) <= EXACT:
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
        extra = 0
    else:
        signs = np.random.default_rng(seed).integers(0, 2, (RESAMPLES, len(sums)), np.int8) * 2 - 1
        extra = 1
    as_large = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    return float((as_large.sum() + extra) / (len(signs) + extra))


def _by_photograph(values: Sequence[float | None] | np.ndarray, photographs: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the defined values of each photograph that has some, float64 (P,)."""
    array = np.array(values, np.float64)
    defined = np.isfinite(array)
    _, rows = np.unique(np.asarray(photographs)[defined], return_inverse=True)
    return np.bincount(rows, array[defined]), np.bincount(rows).astype(np.float64)


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _signed(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None:
        return ""
    return f"{value:+.2f}" if interval is None else f"{value:+.3f} [{interval[0]:+.2f}, {interval[1]:+.2f}]"
