"""Train the embedded learned tools, or a tool of your own for your own degradation.

How to run
----------
    python -m experiments.train_tools --list
    python -m experiments.train_tools --photos bsds500/train --heldout bsds500/val --report bsds500/test set14       # the shipped weights
    python -m experiments.train_tools --photos FOLDER noise.gaussian45 rain.heavy
    python -m experiments.train_tools --photos FOLDER --recipe mine.json        # the fields of Recipe: name, task, combo, severity, ...

Each tool learns from pairs of clean crops and crops degraded by its own recipe, with Adam under a cosine. The state is kept every few
hundred steps in ``--work``, so the same command goes on where it stopped; another recipe, seed, number of steps or set of photographs
begins anew. The result is ``<name>.safetensors`` in half precision and a card
``<name>.json``: network, recipe, photographs, seed, steps, seconds, and the PSNR gain on crops of photographs it never saw.

It runs on a GPU where there is one. Convolutions compute in bfloat16 where the machine has units for it, which trains three times as fast
(48 channels, one core with AMX) to the same gain; weights stay float32 until they are written.

Results to expect: the cards in tool_actors/embedded/weights/; the 18 tools took an hour on two cores, one process of one thread on each.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file

from experiments.resumable import folder_for
from ir_env.datasets import Photos, Split, load_photos
from ir_env.degradations import degrade
from ir_env.degradations.combos import parse_combos
from ir_env.degradations.recipe import Scene
from tool_actors.embedded import ALL_IN_ONE_FOLDER, FOLDER
from tool_actors.embedded.networks import NETWORKS
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import ALL_IN_ONE
from tool_actors.threads import limit_threads

KEEP_EVERY = 200
MEASURED_CROPS = 48


@dataclass(frozen=True)
class Recipe:
    """What a tool learns to undo, and with which network."""

    name: str
    task: str
    combo: str
    """Degradations, e.g. ``noise`` or ``rain+haze``; or several combinations to draw from, see :func:`ir_env.degradations.parse_combos`."""
    severity: dict = field(default_factory=dict)
    """Degradation -> {parameter: [low, high] to draw from, or a value}; what is not named is drawn from the recipe's ranges."""
    network: str = "half"
    arguments: dict = field(default_factory=dict)
    loss: str = "l1"
    """``l1``, or ``edge``: L1 plus that of the differences between neighbouring pixels, which keeps edges sharp."""
    patch: int = 64
    batch: int = 16
    steps: int = 6000
    lr: float = 1e-3


WIDE = {"width": 48, "blocks": 3}
DEEP = {"width": 32, "blocks": 7}


def _wide(name: str, task: str, degradation: str, **severity) -> Recipe:
    """Noise and JPEG want channels."""
    return Recipe(name, task, degradation, {degradation: severity}, arguments=WIDE)


def _deep(name: str, task: str, degradation: str, steps: int, **severity) -> Recipe:
    """Blur and streaks want to see far."""
    return Recipe(name, task, degradation, {degradation: severity}, arguments=DEEP, patch=96, batch=8, steps=steps)


def _all_in_one(name: str) -> Recipe:
    """Each degradation alone, and the groups A, B and C; without low resolution, which is a matter of size and not of quality."""
    combos = ["+".join(combo) for combo in parse_combos("single,A,B,C").entries if "low_resolution" not in combo]
    return Recipe(name, ALL_IN_ONE, ",".join(combos), network="all_in_one", patch=96, batch=8, steps=3000)


def _curve(name: str, task: str, degradation: str, **severity) -> Recipe:
    """Haze and low light want to see the picture as a whole."""
    return Recipe(name, task, degradation, {degradation: severity}, network="curve", patch=96, batch=8, steps=6000)


RECIPES = {
    recipe.name: recipe
    for recipe in (
        _wide("noise.gaussian25", "denoise", "noise", kind="gaussian", sigma=[15, 32]),
        _wide("noise.gaussian45", "denoise", "noise", kind="gaussian", sigma=[32, 55]),
        _wide("noise.poisson", "denoise", "noise", kind="poisson", scale=[1.0, 3.0]),
        _deep("motion.short", "motion_deblur", "motion_blur", 8000, radius=10, sigma=3),
        _deep("motion.long", "motion_deblur", "motion_blur", 8000, radius=15, sigma=[5.0, 8.0]),
        _deep("defocus.radius3", "defocus_deblur", "defocus_blur", 5000, radius=3, alias=0.1),
        _deep("defocus.radius6", "defocus_deblur", "defocus_blur", 7000, radius=[4, 6], alias=0.5),
        _deep("rain.light", "derain", "rain", 4000, value=[50, 75]),
        _deep("rain.heavy", "derain", "rain", 4000, value=[75, 99]),
        _curve("haze.thin", "dehaze", "haze", beta=[0.6, 1.2]),
        _curve("haze.thick", "dehaze", "haze", beta=[1.2, 1.8]),
        _wide("jpeg.quality15", "dejpeg", "jpeg", quality=[8, 18]),
        _wide("jpeg.quality25", "dejpeg", "jpeg", quality=[18, 32]),
        _curve("dark.shift", "brighten", "low_light", kind="shift", shift=[30, 49]),
        _curve("dark.gamma", "brighten", "low_light", kind="gamma", gamma=[0.5, 0.7]),
        _curve("dark.range", "brighten", "low_light", kind="range", top=[100, 149]),
        Recipe("x4.fidelity", "super_resolve", "low_resolution", network="x4", patch=96, steps=24_000),
        Recipe("x4.edge", "super_resolve", "low_resolution", network="x4", loss="edge", patch=96, steps=8000),
        _all_in_one("allinone.small"),
    )
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", help="names of recipes; all by default")
    parser.add_argument("--photos", help="folder of clean photographs to learn from")
    parser.add_argument("--heldout", help="folder to measure the gain on (default: one in five of --photos, kept from learning)")
    parser.add_argument("--report", nargs="*", default=[], metavar="FOLDER", help="further folders whose gain goes into the card")
    parser.add_argument("--recipe", type=Path, help="a JSON file with the fields of a recipe of your own")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions while training")
    parser.add_argument("--out", type=Path, help="folder of the weights (default: the embedded tools')")
    parser.add_argument("--work", type=Path, default=Path("results/train_tools"), help="folder of the states to resume from")
    parser.add_argument("--list", action="store_true", help="list the recipes")
    options = parser.parse_args(arguments)
    if options.list:
        for recipe in RECIPES.values():
            print(f"{recipe.name:<18} {recipe.task:<15} {recipe.combo} {recipe.severity or ''}")
        return 0
    if not options.photos:
        raise IrEnvError("give the folder of clean photographs with --photos")
    recipes = [_own_recipe(options.recipe)] if options.recipe else [_find(name) for name in options.tools or RECIPES]
    limit_threads(options.threads)
    learn, *measure = _photo_sets(options)
    for recipe in recipes:
        card = train(recipe, learn, dict(measure), options)
        gains = ", ".join(f"{name} {gain:+.2f} dB" for name, gain in card["gain_db"].items())
        print(f"{recipe.name}: {gains}; {card['seconds']} s, {card['kib']} KiB")
    return 0


def train(recipe: Recipe, learn: tuple[str, Photos], measure: dict[str, Photos], options: argparse.Namespace) -> dict:
    """Train one tool, or go on training it; returns its card."""
    steps = options.steps or recipe.steps
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = options.precision == "bf16" or (options.precision == "auto" and has_bfloat16_units())
    torch.manual_seed(options.seed)
    network = NETWORKS[recipe.network](**recipe.arguments).to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.Adam(network.parameters(), recipe.lr)
    done, seconds = 0, 0.0
    deciding = {"recipe": asdict(recipe), "steps": steps, "seed": options.seed, "bfloat16": half, "photographs": learn[1].listing()}
    kept = folder_for(options.work, recipe.name, deciding) / "state.pt"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        done, seconds = state["step"], state["seconds"]
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(), transient=True) as progress:
        bar = progress.add_task(recipe.name, total=steps, completed=done)
        while done < steps:
            start = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done / steps)))
            # a generator per step, so that a resumed training sees the batches it would have seen
            degraded, clean = make_batch(recipe, learn[1], np.random.default_rng([options.seed, done]), recipe.batch, recipe.patch, device)
            with torch.autocast(device, torch.bfloat16, enabled=half):
                restored = network(degraded)
            loss = LOSSES[recipe.loss](restored.float(), clean)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            done += 1
            seconds += time.monotonic() - start
            progress.update(bar, completed=done, description=f"{recipe.name}  loss {loss.item():.4f}")
            if done % KEEP_EVERY == 0 or done == steps:
                _keep(kept, {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": done, "seconds": seconds})
    facts = {"photographs": learn[0], "seed": options.seed, "steps": done, "seconds": round(seconds), "bfloat16": half}
    out = options.out or (ALL_IN_ONE_FOLDER if recipe.task == ALL_IN_ONE else FOLDER)
    return write(recipe, network, measure, out, facts)


def l1(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(restored, clean)


def edge(restored: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """L1, plus the L1 of differences between neighbours along both sides, which is blind to brightness and so weighs edges."""
    return l1(restored, clean) + 2.0 * sum(l1(restored.diff(dim=dim), clean.diff(dim=dim)) for dim in (2, 3))


LOSSES = {"l1": l1, "edge": edge}


def make_batch(recipe: Recipe, photos, rng: np.random.Generator, count: int, patch: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean crops, float32 (count, 3, h, w) and (count, 3, patch, patch) in [0, 1], flipped at random from left to right."""
    degraded, clean, combos = [], [], parse_combos(recipe.combo)
    for _ in range(count):
        name = photos.names[int(rng.integers(len(photos)))]
        photo = photos.load(name)
        top, left = (int(rng.integers(side - patch + 1)) for side in photo.shape[:2])
        crop = photo[top : top + patch, left : left + patch]
        crop = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
        scene = Scene(name, photo.shape[:2], (top, left, patch, patch))
        severity = {part: {key: draw(value, rng) for key, value in ranges.items()} for part, ranges in recipe.severity.items()}
        # one combination draws nothing, so that what the shipped tools learned from stays the same
        combo = combos.draw(rng) if len(combos.entries) > 1 else combos.entries[0]
        degraded.append(degrade(crop, combo, int(rng.integers(2**48)), severity=severity, scene=scene).image)
        clean.append(crop)
    return tuple(torch.from_numpy(np.stack(part)).to(device).permute(0, 3, 1, 2).float() / 255.0 for part in (degraded, clean))


@torch.no_grad()
def write(recipe: Recipe, network: torch.nn.Module, measure: dict[str, Photos], out: Path, facts: dict) -> dict:
    """Write weights and card; the gains are measured with the weights as they are stored, in half precision."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(state, out / f"{recipe.name}.safetensors")
    network.load_state_dict({name: value.float() for name, value in state.items()})
    size = (out / f"{recipe.name}.safetensors").stat().st_size
    card = {
        "name": recipe.name,
        "task": recipe.task,
        "network": recipe.network,
        "arguments": recipe.arguments,
        "combinations": recipe.combo,
        "degradation": f"{recipe.combo} {json.dumps(recipe.severity)}" if recipe.severity else recipe.combo,
        "gain_db": {name: round(gain(recipe, network, photos), 3) for name, photos in measure.items()},
        "kib": round(size / 1024),
        **facts,
        "recipe": {key: value for key, value in asdict(recipe).items() if key in ("loss", "patch", "batch", "lr")},
    }
    (out / f"{recipe.name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


@torch.no_grad()
def gain(recipe: Recipe, network: torch.nn.Module, photos: Photos, count: int = MEASURED_CROPS, patch: int = 128) -> float:
    """Mean PSNR gain (dB) over doing nothing, or over bicubic interpolation, on crops degraded by the tool's own recipe."""
    device = next(network.parameters()).device.type
    degraded, clean = make_batch(recipe, photos, np.random.default_rng(10_000), count, patch, device)
    before = degraded if degraded.shape == clean.shape else F.interpolate(degraded, clean.shape[2:], mode="bicubic", antialias=True)
    return (psnr(network(degraded), clean) - psnr(before, clean)).mean().item()


def psnr(images: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Per image, in dB over all channels: (B, 3, H, W) twice -> (B,)."""
    return -10 * torch.log10((images.clamp(0, 1) - clean).square().mean((1, 2, 3)) + 1e-8)


def draw(value, rng: np.random.Generator):
    """A value as it is, or one from [low, high]: an integer if both ends are."""
    if not isinstance(value, list):
        return value
    low, high = value
    return int(rng.integers(low, high + 1)) if isinstance(low, int) and isinstance(high, int) else float(rng.uniform(low, high))


def _photo_sets(options: argparse.Namespace) -> list[tuple[str, Photos]]:
    """(name, photographs) to learn from, to hold out, and those to report on; a name is the last two parts of the folder's path."""

    def named(folder: str, split: Split) -> tuple[str, Photos]:
        return "/".join(Path(folder).resolve().parts[-2:]), load_photos(folder, split)

    if options.heldout:
        sets = [named(options.photos, "all"), named(options.heldout, "all")]
    else:
        sets = [named(options.photos, "train"), ("held out", load_photos(options.photos, "heldout"))]
    return sets + [named(folder, "all") for folder in options.report]


def has_bfloat16_units() -> bool:
    """Whether convolutions in bfloat16 are faster here: a GPU, or a CPU that multiplies them (AVX512-BF16, AMX)."""
    return torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()


def _keep(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


def _find(name: str) -> Recipe:
    if name not in RECIPES:
        raise UnknownNameError("recipe", name, RECIPES)
    return RECIPES[name]


def _own_recipe(path: Path) -> Recipe:
    try:
        recipe = Recipe(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise IrEnvError(
            f"{path}: not a recipe ({error}); it is a JSON object with the fields of Recipe: name, task, combo, severity, ..."
        ) from error
    parse_combos(recipe.combo)
    for kind, name, known in (("network", recipe.network, NETWORKS), ("loss", recipe.loss, LOSSES)):
        if name not in known:
            raise UnknownNameError(f"{kind} of a recipe", name, known)
    return recipe


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
