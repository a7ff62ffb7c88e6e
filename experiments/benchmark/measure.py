"""One chunk of images under one policy: what was done, what it gave, and what it took."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ir_env.datasets import Sample
from ir_env.episode import Episode
from ir_env.images import written_whole
from ir_env.metrics import DEFAULT_METRICS, NO_REFERENCE_METRICS, MetricSuite, MetricWeightsMissing, find_metric
from ir_env.planner import Planner, run
from ir_env.process import RestorationProcess
from ir_env.rewards import DEFAULT_WEIGHTS
from policies.loading import PLANNERS, PREFIXES, WITHOUT_WEIGHTS, find_checkpoint, load_before_training, load_policy, shipped_weights
from policies.planners.perception import Labels
from policies.planners.search import SearchPlanner
from tool_actors.errors import IrEnvError
from tool_actors.extras import MissingExtraError, need
from tool_actors.weight_files import file_sha256

PAPER_METRICS = ("psnr", "psnry", "ssim_ycbcr", "lpips", "maniqa", "clipiqa", "musiq")
"""The six of TIR-Agent's tables, with PSNR in both customs; four of them need weights."""
TRAINED_SETTINGS = ("toolbox", "quantize", "max_steps")
"""Of its training that a policy keeps wherever it is measured."""


@dataclass(frozen=True)
class Entry:
    """A policy of the table."""

    name: str
    policy: str
    """What ``ir-env restore`` takes, ``before:RUN``, or ``module:NAME`` (``FILE.py:NAME``), a planner or a class of one."""
    toolbox: str | None = None

    @classmethod
    def parse(cls, text: str) -> Entry:
        """``NAME=POLICY@TOOLBOX``, of which name and toolbox may be missing."""
        name, equals, rest = text.partition("=")
        policy, _, toolbox = (rest if equals else text).partition("@")
        if not policy or (equals and not name):
            raise IrEnvError(f"--policy {text!r}: write NAME=POLICY or NAME=POLICY@TOOLBOX, or the policy alone")
        return cls(name if equals else policy, policy, toolbox or None)


@dataclass(frozen=True)
class Job:
    """Images of one set under one policy; the rows go to ``place``, pictures instead if it is for the gallery."""

    entry: Entry
    dataset: str
    """The description of the dataset, as JSON: a worker keeps what it made of it."""
    samples: tuple[Sample, ...]
    metrics: tuple[str, ...]
    executor: str
    seed: int
    place: Path
    for_gallery: bool = False


# -- policies ------------------------------------------------------------------------------------------------------------------------


def policy_at(text: str, seed: int = 0) -> Planner:
    """A planner, see :attr:`Entry.policy`."""
    if text.startswith("before:"):
        planner = load_before_training(text.removeprefix("before:"))
        if planner is None:
            raise IrEnvError(f"{text}: the run did not keep its policy of before the training")
        return planner
    module, colon, name = text.rpartition(":")
    if not colon or text.startswith(tuple(PREFIXES)) or Path(text).exists():
        return load_policy(text, seed)
    found = getattr(_module(module), name, None)
    planner = found() if isinstance(found, type) else found
    if not isinstance(planner, Planner):
        raise IrEnvError(f"policy {text!r}: {name} is no ir_env.Planner, nor a class of one that is made without arguments")
    return planner


def _module(place: str) -> Any:
    try:
        if not place.endswith(".py"):
            # a command, unlike `python -m`, does not look in the current folder
            sys.path.insert(0, "")
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    except (ImportError, OSError, SyntaxError) as error:
        raise IrEnvError(f"policy of {place}: cannot be imported ({type(error).__name__}: {error})") from error
    finally:
        if "" in sys.path[:1]:
            sys.path.pop(0)


def version_of(text: str) -> str:
    """Changes whenever what a policy's text stands for may have changed: of a path its checkpoint and its files, of code its text, of a
    name the weights that come with the project."""
    if (name := text.partition(":")[0]) in PLANNERS:
        return text if name in WITHOUT_WEIGHTS else f"{text} {_shipped()}"
    place = Path(text.removeprefix("before:"))
    if place.is_dir() and not any(place.glob("*.safetensors")):
        place = find_checkpoint(place)
    if (source := Path(text.rpartition(":")[0])).suffix == ".py" and source.is_file():
        return hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    if not place.exists():
        return text
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    told = [(str(path), (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


@cache
def _shipped() -> str:
    """A digest of the weights that come with the project."""
    return hashlib.sha256("".join(map(file_sha256, shipped_weights())).encode()).hexdigest()[:16]


# -- metrics -------------------------------------------------------------------------------------------------------------------------


def settle_metrics(wanted: str) -> tuple[tuple[str, ...], str]:
    """The metrics, and a word on the choice.

    Args:
        wanted: ``auto``: those of the papers if all weights are there, else those that need none; ``paper`` and ``offline`` take either;
            or names, separated by commas.
    """
    if wanted == "paper":
        return PAPER_METRICS, ""
    if wanted == "offline":
        return DEFAULT_METRICS, ""
    if wanted != "auto":
        names = tuple(name.strip() for name in wanted.split(",") if name.strip())
        return tuple(MetricSuite(names).names), ""
    for name in PAPER_METRICS:
        try:
            if not find_metric(name).offline:
                with _no_downloads():
                    MetricSuite([name])._scorer(find_metric(name))
        except MetricWeightsMissing:
            return DEFAULT_METRICS, f"the weights of {name} are not there, so metrics that need none are taken (--metrics paper downloads)"
        except MissingExtraError as missing:
            return DEFAULT_METRICS, f"metrics that need no pyiqa are taken: for {name} {missing}"
    return PAPER_METRICS, ""


@contextmanager
def _no_downloads() -> Iterator[None]:
    """Weights are looked for on disk alone: a command must not fetch a gigabyte unasked."""
    need("pyiqa")
    import huggingface_hub.constants as hub
    import torch
    from pyiqa.utils import download_util

    def refuse(url, *args, **kwargs):
        raise OSError(f"not downloaded: {url}")

    before = torch.hub.download_url_to_file, download_util.download_url_to_file, hub.HF_HUB_OFFLINE
    torch.hub.download_url_to_file, download_util.download_url_to_file, hub.HF_HUB_OFFLINE = refuse, refuse, True
    try:
        # torch says that it downloads before it does
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        torch.hub.download_url_to_file, download_util.download_url_to_file, hub.HF_HUB_OFFLINE = before


def metrics_for(metrics: Sequence[str], has_reference: bool) -> tuple[str, ...]:
    """Of the metrics those that can be had; without a clean image NIQE and PIQE, if no other one weighs in the quality."""
    if has_reference:
        return tuple(metrics)
    free = tuple(name for name in metrics if not find_metric(name).needs_reference)
    return free if any(name in DEFAULT_WEIGHTS for name in free) else tuple(dict.fromkeys([*free, *NO_REFERENCE_METRICS]))


# -- measuring -----------------------------------------------------------------------------------------------------------------------


def process_for(planner: Planner, entry: Entry, dataset: Mapping[str, Any], metrics: Sequence[str], executor: str) -> RestorationProcess:
    """The decision process on a test set, with the tools that the policy knows and at most as many steps as it learned with."""
    settings: dict[str, Any] = {key: planner.env_config[key] for key in TRAINED_SETTINGS if planner.env_config.get(key) is not None}
    if planner.env_config.get("max_plan"):
        settings["max_steps"] = planner.env_config["max_plan"]
    if chosen := entry.toolbox or planner.toolbox:
        settings["toolbox"] = chosen
    return RestorationProcess(dict(dataset), metrics=metrics, executor=executor, cache_bytes=256 << 20, **settings)


_planner = lru_cache(maxsize=1)(policy_at)


@lru_cache(maxsize=1)
def _process(entry: Entry, dataset: str, metrics: tuple[str, ...], executor: str, seed: int) -> RestorationProcess:
    return process_for(_planner(entry.policy, seed), entry, json.loads(dataset), metrics, executor)


def _may_draw(text: str) -> bool:
    """Whether what a policy does may depend on what it did before: it is then made anew for each job."""
    return text == "random" or (":" in text and not text.startswith(("before:", *PREFIXES)))


def _unanswered(planner: Planner) -> int:
    """Answers that did not come so far: what a policy does without them is no result of it."""
    return planner.endpoint.unanswered if planner.endpoint else 0


def seed_of(samples: Sequence[Sample], seed: int) -> int:
    """Of a policy that draws: another for each chunk, whoever measures it and whatever was measured before."""
    return int.from_bytes(hashlib.sha256(f"{seed}{[sample.id for sample in samples]}".encode()).digest()[:4])


def finished(job: Job) -> tuple[RestorationProcess, Planner, list[Episode], float]:
    """The ended episodes of a job, and the seconds that policy and tools took for them all; the table's metrics do not count."""
    text = job.entry.policy
    planner = policy_at(text, seed_of(job.samples, job.seed)) if _may_draw(text) else _planner(text, job.seed)
    process = _process(job.entry, job.dataset, job.metrics, job.executor, job.seed)
    scoring, score, unanswered = 0.0, process.executor.score, _unanswered(planner)

    def timed(scorer, states, references):
        nonlocal scoring
        start = time.perf_counter()
        told = score(scorer, states, references)
        scoring += (time.perf_counter() - start) * (scorer is process.suite)
        return told

    episodes = process.start(job.samples)
    process.executor.score = timed
    start = time.perf_counter()
    try:
        if isinstance(planner, SearchPlanner):
            planner = planner.made_for(process, episodes)
        if isinstance(labels := getattr(planner, "perceive", None), Labels):
            labels.tell(episodes)
        for _ in run(process, planner, episodes):
            pass
    finally:
        process.executor.score = score
    if missing := _unanswered(planner) - unanswered:
        raise IrEnvError(f"{missing} answers of {planner.endpoint.model!r} did not come; the log says why")
    return process, planner, episodes, time.perf_counter() - start - scoring


def measure(job: Job) -> None:
    """Write the rows of a job, one per image."""
    process, planner, episodes, seconds = finished(job)
    quality = getattr(process.reward, "quality", None)
    assert quality is not None, "the default reward has one"
    signs = process.suite.signs
    rows = [
        {
            "sample": sample.id,
            "photograph": sample.photo,
            "combination": "+".join(sample.combo),
            "before": dict(zip(process.suite.names, map(float, episode.scores[0]), strict=True)),
            "after": dict(zip(process.suite.names, map(float, episode.scores[-1]), strict=True)),
            "quality": [float(quality(signs * scores)) for scores in episode.scores],
            "tools": [process.actions.name(action) for action in episode.applied],
            "tasks": [process.actions[action].task for action in episode.applied],
            "executions": episode.executions,
            "calls": 1 if planner.plans_whole else len(episode.history),
            "seconds": seconds / len(episodes),
            "undefined": episode.undefined,
            "error": episode.error,
        }
        for sample, episode in zip(job.samples, episodes, strict=True)
    ]
    with written_whole(job.place) as file:
        file.write(json.dumps(rows, allow_nan=False).encode())


def keep_pictures(job: Job, side: int = 448) -> None:
    """Write the states of a job's only image, and the clean one, as small files, with what happened between them."""
    process, _, [episode], _ = finished(job)
    pictures = [state.as_uint8() for state in episode.states]
    names = [f"{number}.webp" for number in range(len(pictures))]
    if episode.reference is not None:
        pictures.append(episode.reference)
        names.append("clean.webp")
    for name, pixels in zip(names, pictures, strict=True):
        _save_small(job.place / name, pixels, side)
    steps = [
        {
            "tool": process.actions.name(action) if number else "",
            "task": process.actions[action].task if number else "",
            "metrics": dict(zip(process.suite.names, map(float, scores), strict=True)),
        }
        for number, (action, scores) in enumerate(zip([-1, *episode.applied], episode.scores, strict=True))
    ]
    told = {"policy": job.entry.name, "sample": episode.sample, "combination": episode.combo, "steps": steps, "error": episode.error}
    # last, so that a trajectory that has it is whole
    with written_whole(job.place / "trajectory.json") as file:
        file.write(json.dumps(told, indent=1).encode())


def _save_small(path: Path, pixels: np.ndarray, side: int) -> None:
    from PIL import Image

    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    if scale < 1:
        image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
    with written_whole(path) as file:
        image.save(file, "WEBP", quality=82)


def work(job: Job) -> tuple[Job, str]:
    """Do a job; returns it with what went wrong, which other jobs do not share."""
    try:
        keep_pictures(job) if job.for_gallery else measure(job)
    except IrEnvError as error:
        return job, str(error)
    except Exception as error:
        return job, f"{type(error).__name__}: {error}"
    return job, ""
