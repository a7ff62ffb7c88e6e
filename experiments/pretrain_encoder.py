"""Teach the small CNN encoder of the SimpleCall-style policy what is wrong with a picture, and what tools would do about it.

How to run
----------
    python -m experiments.pretrain_encoder --photos FOLDER --out mine.safetensors
    python -m experiments.pretrain_encoder --photos FOLDER --toolbox mine.yaml --out mine.safetensors    # for your own tools
    python -m experiments.pretrain_encoder --photos FOLDER --view '{"overview": 0}' --out mine.safetensors    # for another view

Its examples are images from the middle of restorations, in which tools are drawn by their gain or at random, with labels that cost no
annotation, since the degradations are ours: which degradations are left, and what ``--labels`` tools of the toolbox, of each task at least
one, would gain next, in units of the reward (increment of PSNR / 9 + SSIM / 0.3 - PIQE / 50).

The encoder that the project ships was made in four steps, since small crops are cheap and large ones show the scene:

    python -m experiments.pretrain_encoder --photos FOLDER --crop 64 --states 10080 --labels 24 --epochs 6 --batch 64 --lr 2e-3 \\
        --out first.safetensors
    python -m experiments.pretrain_encoder --photos FOLDER --heldout-photos OTHER --start first.safetensors --seed 7 \\
        --out second.safetensors
    python -m experiments.pretrain_encoder --photos FOLDER --heldout-photos OTHER --start second.safetensors --seed 7 --crop 256,0 \\
        --states 4728,960 --labels 12,8 --heldout 408,72 --epochs 5 --lr 7e-4 --out third.safetensors
    python -m experiments.pretrain_encoder --photos FOLDER --heldout-photos OTHER --start third.safetensors --seed 7 --crop 256,0,256,0 \\
        --states 4728,960,4800,4800 --labels 12,8,0,0 --heldout 408,72,0,0 --epochs 3 --lr 7e-4

It sees levels of brightness (``_Levels``) since the third step, which began with the head's weights for them at 0.

Several ``--crop`` are learned from together, 0 being whole photographs: what learned from crops of 256 pixels alone saw rain in 96 % of
such crops and in 60 % of whole photographs. Examples without labels of gains cost next to nothing to make, and teach to see.

The encoder is written in half precision, with a card of what it was trained on and what it reached on photographs it never saw. The states
are kept in ``--work``, so an interrupted run goes on where it stopped; other settings, tools or photographs make others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import nn

from experiments.resumable import folder_for
from experiments.train_tools import has_bfloat16_units
from ir_env.datasets import Split, SynthesisedDataset, load_photos
from ir_env.episode import Episode
from ir_env.process import RestorationProcess
from ir_env.view import View
from policies.simplecall.encoders import SmallCNN
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS, TASK_OF
from tool_actors.threads import limit_threads
from tool_actors.toolboxes import load_toolbox

CHUNK, STEPS = 24, 3
COMBOS = ("random:2:2:2", "A,B,C")
"""What the crops are degraded by: half of them by any two or three degradations or one, half as the benchmark's images are."""
METRICS = ("psnr", "ssim_ycbcr", "piqe")
"""Of the reward whose increments are foreseen, weighed as by default."""
TEMPERATURE, EXPLORING = 0.15, 0.3
"""Of the choice among tools by their gains, in units of reward; share of choices at random."""
GAIN_WEIGHT = 4.0
"""Of the gains' loss beside that of the degradations."""
SPARE = 2
"""So many times the view's glimpses are cut from each image; every showing has another choice of them."""
BATCH = 32


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_examples_arguments(parser)
    parser.add_argument("--view", type=json.loads, default={}, help="what the policy will see, as JSON; see ir_env/view.py")
    parser.add_argument("--start", type=Path, help="weights to go on from, as this command wrote them")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--out", type=Path, default=SmallCNN.WEIGHTS)
    options = parser.parse_args(arguments)
    if (states := sum(options.states)) < options.batch:
        raise IrEnvError(f"--states {states} are less than one --batch of {options.batch}: ask for more, or lower the batch")

    start = time.monotonic()
    toolbox, view = load_toolbox(options.toolbox), View.of(options.view)
    train, heldout = make_sets(options, view, toolbox.references)
    limit_threads(options.threads)
    made = time.monotonic()
    torch.manual_seed(options.seed)
    network = Telling(SmallCNN(options.start, toolbox.names, view))
    fit(
        network,
        train,
        joined(list(heldout.values())),
        options.epochs,
        options.batch,
        options.lr,
        options.seed,
        weight_decay=0.02,
        mix_colours=True,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # vectors are small and hold variances, which half precision would round to 0
    encoder = network.encoder
    stored = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in encoder.state_dict().items()}
    save_file(stored, options.out)
    encoder.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in stored.items()})
    reports = {f"crops of {crop} px" if crop else "whole photographs": evaluate(network.eval(), each) for crop, each in heldout.items()}
    card = {
        "network": "SmallCNN, width 32",
        "learned": "which degradations are there; what each tool would gain",
        "tools": toolbox.names,
        "view": asdict(view),
        "photographs": _last_parts(options.photos),
        "held_out_photographs": _last_parts(options.heldout_photos or options.photos),
        "combinations": list(COMBOS),
        "settings": {key: getattr(options, key) for key in ("crop", "states", "labels", "epochs", "batch", "lr", "seed")},
        "started_from": json.loads(options.start.with_suffix(".json").read_text()) if options.start else None,
        "seconds": {"examples": round(made - start), "training": round(time.monotonic() - made)},
        "held_out": reports,
    }
    options.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB")
    return 0


def add_examples_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides the examples, and where they are made."""
    cores = multiprocessing.cpu_count()
    parser.add_argument("--photos", required=True, help="folder of photographs to learn from, or builtin")
    parser.add_argument("--heldout-photos", help="folder of others to measure on; by default one in five of --photos")
    parser.add_argument("--toolbox", default="default")
    counts = {"type": integers, "metavar": "N[,N]"}
    parser.add_argument("--crop", default=[256], help="side of the crops, in pixels; 0 takes whole photographs; one or several", **counts)
    parser.add_argument("--states", default=[4_728], help="images to learn from, of each --crop", **counts)
    parser.add_argument("--heldout", default=[408], help="images of photographs that it never sees, of each --crop", **counts)
    parser.add_argument("--labels", default=[12], help="tools tried on each image, of each task at least one; 0 tries none", **counts)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=cores, help="of the training; by default one per core")
    parser.add_argument("--processes", type=int, default=cores, help="that make examples; 1 makes them in this one")
    parser.add_argument("--work", type=Path, default=Path("results/pretrain_encoder"), help="keeps the examples")


def integers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


def _last_parts(folder: str) -> str:
    return "/".join(Path(folder).resolve().parts[-2:])


# -- examples ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examples:
    """States of restorations, and what is known of each."""

    seen: dict[str, torch.Tensor]
    """What the view shows, with :data:`SPARE` times its glimpses, see :meth:`ir_env.view.View.look`: N rows each."""
    present: torch.Tensor
    """float32 (N, 8): which degradations are left."""
    gains: torch.Tensor
    """float32 (N, tools): what each would gain; NaN where it is forbidden or was not tried."""

    def __len__(self) -> int:
        return len(self.present)

    def show(self, rows: np.ndarray, rng: np.random.Generator | None = None) -> dict[str, torch.Tensor]:
        """The pictures of some rows, with as many glimpses as the view has: at random, or the same ones every time."""
        shown = {name: pictures[rows] for name, pictures in self.seen.items()}
        if "glimpses" in shown:
            there = shown["glimpses"].shape[1]
            count = there // SPARE
            chosen = np.linspace(0, there - 1, count).round().astype(int) if rng is None else np.sort(rng.permutation(there)[:count])
            shown["glimpses"] = shown["glimpses"][:, chosen]
        return shown


def make_sets(options: argparse.Namespace, view: View, tools: list[str | dict]) -> tuple[Examples, dict[int, Examples]]:
    """Those to learn from, and by the side of their crops those held out, as the command's options say; see :func:`make_examples`."""
    numbers = options.states, options.heldout, options.labels
    if any(len(each) != len(options.crop) for each in numbers):
        raise IrEnvError(f"--crop has {len(options.crop)} sides, so --states, --heldout and --labels need as many numbers each")
    apart, train, heldout = options.heldout_photos, [], {}
    for crop, states, measured, labels in zip(options.crop, *numbers, strict=True):
        learning = options.photos, "all" if apart else "train", labels, states, options.seed
        measuring = apart or options.photos, "all" if apart else "heldout", len(tools), measured, options.seed + 1
        train.append(make_examples(*learning, crop, view, tools, options.processes, options.work))
        if measured:
            heldout[crop] = make_examples(*measuring, crop, view, tools, options.processes, options.work)
    return joined(train), heldout


def joined(parts: Sequence[Examples]) -> Examples:
    """All of them, one behind another."""
    seen = {name: torch.cat([part.seen[name] for part in parts]) for name in parts[0].seen}
    return Examples(seen, torch.cat([part.present for part in parts]), torch.cat([part.gains for part in parts]))


def make_examples(
    photos: str,
    split: Split,
    labels: int,
    states: int,
    seed: int,
    crop: int,
    view: View,
    tools: list[str | dict],
    processes: int,
    work: Path,
) -> Examples:
    """Examples, whose images are kept in ``work`` whole, so that another view needs no other images."""
    deciding = {
        "photographs": load_photos(photos, split).listing(),
        "tools": [tool.spec.fingerprint for tool in load_toolbox(tools)],
        "combinations": COMBOS,
        "metrics": METRICS,
        "steps": STEPS,
        "choice": [TEMPERATURE, EXPLORING],
        "crop": crop,
        "labels": labels,
        "seed": seed,
    }
    folder = folder_for(work, f"{split}_{crop}", deciding)
    shown = replace(view, glimpses=SPARE * view.glimpses)
    # two chunks of one kind follow one another
    kinds = [combos for combos in COMBOS for _ in range(2)]
    jobs = [
        (photos, split, crop, tools, labels, combos, (seed, at), folder / f"{at:06}.npz", shown)
        for at, combos in zip(range(0, states, CHUNK), cycle(kinds), strict=False)
    ]
    what = {"description": f"making {split} examples", "total": len(jobs), "transient": True}
    if processes == 1:
        parts = list(track(map(_make_chunk, jobs), **what))
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = list(track(pool.imap(_make_chunk, jobs), **what))
    seen, present, gains = zip(*parts, strict=True)
    joined = {name: torch.from_numpy(np.concatenate([part[name] for part in seen])[:states]) for name in seen[0]}
    return Examples(joined, *(torch.from_numpy(np.concatenate(column)[:states]) for column in (present, gains)))


_processes: dict[str, RestorationProcess] = {}


def _make_chunk(job) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    *what, kept, view = job
    limit_threads(1)
    if not kept.is_file():
        images, present, gains = _make_states(*what)
        temporary = kept.with_suffix(".part.npz")
        shapes = np.array([image.shape[:2] for image in images])
        np.savez(temporary, pixels=np.concatenate([image.ravel() for image in images]), shapes=shapes, present=present, gains=gains)
        temporary.replace(kept)
    with np.load(kept) as arrays:
        shapes, pixels = arrays["shapes"], arrays["pixels"]
        ends = np.cumsum(3 * shapes.prod(1))
        images = [part.reshape(*shape, 3) for part, shape in zip(np.split(pixels, ends[:-1]), shapes, strict=True)]
        seen = [view.look([image]) for image in images]
        return {name: np.stack([each[name] for each in seen]) for name in seen[0]}, arrays["present"], arrays["gains"]


def _make_states(
    photos: str, split: Split, crop: int, tools: list[str | dict], labels: int, combos: str, seed: tuple[int, int]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """:data:`CHUNK` images from restorations of :data:`STEPS` steps, or without labels as they are before the first; which degradations are
    left; gains of the tools tried."""
    key = json.dumps([photos, split, crop, combos, tools])
    if key not in _processes:
        dataset = SynthesisedDataset(photos, split, crop_size=crop or None, combos=combos)
        _processes[key] = RestorationProcess(dataset, load_toolbox(tools), metrics=list(METRICS), max_steps=STEPS + 1, cache_bytes=64 << 20)
    process, rng = _processes[key], np.random.default_rng(seed)
    steps = STEPS if labels else 1
    samples = [process.dataset.draw(rng) for _ in range(CHUNK // steps)]
    left = [set(sample.combo) for sample in samples]
    episodes = process.start(samples)
    rows = []
    for _ in range(steps):
        gains = tried_gains(process, episodes, labels, rng)
        rows += [(episode.state.as_uint8(), _presence(parts), row) for episode, parts, row in zip(episodes, left, gains, strict=True)]
        if not labels:
            break
        chosen = []
        for parts, row in zip(left, gains, strict=True):
            action = _choose(row, rng)
            if row[action] > 0:
                parts -= {name for name, task in TASK_OF.items() if task == process.actions[action].task}
            chosen.append(action)
        process.step(episodes, chosen)
    images, present, gains = zip(*rows, strict=True)
    return list(images), np.stack(present), np.stack(gains)


def tried_gains(process: RestorationProcess, episodes: list[Episode], labels: int, rng: np.random.Generator) -> np.ndarray:
    """What tools would gain in every episode, float32 (episodes, tools): ``labels`` of them, of every task at least one; NaN for those
    that were not tried."""
    gains = np.full((len(episodes), process.actions.stop), np.nan, np.float32)
    moves = [(row, action) for row, episode in enumerate(episodes) for action in _some_of_each_task(process, episode, labels, rng)]
    for at in range(0, len(moves), BATCH):
        part = moves[at : at + BATCH]
        outcomes = process.step([episodes[row].fork() for row, _ in part], [action for _, action in part])
        for (row, action), outcome in zip(part, outcomes, strict=True):
            gains[row, action] = outcome.reward
    return gains


def _some_of_each_task(process: RestorationProcess, episode: Episode, labels: int, rng: np.random.Generator) -> list[int]:
    by_task: dict[str, list[int]] = {}
    if not labels:
        return []
    for action in map(int, np.flatnonzero(episode.mask[:-1])):
        by_task.setdefault(process.actions[action].task, []).append(action)
    chosen = [int(rng.choice(tools)) for tools in by_task.values()]
    others = [action for tools in by_task.values() for action in tools if action not in chosen]
    rng.shuffle(others)
    return sorted(chosen + others[: max(0, labels - len(chosen))])


def _choose(gains: np.ndarray, rng: np.random.Generator) -> int:
    known = np.flatnonzero(~np.isnan(gains))
    if rng.random() < EXPLORING:
        return int(rng.choice(known))
    weights = np.exp((gains[known] - gains[known].max()) / TEMPERATURE)
    return int(rng.choice(known, p=weights / weights.sum()))


def _presence(parts) -> np.ndarray:
    return np.array([name in parts for name in DEGRADATIONS], np.float32)


# -- learning ----------------------------------------------------------------------------------------------------------------------


class Telling(nn.Module):
    """An encoder, of which only what it tells is learned by: (B, 8 + tools)."""

    def __init__(self, encoder: SmallCNN):
        super().__init__()
        self.encoder = encoder

    def forward(self, seen: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat(self.encoder.told(self.encoder(seen)), dim=1)


def fit(
    network: nn.Module,
    train: Examples,
    heldout: Examples,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    weight_decay: float = 1e-4,
    mix_colours: bool = False,
) -> None:
    """Train a network, from the pictures of :meth:`Examples.show` to (B, 8 + tools); reports after each epoch.

    ``mix_colours`` changes the places of the colours in half of the batches: a network knows photographs by them.
    """
    start = time.monotonic()
    steps = epochs * (len(train) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(train))[: len(train) // batch * batch].reshape(-1, batch)
        total = 0.0
        network.train()
        for rows in track(order, f"epoch {epoch + 1}/{epochs}", transient=True):
            shown = train.show(rows, rng)
            pictures = [name for name in shown if name != "size"]
            if rng.random() < 0.5:  # rain falls down and haze lies far above, so only left and right are the same
                shown |= {name: shown[name].flip(-2) for name in pictures}
            if mix_colours and rng.random() < 0.5:
                colours = rng.permutation(3)
                shown |= {name: shown[name][..., colours] for name in pictures}
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16_units()):
                told = network(shown)
            value = loss(told, train.present[rows], train.gains[rows])
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += value.item()
        report = evaluate(network.eval(), heldout)
        print(f"epoch {epoch + 1:>3}  loss {total / len(order):.4f}  {describe(report)}  {time.monotonic() - start:.0f} s", flush=True)


def loss(told: torch.Tensor, true_present: torch.Tensor, true_gains: torch.Tensor) -> torch.Tensor:
    present, gains = told.split([len(DEGRADATIONS), true_gains.shape[1]], dim=1)
    known = ~torch.isnan(true_gains)
    # Squares, for what is wanted is the mean: a smaller power foresees the median, and shuns tools that gain much in two cases of five.
    # Large losses need not be told apart: such a tool is wrong anyhow.
    missed = F.smooth_l1_loss(gains[known], true_gains[known].clamp(min=-1.0), beta=1.0) if known.any() else gains.new_zeros(())
    return F.binary_cross_entropy_with_logits(present, true_present) + GAIN_WEIGHT * missed


@torch.no_grad()
def evaluate(network: nn.Module, examples: Examples) -> dict:
    """Balanced accuracy per degradation; mean gain of the best tool, and of the one that the encoder holds for best."""
    rows, present, gains = np.arange(len(examples)), examples.present, examples.gains
    told = torch.cat([network(examples.show(part)) for part in np.array_split(rows, -(-len(rows) // 200))])
    said, foreseen = told.split([len(DEGRADATIONS), gains.shape[1]], dim=1)
    accuracy = {}
    for column, name in enumerate(DEGRADATIONS):
        yes, true = said[:, column] > 0, present[:, column] > 0.5
        accuracy[name] = round(float((yes[true].float().mean() + (~yes[~true]).float().mean()) / 2), 4)
    true, foreseen = gains.nan_to_num(nan=-9), foreseen.masked_fill(torch.isnan(gains), -9)
    # stopping gains nothing
    true, foreseen = (F.pad(table, (0, 1)) for table in (true, foreseen))
    picked = true.gather(1, foreseen.argmax(1, keepdim=True)).mean()
    return {
        "balanced_accuracy": accuracy,
        "gain_of_best_tool": round(float(true.amax(1).mean()), 4),
        "gain_of_foreseen_tool": round(float(picked), 4),
    }


def describe(report: dict) -> str:
    accuracy = " ".join(f"{name} {value:.2f}" for name, value in report["balanced_accuracy"].items())
    return f"{accuracy}  gain {report['gain_of_foreseen_tool']:.3f} of {report['gain_of_best_tool']:.3f}"


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
