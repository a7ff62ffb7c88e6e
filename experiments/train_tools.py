"""Train the embedded learned tools, or a tool of your own for your own degradation.

How to run
----------
    python -m experiments.train_tools --photos FOLDER --list
    python -m experiments.train_tools --photos FOLDER noise.gaussian35 rain.heavy
    python -m experiments.train_tools --photos FOLDER --recipe mine.json        # the fields of Recipe: name, task, combo, severity, ...

Each tool learns from pairs of clean crops and crops degraded by its own recipe, with the L1 loss and Adam under a cosine. The state is kept
every few hundred steps in ``--work``, so the same command goes on where it stopped. The result is ``<name>.safetensors`` in half precision
and a card ``<name>.json``: network, recipe, photographs, seed, steps, seconds, and the PSNR gain on held-out crops.
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

from ir_env.datasets import load_photos
from ir_env.degradations import degrade, parse_combo
from ir_env.degradations.recipe import Scene
from tool_actors.embedded import FOLDER
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.networks import NETWORKS
from tool_actors.threads import limit_threads

KEEP_EVERY = 200
HELDOUT_CROPS = 48


@dataclass(frozen=True)
class Recipe:
    """What a tool learns to undo, and with which network."""

    name: str
    task: str
    combo: str
    """Degradations, e.g. ``noise`` or ``rain+haze``."""
    severity: dict = field(default_factory=dict)
    """Degradation -> {parameter: [low, high] to draw from, or a value}; what is not named is drawn from the recipe's ranges."""
    network: str = "half"
    arguments: dict = field(default_factory=dict)
    patch: int = 64
    batch: int = 16
    steps: int = 4000
    lr: float = 1e-3


WIDE = {"width": 48, "blocks": 3}
CONTEXT = {"width": 40, "blocks": 4, "context": True}
DEEP = {"width": 36, "blocks": 6}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("noise.gaussian25", "denoise", "noise", {"noise": {"kind": "gaussian", "sigma": [15, 32]}}, arguments=WIDE),
        Recipe("noise.gaussian45", "denoise", "noise", {"noise": {"kind": "gaussian", "sigma": [32, 55]}}, arguments=WIDE),
        Recipe("noise.poisson", "denoise", "noise", {"noise": {"kind": "poisson", "scale": [1.0, 3.0]}}, arguments=WIDE),
        Recipe("motion.short", "motion_deblur", "motion_blur", {"motion_blur": {"radius": 10, "sigma": 3}}, arguments=DEEP, steps=6000),
        Recipe(
            "motion.long", "motion_deblur", "motion_blur", {"motion_blur": {"radius": 15, "sigma": [5.0, 8.0]}}, arguments=DEEP, steps=6000
        ),
        Recipe("defocus.radius3", "defocus_deblur", "defocus_blur", {"defocus_blur": {"radius": 3, "alias": 0.1}}, arguments=DEEP),
        Recipe("defocus.radius6", "defocus_deblur", "defocus_blur", {"defocus_blur": {"radius": [4, 6], "alias": 0.5}}, arguments=DEEP),
        Recipe("rain.light", "derain", "rain", {"rain": {"value": [50, 75]}}, arguments=DEEP, patch=96, batch=8),
        Recipe("rain.heavy", "derain", "rain", {"rain": {"value": [75, 99]}}, arguments=DEEP, patch=96, batch=8),
        Recipe("haze.thin", "dehaze", "haze", {"haze": {"beta": [0.6, 1.2]}}, arguments=CONTEXT, patch=96, batch=8),
        Recipe("haze.thick", "dehaze", "haze", {"haze": {"beta": [1.2, 1.8]}}, arguments=CONTEXT, patch=96, batch=8),
        Recipe("jpeg.quality15", "dejpeg", "jpeg", {"jpeg": {"quality": [8, 18]}}, arguments=WIDE),
        Recipe("jpeg.quality25", "dejpeg", "jpeg", {"jpeg": {"quality": [18, 32]}}, arguments=WIDE),
        Recipe(
            "dark.shift", "brighten", "low_light", {"low_light": {"kind": "shift", "shift": [30, 49]}}, arguments=CONTEXT, patch=96, batch=8
        ),
        Recipe(
            "dark.gamma",
            "brighten",
            "low_light",
            {"low_light": {"kind": "gamma", "gamma": [0.5, 0.7]}},
            arguments=CONTEXT,
            patch=96,
            batch=8,
        ),
        Recipe(
            "dark.range", "brighten", "low_light", {"low_light": {"kind": "range", "top": [100, 149]}}, arguments=CONTEXT, patch=96, batch=8
        ),
        Recipe("fidelity.x4", "super_resolve", "low_resolution", network="x4", patch=96),
    )
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tools", nargs="*", help="names of recipes; all by default")
    parser.add_argument("--photos", help="folder of clean photographs; one in five is held out")
    parser.add_argument("--recipe", type=Path, help="a JSON file with the fields of a recipe of your own")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the weights (default: the embedded tools')")
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
    for recipe in recipes:
        card = train(recipe, options.photos, options.steps or recipe.steps, options.seed, options.out, options.work)
        print(f"{recipe.name}: {card['gain_db']:+.2f} dB on held-out crops, {card['seconds']} s, {card['kib']} KiB")
    return 0


def train(recipe: Recipe, photos: str, steps: int, seed: int, out: Path, work: Path) -> dict:
    """Train one tool, or go on training it; returns its card."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    network = NETWORKS[recipe.network](**recipe.arguments).to(device)
    optimiser = torch.optim.Adam(network.parameters(), recipe.lr)
    done, seconds = 0, 0.0
    kept = work / f"{recipe.name}.pt"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        done, seconds = state["step"], state["seconds"]
    source, test = load_photos(photos, "train"), load_photos(photos, "heldout")
    heldout = make_batch(recipe, test, np.random.default_rng(10_000 + seed), HELDOUT_CROPS, 96, device)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(), transient=True) as progress:
        bar = progress.add_task(recipe.name, total=steps, completed=done)
        while done < steps:
            start = time.monotonic()
            for group in optimiser.param_groups:
                group["lr"] = recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done / steps)))
            # a generator per step, so that a resumed training sees the batches it would have seen
            degraded, clean = make_batch(recipe, source, np.random.default_rng([seed, done]), recipe.batch, recipe.patch, device)
            loss = F.l1_loss(network(degraded), clean)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            done += 1
            seconds += time.monotonic() - start
            progress.update(bar, completed=done, description=f"{recipe.name}  loss {loss.item():.4f}")
            if done % KEEP_EVERY == 0 or done == steps:
                _keep(kept, {"network": network.state_dict(), "optimiser": optimiser.state_dict(), "step": done, "seconds": seconds})
    return write(
        recipe,
        network,
        heldout,
        out,
        {"photographs": "/".join(Path(photos).resolve().parts[-2:]), "seed": seed, "steps": done, "seconds": round(seconds)},
    )


def make_batch(recipe: Recipe, photos, rng: np.random.Generator, count: int, patch: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Degraded and clean crops, float32 (count, 3, h, w) and (count, 3, patch, patch) in [0, 1], flipped at random from left to right."""
    degraded, clean = [], []
    for _ in range(count):
        name = photos.names[int(rng.integers(len(photos)))]
        photo = photos.load(name)
        top, left = (int(rng.integers(side - patch + 1)) for side in photo.shape[:2])
        crop = photo[top : top + patch, left : left + patch]
        crop = np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop)
        scene = Scene(name, photo.shape[:2], (top, left, patch, patch))
        severity = {part: {key: _draw(value, rng) for key, value in ranges.items()} for part, ranges in recipe.severity.items()}
        degraded.append(degrade(crop, recipe.combo, int(rng.integers(2**48)), severity=severity, scene=scene).image)
        clean.append(crop)
    return tuple(torch.from_numpy(np.stack(part)).to(device).permute(0, 3, 1, 2).float() / 255.0 for part in (degraded, clean))


@torch.no_grad()
def write(recipe: Recipe, network: torch.nn.Module, heldout: tuple[torch.Tensor, torch.Tensor], out: Path, facts: dict) -> dict:
    """Write weights and card; the gain is measured with the weights as they are stored, in half precision."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous().cpu() for name, value in network.state_dict().items()}
    save_file(state, out / f"{recipe.name}.safetensors")
    network.load_state_dict({name: value.float() for name, value in state.items()})
    degraded, clean = heldout
    before = degraded if degraded.shape == clean.shape else F.interpolate(degraded, clean.shape[2:], mode="bicubic", antialias=True)
    gain = (_psnr(network(degraded), clean) - _psnr(before, clean)).mean().item()
    size = (out / f"{recipe.name}.safetensors").stat().st_size
    card = {
        "name": recipe.name,
        "task": recipe.task,
        "network": recipe.network,
        "arguments": recipe.arguments,
        "degradation": f"{recipe.combo} {json.dumps(recipe.severity)}" if recipe.severity else recipe.combo,
        "gain_db": round(gain, 3),
        "kib": round(size / 1024),
        **facts,
        "recipe": {key: value for key, value in asdict(recipe).items() if key in ("patch", "batch", "lr")},
    }
    (out / f"{recipe.name}.json").write_text(json.dumps(card, indent=2) + "\n")
    return card


def _psnr(images: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    return -10 * torch.log10((images.clamp(0, 1) - clean).square().mean((1, 2, 3)) + 1e-8)


def _draw(value, rng: np.random.Generator):
    """A value as it is, or one from [low, high]: an integer if both ends are."""
    if not isinstance(value, list):
        return value
    low, high = value
    return int(rng.integers(low, high + 1)) if isinstance(low, int) and isinstance(high, int) else float(rng.uniform(low, high))


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
    parse_combo(recipe.combo)
    return recipe


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
