"""The plans that tools learn together under: what a policy applies to each image, made once and kept in ``plans.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ir_env.datasets import Dataset, Sample
from ir_env.datasets.base import fixed_samples
from ir_env.evaluation import photo_of, run_all
from ir_env.planner import Planner
from ir_env.process import DEFAULT_MAX_STEPS, RestorationProcess
from policies.loading import load_policy
from tool_actors.errors import IrEnvError
from tool_actors.toolboxes import load_toolbox

AT_ONCE = 32
"""Images whose plans are made together, and kept before the next."""


@dataclass(frozen=True)
class Planned:
    """An image and its plan."""

    sample: Sample
    tools: tuple[str, ...]


def planning(policy: str, toolbox: str | None, photos: str, crop: int | None, combos: str, seed: int) -> tuple[Planner, RestorationProcess]:
    """A policy, and the process that it plans in: that of its training, on all of these photographs.

    Args:
        policy: a name, or the path of a checkpoint.
        toolbox: its tools, by default those that it learned with.
        photos, crop, combos, seed: of the images; without a crop whole photographs.
    """
    planner = load_policy(policy, seed)
    tools = load_toolbox(toolbox or planner.toolbox or planner.env_config.get("toolbox") or "default")
    dataset = {"photos": photos, "split": "all", "crop_size": crop, "combos": combos, "seed": seed}
    steps = planner.env_config.get("max_steps") or DEFAULT_MAX_STEPS
    return planner, RestorationProcess(dataset, tools, metrics=["psnr"], max_steps=steps)


def make_plans(
    process: RestorationProcess,
    planner: Planner,
    count: int,
    seed: int,
    path: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Planned]:
    """The plans of the images that the seed names, in order; those that the file holds are not made again.

    A plan is what the policy applied to the image, one decision after another; where a tool failed, the tools before it.

    Raises:
        IrEnvError: the file holds plans of other images or of another policy.
    """
    samples = fixed_samples(process.dataset, count, seed)
    told = json.loads(path.read_text()) if path.is_file() else {"policy": planner.name, "plans": []}
    known = [Planned(Sample.parse(each["sample"]), tuple(each["tools"])) for each in told["plans"]]
    if told["policy"] != planner.name or [each.sample for each in known] != samples[: len(known)]:
        raise IrEnvError(
            f"{path} holds plans of {told['policy']} for other images than these: repeat the settings it was begun with, "
            "or choose another --out"
        )
    while len(known) < count:
        progress(len(known), count)
        episodes = process.start(samples[len(known) : len(known) + AT_ONCE])
        run_all(process, planner, episodes)
        for episode in episodes:
            known.append(Planned(Sample.parse(episode.sample), tuple(process.actions[action].tool for action in episode.applied)))
        _keep(path, planner.name, known)
    return known


def read_plans(path: Path) -> list[Planned]:
    """The plans of a file that :func:`make_plans` or a user wrote: ``{"plans": [{"sample": ..., "tools": [...]}, ...]}``."""
    try:
        return [Planned(Sample.parse(each["sample"]), tuple(each["tools"])) for each in json.loads(path.read_text())["plans"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IrEnvError(f'{path}: no plans ({error!r}); it is JSON, {{"plans": [{{"sample": "...", "tools": ["..."]}}, ...]}}') from error


def split_by_photograph(planned: Sequence[Planned], share: float = 0.2) -> tuple[list[Planned], list[Planned]]:
    """Those to learn from and those to validate on: whole photographs, chosen by a hash of their names."""
    names = sorted({each.sample.photo for each in planned}, key=lambda name: hashlib.sha256(name.encode()).digest())
    if len(names) < 2:
        raise IrEnvError("there is one photograph: two at least are needed to learn from one and validate on another")
    kept = set(names[: max(1, round(share * len(names)))])
    return [each for each in planned if each.sample.photo not in kept], [each for each in planned if each.sample.photo in kept]


def photographs(planned: Sequence[Planned]) -> list[str]:
    """The photograph of each image."""
    return [photo_of(each.sample.id) for each in planned]


def check_tools(planned: Sequence[Planned], names: Sequence[str], dataset: Dataset) -> None:
    """Raise :class:`IrEnvError` for a plan whose tools the toolbox does not hold, or whose photograph is not there."""
    if missing := sorted({tool for each in planned for tool in each.tools} - set(names)):
        raise IrEnvError(f"the plans name tools that the toolbox does not hold: {', '.join(missing)}. Give the toolbox they were made with")
    known = set(getattr(getattr(dataset, "photos", None), "names", [each.sample.photo for each in planned]))
    if absent := sorted({each.sample.photo for each in planned} - known):
        raise IrEnvError(f"the plans are of photographs that --photos does not hold, such as {absent[0]}")


def _keep(path: Path, policy: str, planned: Sequence[Planned]) -> None:
    lines = ",\n".join(json.dumps({"sample": each.sample.id, "tools": list(each.tools)}) for each in planned)
    temporary = path.with_suffix(".part")
    temporary.write_text(f'{{"policy": {json.dumps(policy)}, "plans": [\n{lines}\n]}}\n')
    temporary.replace(path)
