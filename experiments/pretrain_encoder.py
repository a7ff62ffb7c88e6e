"""Teach the small CNN encoder of the SimpleCall-style policy to recognise degradations.

How to run
----------
    python -m experiments.pretrain_encoder --photos FOLDER

It degrades crops of the photographs with random combinations and learns, from the degraded crop alone, which degradations were applied,
its PSNR, and how its mean and contrast differ from the clean crop's. Labels cost nothing, since the degradations are ours. The encoder is
written to policies/simplecall/weights/cnn.safetensors in half precision, with a card of what it was trained on and what it reached.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from safetensors.torch import save_file
from torch import nn

from ir_env.datasets import SynthesisedDataset
from ir_env.spaces import view
from policies.simplecall.encoders import SmallCNN
from tool_actors.tasks import DEGRADATIONS
from tool_actors.threads import limit_threads

SIZE, CHUNK = 64, 250
COMBOS = "random:2:2:2"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of photographs; one in five is held out")
    parser.add_argument("--samples", type=int, default=60_000, help="degraded crops")
    parser.add_argument("--heldout-samples", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--out", type=Path, default=SmallCNN.WEIGHTS)
    options = parser.parse_args(arguments)

    start = time.monotonic()
    images, targets = make_samples(options.photos, "train", options.samples, options.seed, options.processes)
    test_images, test_targets = make_samples(options.photos, "heldout", options.heldout_samples, options.seed + 1, options.processes)
    limit_threads(multiprocessing.cpu_count())
    torch.manual_seed(options.seed)
    encoder = SmallCNN(pretrained=False)
    network = Recogniser(encoder, targets.shape[1])
    steps = options.epochs * (len(images) // options.batch)
    optimiser = torch.optim.AdamW(network.parameters(), options.lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.lr, total_steps=steps)
    rng = np.random.default_rng(options.seed)
    for epoch in range(options.epochs):
        order = rng.permutation(len(images))[: len(images) // options.batch * options.batch].reshape(-1, options.batch)
        total = 0.0
        for rows in track(order, f"epoch {epoch + 1}/{options.epochs}", transient=True):
            batch = images[rows]
            if rng.random() < 0.5:  # rain falls down and haze lies far above, so only left and right are the same
                batch = batch.flip(2)
            value = loss(network(batch.permute(0, 3, 1, 2).float() / 255.0), targets[rows])
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            schedule.step()
            total += value.item()
        report = evaluate(network, test_images, test_targets)
        print(f"epoch {epoch + 1:>3}  loss {total / len(order):.4f}  {describe(report)}  {time.monotonic() - start:.0f} s", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous() for name, value in encoder.state_dict().items()}, options.out)
    card = {
        "network": "SmallCNN, width 32",
        "learned": "which degradations were applied; PSNR; difference of mean and of contrast",
        "photographs": "/".join(Path(options.photos).resolve().parts[-2:]),
        "combinations": COMBOS,
        "settings": {key: getattr(options, key) for key in ("samples", "epochs", "batch", "lr", "seed")},
        "seconds": round(time.monotonic() - start),
        "held_out": report,
    }
    options.out.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{options.out}: {options.out.stat().st_size / 1024:.0f} KiB")


def make_samples(photos: str, split: str, count: int, seed: int, processes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded crops, uint8 (N, S, S, 3), and their targets, float32 (N, 8 + 3)."""
    jobs = [(photos, split, min(CHUNK, count - first), seed * 1_000_003 + first) for first in range(0, count, CHUNK)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        parts = list(track(pool.imap(_make_chunk, jobs), f"degrading {split} crops", total=len(jobs), transient=True))
    return tuple(torch.from_numpy(np.concatenate(columns)) for columns in zip(*parts, strict=True))


_datasets: dict[tuple[str, str], SynthesisedDataset] = {}


def _make_chunk(job: tuple[str, str, int, int]) -> tuple[np.ndarray, np.ndarray]:
    photos, split, count, seed = job
    limit_threads(1)
    if (photos, split) not in _datasets:
        _datasets[photos, split] = SynthesisedDataset(photos, split, crop_size=SIZE, combos=COMBOS)
    dataset, rng = _datasets[photos, split], np.random.default_rng(seed)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    targets = np.zeros((count, len(DEGRADATIONS) + 3), np.float32)
    for row in range(count):
        sample = dataset.draw(rng)
        pair = dataset.load(sample)
        images[row] = view(pair.degraded, SIZE)
        clean, seen = pair.reference / 255.0, images[row] / 255.0
        for name in sample.combo:
            targets[row, DEGRADATIONS.index(name)] = 1.0
        psnr = -10 * np.log10(np.mean((clean - seen) ** 2) + 1e-6)
        targets[row, -3:] = psnr / 10.0, 4 * (clean.mean() - seen.mean()), 4 * (clean.std() - seen.std())
    return images, targets


class Recogniser(nn.Module):
    """The encoder and a linear layer on its head."""

    def __init__(self, encoder: SmallCNN, outputs: int):
        super().__init__()
        self.encoder, self.output = encoder, nn.Linear(encoder.HEAD, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.encoder(images)[:, -self.encoder.HEAD :])


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    count = len(DEGRADATIONS)
    recognition = F.binary_cross_entropy_with_logits(outputs[:, :count], targets[:, :count])
    return recognition + 0.3 * F.smooth_l1_loss(outputs[:, count:], targets[:, count:])


@torch.no_grad()
def evaluate(network: nn.Module, images: torch.Tensor, targets: torch.Tensor) -> dict:
    """Balanced accuracy per degradation, and the mean error of the PSNR in dB."""
    outputs = torch.cat([network(batch.permute(0, 3, 1, 2).float() / 255.0) for batch in images.split(500)])
    accuracy = {}
    for column, name in enumerate(DEGRADATIONS):
        said, true = outputs[:, column] > 0, targets[:, column] > 0.5
        accuracy[name] = round(float((said[true].float().mean() + (~said[~true]).float().mean()) / 2), 4)
    error = (outputs[:, -3] - targets[:, -3]).abs().mean() * 10
    return {"balanced_accuracy": accuracy, "psnr_error_db": round(float(error), 3)}


def describe(report: dict) -> str:
    return (
        " ".join(f"{name} {value:.2f}" for name, value in report["balanced_accuracy"].items()) + f"  psnr ±{report['psnr_error_db']:.2f} dB"
    )


if __name__ == "__main__":
    main()
