"""Teach the small CNN encoder of the SimpleCall-style policy what is wrong with a picture, and what tools would do about it.

How to run
----------
    python -m experiments.pretrain_encoder --photos FOLDER
    python -m experiments.pretrain_encoder --photos FOLDER --toolbox mine.yaml --out mine.safetensors    # for your own tools

Its examples are images from the middle of restorations, in which tools are drawn by their gain or at random, with labels that cost no
annotation, since the degradations are ours: which degradations are left, and what every tool of the toolbox would gain next, in units of
the reward (increment of PSNR / 9 + SSIM / 0.3 - PIQE / 50).

The encoder is written in half precision, with a card of what it was trained on and what it reached on photographs it never saw. The states
are kept in ``--work``, so an interrupted run goes on where it stopped; other settings, tools or photographs make others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
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
from ir_env.observation import view
from ir_env.process import RestorationProcess
from policies.simplecall.encoders import SmallCNN
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS, TASK_OF
from tool_actors.threads import limit_threads
from tool_actors.toolboxes import load_toolbox

CHUNK, STEPS = 48, 3
COMBOS = ("random:2:2:2", "A,B,C")
"""What the crops are degraded by: half of them by any two or three degradations or one, half as the benchmark's images are."""
METRICS = ("psnr", "ssim_ycbcr", "piqe")
"""Of the reward whose increments are foreseen, weighed as by default."""
TEMPERATURE = 0.15
"""Of the choice among tools by their gains, in units of reward."""
GAIN_WEIGHT = 4.0
"""Of the gains' loss beside that of the degradations."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of photographs; one in five is held out")
    parser.add_argument("--toolbox", default="default")
    parser.add_argument("--size", type=int, default=64, help="side of the crops, in pixels: that of the images the policy will see")
    parser.add_argument("--states", type=int, default=24_000, help="images to learn from")
    parser.add_argument("--heldout", type=int, default=960, help="images of photographs that it never sees")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count(), help="of the training")
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count(), help="that make examples; 1 makes them in this one")
    parser.add_argument("--work", type=Path, default=Path("results/pretrain_encoder"))
    parser.add_argument("--out", type=Path, default=SmallCNN.WEIGHTS)
    options = parser.parse_args(arguments)
    if options.states < options.batch:
        raise IrEnvError(f"--states {options.states} are less than one --batch of {options.batch}: ask for more, or lower the batch")

    start = time.monotonic()
    toolbox = load_toolbox(options.toolbox)
    train, heldout = make_sets(options, options.size, toolbox.references)
    limit_threads(options.threads)
    made = time.monotonic()
    torch.manual_seed(options.seed)
    network = SmallCNN(None, toolbox.names).to(memory_format=torch.channels_last)
    fit(network, *train, heldout, options.epochs, options.batch, options.lr, options.seed, weight_decay=0.02, mix_colours=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    # vectors are small and hold variances, which half precision would round to 0
    stored = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in network.state_dict().items()}
    save_file(stored, options.out)
    network.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in stored.items()})
    report = evaluate(network.eval(), *heldout)
    card = {
        "network": "SmallCNN, width 32",
        "learned": "which degradations are there; what each tool would gain",
        "tools": toolbox.names,
        "photographs": "/".join(Path(options.photos).resolve().parts[-2:]),
        "combinations": list(COMBOS),
        "settings": {key: getattr(options, key) for key in ("size", "states", "epochs", "batch", "lr", "seed")},
        "seconds": {"examples": round(made - start), "training": round(time.monotonic() - made)},
        "held_out": report,
    }
    options.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB")
    return 0


# -- examples ----------------------------------------------------------------------------------------------------------------------


Examples = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def make_sets(options: argparse.Namespace, size: int, tools: list[str | dict]) -> tuple[Examples, Examples]:
    """Those to learn from and those held out, as the command's options say; see :func:`make_examples`."""
    more = options.processes, options.work
    return (
        make_examples(options.photos, "train", size, tools, options.states, options.seed, *more),
        make_examples(options.photos, "heldout", size, tools, options.heldout, options.seed + 1, *more),
    )


def make_examples(
    photos: str, split: Split, size: int, tools: list[str | dict], states: int, seed: int, processes: int, work: Path
) -> Examples:
    """Images, uint8 (N, S, S, 3); which degradations are left, float32 (N, 8); gains, float32 (N, tools), NaN where forbidden."""
    deciding = {
        "photographs": load_photos(photos, split).listing(),
        "tools": [tool.spec.fingerprint for tool in load_toolbox(tools)],
        "combinations": COMBOS,
        "metrics": METRICS,
        "steps": STEPS,
        "temperature": TEMPERATURE,
        "size": size,
        "seed": seed,
    }
    folder = folder_for(work, f"{split}_{size}", deciding)
    sizes = {at: min(CHUNK, states - at) for at in range(0, states, CHUNK)}
    jobs = [
        (photos, split, size, tools, combos, count, seed * 1_000_003 + at, folder / f"{at:06}_{count}.npz")
        for (at, count), combos in zip(sizes.items(), cycle(COMBOS), strict=False)
    ]
    what = {"description": f"making {split} examples", "total": len(jobs), "transient": True}
    if processes == 1:
        parts = list(track(map(_make_chunk, jobs), **what))
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            parts = list(track(pool.imap(_make_chunk, jobs), **what))
    return tuple(torch.from_numpy(np.concatenate(columns)) for columns in zip(*parts, strict=True))


_processes: dict[tuple, RestorationProcess] = {}


def _make_chunk(job) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    photos, split, size, tools, combos, count, seed, kept = job
    limit_threads(1)
    if kept.is_file():
        with np.load(kept) as arrays:
            return arrays["images"], arrays["present"], arrays["gains"]
    key = (photos, split, size, combos, json.dumps(tools))
    if key not in _processes:
        dataset = SynthesisedDataset(photos, split, crop_size=size, combos=combos)
        _processes[key] = RestorationProcess(dataset, tools, metrics=list(METRICS), max_steps=STEPS + 1, cache_bytes=32 << 20)
    process, rng = _processes[key], np.random.default_rng(seed)
    samples = [process.dataset.draw(rng) for _ in range(-(-count // STEPS))]
    left = [set(sample.combo) for sample in samples]
    rows = []
    episodes = process.start(samples)
    for _ in range(STEPS):
        gains = gains_of_all(process, episodes)
        rows.extend(
            (view(episode.state.as_uint8(), size), _presence(parts), row) for episode, parts, row in zip(episodes, left, gains, strict=True)
        )
        chosen = [_choose(row, rng) for row in gains]
        for parts, row, action in zip(left, gains, chosen, strict=True):
            if row[action] > 0:
                parts -= {name for name, task in TASK_OF.items() if task == process.actions[action].task}
        process.step(episodes, chosen)
    images, present, gains = (np.stack(column[:count]) for column in zip(*rows, strict=True))
    temporary = kept.with_suffix(".part.npz")
    np.savez_compressed(temporary, images=images, present=present, gains=gains)
    temporary.replace(kept)
    return images, present, gains


def gains_of_all(process: RestorationProcess, episodes: list[Episode]) -> np.ndarray:
    """What every tool would gain in every episode, float32 (episodes, tools); NaN where the mask forbids it."""
    gains = np.full((len(episodes), process.actions.stop), np.nan, np.float32)
    moves = [(row, int(action)) for row, episode in enumerate(episodes) for action in np.flatnonzero(episode.mask[:-1])]
    trials = [episodes[row].fork() for row, _ in moves]
    outcomes = process.step(trials, [action for _, action in moves])
    for (row, action), outcome in zip(moves, outcomes, strict=True):
        gains[row, action] = outcome.reward
    return gains


def _choose(gains: np.ndarray, rng: np.random.Generator) -> int:
    allowed = np.flatnonzero(~np.isnan(gains))
    if rng.random() < 0.4:
        return int(rng.choice(allowed))
    weights = np.exp((gains[allowed] - gains[allowed].max()) / TEMPERATURE)
    return int(rng.choice(allowed, p=weights / weights.sum()))


def _presence(parts) -> np.ndarray:
    return np.array([name in parts for name in DEGRADATIONS], np.float32)


# -- learning ----------------------------------------------------------------------------------------------------------------------


def fit(
    network: nn.Module,
    images: torch.Tensor,
    present: torch.Tensor,
    gains: torch.Tensor,
    heldout: Examples,
    epochs: int,
    batch: int,
    lr: float,
    seed: int,
    weight_decay: float = 1e-4,
    mix_colours: bool = False,
) -> None:
    """Train a network, from float32 (B, 3, S, S) to (B, 8 + tools), on examples of :func:`make_examples`; reports after each epoch.

    ``mix_colours`` changes the places of the colours in half of the batches: a network knows photographs by them.
    """
    start = time.monotonic()
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(network.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps, pct_start=0.1)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(images))[: len(images) // batch * batch].reshape(-1, batch)
        total = 0.0
        for rows in track(order, f"epoch {epoch + 1}/{epochs}", transient=True):
            shown = images[rows]
            if rng.random() < 0.5:  # rain falls down and haze lies far above, so only left and right are the same
                shown = shown.flip(2)
            if mix_colours and rng.random() < 0.5:
                shown = shown[..., rng.permutation(3)]
            with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16_units()):
                told = network(shown.permute(0, 3, 1, 2).float() / 255.0)
            value = loss(told, present[rows], gains[rows])
            optimiser.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            total += value.item()
        report = evaluate(network.eval(), *heldout)
        network.train()
        print(f"epoch {epoch + 1:>3}  loss {total / len(order):.4f}  {describe(report)}  {time.monotonic() - start:.0f} s", flush=True)


def loss(told: torch.Tensor, true_present: torch.Tensor, true_gains: torch.Tensor) -> torch.Tensor:
    present, gains = told.split([len(DEGRADATIONS), true_gains.shape[1]], dim=1)
    known = ~torch.isnan(true_gains)
    # Squares, for what is wanted is the mean: a smaller power foresees the median, and shuns tools that gain much in two cases of five.
    # Large losses need not be told apart: such a tool is wrong anyhow.
    missed = F.smooth_l1_loss(gains[known], true_gains[known].clamp(min=-1.0), beta=1.0)
    return F.binary_cross_entropy_with_logits(present, true_present) + GAIN_WEIGHT * missed


@torch.no_grad()
def evaluate(network: nn.Module, images: torch.Tensor, present: torch.Tensor, gains: torch.Tensor) -> dict:
    """Balanced accuracy per degradation; mean gain of the best tool, and of the one that the encoder holds for best."""
    told = torch.cat([network(batch.permute(0, 3, 1, 2).float() / 255.0) for batch in images.split(500)])
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
