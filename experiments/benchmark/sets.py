"""Test sets: the benchmark's groups, out-of-domain combinations, and folders of ready images; and which of them a training saw."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ir_env.datasets import Sample, SynthesisedDataset, load_dataset
from ir_env.datasets.base import fixed_samples
from ir_env.degradations import GROUPS
from ir_env.degradations.combos import ORDER, Combo, parse_combos, staged_combos
from ir_env.planner import Planner
from tool_actors.errors import IrEnvError

SIZES = {"D2": {2: 12}, "D35": {3: 6, 4: 5, 5: 5}}
"""Out-of-domain sets (TIR-Agent, table 4) -> number of degradations -> how many combinations."""
DRAWN = 3
"""The trainings of this project draw at most so many degradations at once: every set of so many has been seen in some order."""


def _out_of_domain(sizes: Mapping[int, int]) -> tuple[Combo, ...]:
    """Combinations that are in no group in any order, and that none of the named ones (``random``, ``opera``) draws; which, a hash decides.

    Two and three degradations come in the reverse of :data:`ORDER`: the sensor's or the file's before the scene's, such as rain on what was
    compressed already. Four and five, which nothing draws in any order, come in :data:`ORDER`.
    """
    known = {frozenset(combo) for group in "ABC" for combo in GROUPS[group]}
    chosen: list[Combo] = []
    for size, count in sizes.items():
        free = [combo for combo in itertools.combinations(ORDER, size) if frozenset(combo) not in known]
        if size <= DRAWN:
            drawn = set(staged_combos(size))
            free = [combo[::-1] for combo in free if combo[::-1] not in drawn]
        chosen += sorted(free, key=_hash)[:count]
    return tuple(sorted(chosen, key=_hash))


def _hash(combo: Combo) -> bytes:
    return hashlib.sha256("+".join(combo).encode()).digest()


OUT_OF_DOMAIN = {name: _out_of_domain(sizes) for name, sizes in SIZES.items()}


class UnseenError(IrEnvError):
    """A set is called unseen, and the training of a policy saw it."""


@dataclass(frozen=True)
class TestSet:
    """Images that policies are measured on."""

    __test__ = False

    name: str
    """``A``, ``D2``, ``MiO100 A``, ``CDD-11``, the name of a folder, ..."""
    dataset: Mapping[str, Any]
    """See :func:`ir_env.datasets.load_dataset`."""
    samples: tuple[Sample, ...] = ()
    unseen: tuple[Combo, ...] = ()
    """The combinations of a set that is meant to be out of domain."""
    has_reference: bool = True
    listing: Any = field(default=None, repr=False)
    """Of the files that it is made from: others make another set."""


def synthesised(
    names: Sequence[str], photos: str, crop: int | None, samples: int, seed: int, instead: Mapping[str, Sequence[Combo]] | None = None
) -> list[TestSet]:
    """Sets of clean photographs that are degraded here.

    The images of all sets are drawn together, so that they go round the photographs and the combinations; those of ``A,B,C`` are the images
    of :func:`ir_env.evaluation.start_heldout`.

    Args:
        names: groups, ``D2``, ``D35``, or what else :func:`ir_env.degradations.parse_combos` takes as one.
        photos: ``builtin``, or a folder.
        crop: side of the crops; None takes whole photographs.
        samples: images of all sets together.
        seed: names the images.
        instead: other combinations of an out-of-domain set.

    Raises:
        IrEnvError: a set gets no image.
    """
    entries = {name: tuple((instead or {}).get(name) or OUT_OF_DOMAIN.get(name) or parse_combos(name).entries) for name in names}
    set_of = {combo: name for name in reversed(entries) for combo in entries[name]}
    combos = ["+".join(combo) for own in entries.values() for combo in own]
    split = "heldout" if photos == "builtin" else "all"
    told = {"photos": photos, "split": split, "crop_size": crop, "combos": list(dict.fromkeys(combos))}
    dataset = load_dataset(told)
    assert isinstance(dataset, SynthesisedDataset)
    drawn: dict[str, list[Sample]] = {}
    for sample in fixed_samples(dataset, samples, seed):
        drawn.setdefault(set_of[sample.combo], []).append(sample)
    if empty := [name for name in entries if name not in drawn]:
        raise IrEnvError(
            f"{samples} images leave none for {', '.join(empty)}: their {len(set_of)} combinations take turns. Give "
            f"--samples {len(set_of)} or more, or fewer --sets."
        )
    listing = dataset.photos.listing()
    return [TestSet(name, told, tuple(drawn[name]), entries[name] if name in OUT_OF_DOMAIN else (), listing=listing) for name in entries]


def ready(name: str, dataset: Mapping[str, Any], samples: int, seed: int, has_reference: bool = True) -> TestSet:
    """A set of images that are degraded already; ``samples`` of them, or all if there are not so many or it is 0."""
    images: Any = load_dataset(dataset)
    return TestSet(name, dataset, tuple(spread(images.samples, samples, seed)), has_reference=has_reference)


def spread(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """``count`` of the samples, none twice, that go round the combinations; all of them, in their order, where ``count`` is 0."""
    if not count or count >= len(samples):
        return list(samples)
    rng = np.random.default_rng(seed)
    of_combo: dict[Combo, list[Sample]] = {}
    for index in rng.permutation(len(samples)):
        of_combo.setdefault(samples[index].combo, []).append(samples[index])
    ordered = [of_combo[combo] for combo in sorted(of_combo)]
    rounds = itertools.zip_longest(*ordered)
    return [sample for each in rounds for sample in each if sample is not None][:count]


# -- what a training saw -------------------------------------------------------------------------------------------------------------


def trained_combos(planner: Planner) -> set[Combo] | None:
    """Combinations of degradations, in their order, that a policy's training saw, or that of the encoder it looks through; None if nobody
    knows."""
    dataset = planner.env_config.get("dataset")
    if planner.trained_combos is None or not isinstance(dataset, Mapping | str | None):
        return None
    specs = list(planner.trained_combos)
    if isinstance(dataset, Mapping):
        # what the datasets draw from where nothing is said
        specs.append(dataset.get("combos", "A,B,C"))
    specs += _encoder_combos(planner)
    return {combo for spec in specs for combo in parse_combos(spec).entries}


def _encoder_combos(planner: Planner) -> list[Any]:
    """Of the supervised encoder of a SimpleCall-style policy, or of a planner's perception."""
    for path in ("network.encoder", "module.network.encoder", "perceive._encoder"):
        part: Any = planner
        for name in path.split("."):
            part = getattr(part, name, None)
        if part is not None:
            return list(getattr(part, "combos", ()))
    return []


def check_unseen(sets: Sequence[TestSet], trained: Mapping[str, set[Combo] | None]) -> None:
    """Refuse a set that is meant to be out of domain and that the training of a policy saw.

    Args:
        sets: those that are measured.
        trained: name of a policy -> :func:`trained_combos`.

    Raises:
        UnseenError: names the policy, the set and the combinations.
    """
    for each in sets:
        for policy, seen in trained.items():
            known = [combo for combo in each.unseen if combo in (seen or ())]
            if known:
                shown = ", ".join(map("+".join, known[:3])) + (f" and {len(known) - 3} more" if len(known) > 3 else "")
                raise UnseenError(
                    f"the set {each.name} is not unseen: the training of {policy!r} saw {shown}. Leave out the set (--sets) or the policy; "
                    "or measure what no policy saw of it (--seen drop), or all of it with a mark (--seen mark); or train the policy on "
                    "other combinations (--set env_config.dataset.combos=A,B,C)"
                )


def seen_share(test: TestSet, seen: set[Combo] | None) -> float | None:
    """Of the combinations of an out-of-domain set, the share that a training saw; None if nobody knows."""
    return None if seen is None else sum(combo in seen for combo in test.unseen) / len(test.unseen)


def reordered_share(test: TestSet, seen: set[Combo] | None) -> float | None:
    """The share whose degradations a training saw together in another order, and in this one never; None if nobody knows."""
    if seen is None:
        return None
    together = {frozenset(combo) for combo in seen}
    return sum(combo not in seen and frozenset(combo) in together for combo in test.unseen) / len(test.unseen)


def without_seen(sets: Sequence[str], trained: Mapping[str, set[Combo] | None]) -> dict[str, tuple[Combo, ...]]:
    """Out-of-domain sets -> their combinations that no training saw.

    Raises:
        UnseenError: nothing is left of a set.
    """
    seen = set().union(*(combos for combos in trained.values() if combos))
    left = {name: tuple(combo for combo in OUT_OF_DOMAIN[name] if combo not in seen) for name in sets if name in OUT_OF_DOMAIN}
    for name, combos in left.items():
        if not combos:
            raise UnseenError(
                f"the trainings of {', '.join(trained)} saw every combination of {name} between them: leave out the set (--sets)"
            )
    return left
