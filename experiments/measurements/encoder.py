"""How well an encoder tells what is wrong with a photograph, by the size of what it is shown.

How to run
----------
    python -m experiments.measurements.encoder --photos FOLDER
    python -m experiments.measurements.encoder --photos FOLDER --crop 64,256,0 --weights mine.safetensors --json told.json

For each size of crop (0: whole photographs) and each degradation: the area under the ROC curve (how often an image that has it is told to
have it more than one that has not), and the shares of those that have it and of the others that are told to have it. The images are
degraded by the combinations of the benchmark, none of them restored yet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from experiments.pretrain_encoder import integers
from ir_env.datasets import SynthesisedDataset
from ir_env.evaluation import HELDOUT_SEED
from policies.simplecall.encoders import SmallCNN
from tool_actors.tasks import DEGRADATIONS
from tool_actors.threads import limit_threads

Told = dict[str, dict[str, float]]
"""By degradation: ``area``, ``recall``, ``false_alarms``."""


def main(arguments: list[str] | None = None) -> dict[str, Told]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs that the encoder has not learned from")
    parser.add_argument("--weights", type=Path, default=SmallCNN.WEIGHTS, help="of the encoder; by default the one that comes with ir_env")
    parser.add_argument("--crop", type=integers, default=[256, 0], metavar="N[,N]", help="sides of crops in pixels; 0: whole photographs")
    parser.add_argument("--combos", default="A,B,C", help="degradations of the images")
    parser.add_argument("--samples", type=int, default=320, help="images of each size")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    options = parser.parse_args(arguments)

    limit_threads(1)
    encoder, console, told = SmallCNN(options.weights).eval(), Console(), {}
    table = Table("images", *DEGRADATIONS, title="area under the ROC curve (recall / false alarms)")
    for crop in options.crop:
        size = f"crops of {crop} px" if crop else "whole photographs"
        with console.status(size):
            told[size] = measure(
                encoder, SynthesisedDataset(options.photos, "all", crop_size=crop or None, combos=options.combos), options.samples
            )
        table.add_row(size, *(f"{each['area']:.3f} ({each['recall']:.2f} / {each['false_alarms']:.2f})" for each in told[size].values()))
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(told, indent=2) + "\n")
    return told


@torch.no_grad()
def measure(encoder: SmallCNN, dataset: SynthesisedDataset, count: int) -> Told:
    """What the encoder tells of so many images of a dataset, see :data:`Told`; NaN where all of them, or none, have a degradation."""
    logits, present = [], []
    for sample in dataset.draw_evenly(np.random.default_rng(HELDOUT_SEED), count):
        seen = encoder.view.look([dataset.load(sample).degraded])
        logits.append(encoder.told(encoder({name: torch.from_numpy(each)[None] for name, each in seen.items()}))[0][0].numpy())
        present.append([name in sample.combo for name in DEGRADATIONS])
    return {
        name: {"area": area(column[true], column[~true]), "recall": _share(column[true]), "false_alarms": _share(column[~true])}
        for name, column, true in zip(DEGRADATIONS, np.array(logits).T, np.array(present).T, strict=True)
    }


def area(with_it: np.ndarray, without: np.ndarray) -> float:
    """Area under the ROC curve, of the logits (N,) and (M,) of images with a degradation and without; a tie counts half."""
    difference = with_it[:, None] - without[None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else float("nan")


def _share(logits: np.ndarray) -> float:
    return float((logits > 0).mean()) if len(logits) else float("nan")


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(lambda: 0 if main() else 1))
