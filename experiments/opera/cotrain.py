"""Tools learn together under a policy's plans (OPERA, arXiv 2605.22104, section 4.3): makes a new toolbox and says what it gains.

How to run
----------
    python -m experiments.opera.cotrain --photos FOLDER --heldout FOLDER --out results/cotrained
    ir-env restore photo.jpg --policy simplecall --toolbox results/cotrained/toolbox/toolbox.yaml

It makes, in ``--out``: ``plans.json``, what the policy applies to each degraded crop of ``--photos``; ``state.pt``, from which the same
command goes on after an interruption; curves for TensorBoard; ``toolbox/``, the tools of the epoch that is best in validation, under the
same names; and ``table.json``, PSNR and SSIM of the policy's plans on whole photographs of ``--heldout``, executed with the tools as they
were and as they are.

As in the paper: gradients through the whole chain into every tool, one Adam per tool, gradient norm 0.5, crops of 128 pixels, the loss of
:mod:`tool_actors.losses` with its schedule, four fifths of the photographs to learn from and one to validate on. The paper's rate of 1e-6
and batch of 2 are for networks of 26 million weights: ``--lr 1e-6 --constant-lr --batch 2``.

Otherwise than in the paper: plans are made on crops of 256 pixels, the least that the policy sees as a photograph, and tools learn on
random crops of them, but on all of an image that is to be dehazed or brightened; a batch is put together of several plans; each tool's rate
rises over its first updates; the images' losses count by their logarithms (``--absolute`` takes their sum), and what is kept is a running
mean of the weights (``--average 0`` keeps the last ones); and a share of each batch (``--single``) is a tool alone on its own degradation,
or on a clean image. The paper has single degradations among those that its plans are made for; here they keep each tool what it was, and
clean images teach it to leave alone what needs nothing.

Results to expect
-----------------
README has the table of three rounds with ``--absolute --average 0 --terms l1,vgg,lpips``: ``--epochs 6 --single 0.4``, then ``--toolbox``
of the first with ``--epochs 8 --single 0.4 --seed 1``, then that of the second with ``--policy`` of the planner, ``--images 600 --epochs 6
--single 0.3 --seed 2``; and of epochs from halfway back (:mod:`experiments.opera.interpolate`): ``--policy`` of the planner, ``--combos
A,B,C:2 --images 800 --epochs 4 --single 0.4 --terms l1,vgg,lpips``, stopped after the third. An epoch of 1000 images takes some 90 s of one
core, and the plans some two minutes. With PIQE among the terms, as by default: ``--policy`` of the planner, ``--combos A,B,C:2 --images 500
--epochs 4 --single 0.4``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from tool_actors.errors import IrEnvError
from tool_actors.extras import need

if TYPE_CHECKING:
    from ir_env.planner import Planner
    from ir_env.process import RestorationProcess

CROP, PLANNED_CROP = 128, 256
HELDOUT_SEED = 20_000
ALONE = 4
"""Images that a tool gets alone at once."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs to learn from")
    parser.add_argument("--heldout", help="folder of clean photographs for the closing table; without it there is none")
    parser.add_argument("--out", type=Path, default=Path("results/cotrained"))
    parser.add_argument("--policy", default="simplecall", help="whose plans: a name, fixed:TOOL+TOOL, or the path of a checkpoint")
    parser.add_argument("--plans", type=Path, help="a file of plans to use instead of the policy's, for the images of --photos")
    parser.add_argument("--toolbox", help="where the tools begin (default: the policy's)")
    parser.add_argument("--combos", default="A,B,C", help="degradations of the images")
    parser.add_argument("--images", type=int, default=1000, help="degraded crops with a plan")
    parser.add_argument("--planned-crop", type=int, default=PLANNED_CROP, help="their side in pixels")
    parser.add_argument("--crop", type=int, default=CROP, help="side of the crops of them that tools learn on")
    parser.add_argument("--epochs", type=int, default=23)
    parser.add_argument("--steps", type=int, help="as many epochs as come nearest to so many batches")
    parser.add_argument("--batch", type=int, default=8, help="images per step, those of --single besides")
    parser.add_argument("--lr", type=float, help="of Adam (default: 2e-4, for the project's own networks)")
    parser.add_argument("--constant-lr", action="store_true", help="as in the paper; by default the rate decays along half a cosine")
    parser.add_argument("--single", type=float, default=0.5, help="share of the images that a tool sees alone")
    parser.add_argument("--clean", type=float, default=0.15, help="share of these that are clean")
    parser.add_argument("--terms", type=_terms, help="of the loss, such as l1,vgg,lpips or mse,lpips=0.002 (default: the paper's five)")
    parser.add_argument("--absolute", action="store_true", help="sum the images' losses, as in the paper, instead of their logarithms")
    parser.add_argument("--average", type=float, help="share of the running mean of the weights (default: 0.99; 0: none, as in the paper)")
    parser.add_argument("--classical", choices=("straight_through", "stop"), default="straight_through", help="their gradient")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, a third more time")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto", help="of the convolutions while training")
    parser.add_argument("--samples", type=int, default=96, help="images of the closing table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    if not 0 <= options.single < 1 or not 0 <= options.clean <= 1:
        raise IrEnvError("--single and --clean are shares, the first from 0 to less than 1, the second from 0 to 1")
    if options.crop % 32 or options.planned_crop % 4 or options.crop > options.planned_crop:
        raise IrEnvError("--crop is a multiple of 32, --planned-crop one of 4 and at least as large")

    from tool_actors.threads import limit_threads

    limit_threads(options.threads)
    console = Console()
    toolbox, file = train(options, console)
    console.print(f"the tools that learned together: {file}")
    if options.heldout:
        evaluate(options, toolbox, file, console)
    return 0


def _terms(text: str) -> dict[str, float]:
    """``"l1,musiq=0.02"``: the weight of each term, by default the paper's, or 1 of one that is not the paper's."""
    from tool_actors.losses import MORE, TARGETS

    pairs = [part.strip().partition("=") for part in text.split(",")]
    try:
        return {name: float(weight) if equals else (TARGETS | MORE).get(name, 0.0) for name, equals, weight in pairs}
    except ValueError:
        raise IrEnvError(f"--terms {text}: a weight is a number, as in l1,lpips,musiq=0.02") from None


# -- training ------------------------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace, console: Console) -> tuple[Any, Path]:
    """Learn, or go on learning; returns the toolbox as it was and the file of the new one."""
    import torch

    from experiments.opera.crops import PlannedCrops
    from experiments.opera.plans import check_tools, split_by_photograph
    from experiments.resumable import keep_settings
    from experiments.train_tools import has_bfloat16_units
    from ir_env.datasets import load_photos
    from tool_actors.cotraining import SMALL, CoTraining, Settings, batches
    from tool_actors.losses import TARGETS, load_loss
    from tool_actors.trained_toolbox import check_writable, write_toolbox

    planner, process = _planning(options, options.photos, options.planned_crop)
    toolbox, photos = process.executor.toolbox, load_photos(options.photos)
    check_writable(toolbox)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bfloat16 = options.precision == "bf16" or (options.precision == "auto" and has_bfloat16_units())
    deciding = ("policy", "toolbox", "combos", "images", "planned_crop", "crop", "epochs", "steps", "batch", "lr", "constant_lr", "single")
    deciding += ("clean", "terms", "absolute", "average", "classical", "seed")
    keep_settings(
        options.out,
        {name: getattr(options, name) for name in deciding}
        | {"plans": str(options.plans), "bfloat16": bfloat16, "photographs": photos.listing()}
        | {"tools": [tool.spec.fingerprint for tool in toolbox]},
    )
    planned = _plans(options, planner, process, console)
    check_tools(planned, toolbox.names, process.dataset)
    learn, validate = (PlannedCrops(process.dataset, part, toolbox, options.crop) for part in split_by_photograph(planned))
    if not learn.keys or not validate.keys:
        raise IrEnvError("no image to learn from, or to validate on, has a plan with a tool: give more --images, or another --policy")
    _tell_plans(planned, console)

    per_epoch = len(batches(learn.keys, options.batch, np.random.default_rng(0)))
    epochs = max(1, round(options.steps / per_epoch)) if options.steps else options.epochs
    settings = Settings(
        epochs=epochs,
        lr=options.lr or SMALL.lr,
        decay=not options.constant_lr,
        warmup=SMALL.warmup,
        relative=not options.absolute,
        average=SMALL.average if options.average is None else options.average,
        checkpointing=options.checkpointing,
        classical=options.classical,
        bfloat16=bfloat16,
    )
    loss = load_loss(device, wanted=options.terms or TARGETS)
    for name, why in loss.absent.items():
        console.print(f"loss: {name} is left out: {why}", soft_wrap=True)
    console.print(f"loss: {loss.describe()}")
    torch.manual_seed(options.seed)
    trainer = CoTraining(toolbox, loss, settings, device)
    rng = np.random.default_rng(options.seed)
    checks = [validate.part(places, None) for batch in batches(validate.keys, options.batch, rng) for places in batch]
    checks += _alone(trainer, checks, photos, options, rng)
    _fit(options, trainer, learn, checks, photos, console)
    best = torch.load(options.out / "best.pt", weights_only=True)
    trainer.load_state_dict(best)
    note = f"Co-trained under the plans of {planner.name}, epoch {best['epoch']} of {epochs}, {options.combos}, seed {options.seed}."
    return toolbox, write_toolbox(toolbox, trainer.trained(), options.out / "toolbox", note)


def _fit(options: argparse.Namespace, trainer, learn, checks: list, photos, console: Console) -> None:
    """The epochs that are still to do; keeps the state after each, and the networks of the best in ``best.pt``."""
    need("tensorboard")
    import torch
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from torch.utils.tensorboard import SummaryWriter

    from tool_actors.cotraining import batches

    epochs, kept = trainer.settings.epochs, options.out / "state.pt"
    if kept.is_file():
        state = torch.load(kept, weights_only=True)
        trainer.load_state_dict(state)
        history = state["history"]
    else:
        history = [{"epoch": 0, "seconds": 0.0, **trainer.validate(checks)}]
    writer = SummaryWriter(str(options.out))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("learning", total=1)
        for epoch in range(int(history[-1]["epoch"]) + 1, epochs + 1):
            start = time.monotonic()
            # a generator per epoch, so that a resumed training sees the batches it would have seen
            rng = np.random.default_rng([options.seed, epoch])
            order = batches(learn.keys, options.batch, rng)
            for index, batch in enumerate(order):
                parts = [learn.part(places, rng) for places in batch]
                parts += _alone(trainer, parts, photos, options, rng)
                told = trainer.step(parts, epoch, (epoch - 1 + index / len(order)) / epochs)
                step = (epoch - 1) * len(order) + index
                for name, value in told.items():
                    writer.add_scalar(f"train/{name}", value, step)
                done = (epoch - 1) * len(order) + index + 1
                progress.update(bar, total=epochs * len(order), completed=done, description=f"epoch {epoch}  loss {told['loss']:.4f}")
            history.append({"epoch": epoch, "seconds": time.monotonic() - start, **trainer.validate(checks)})
            for name in ("loss", "psnr"):
                writer.add_scalar(f"validation/{name}", history[-1][name], epoch)
            console.print(
                f"epoch {epoch}: validation loss {history[-1]['loss']:.4f} (before {history[0]['loss']:.4f}), "
                f"PSNR {history[-1]['psnr']:.2f} dB ({history[0]['psnr']:.2f}), {history[-1]['seconds']:.0f} s"
            )
            state = {**trainer.state_dict(), "history": history, "epoch": epoch}
            if min(history[1:], key=lambda row: row["loss"])["epoch"] == epoch:
                _save(options.out / "best.pt", {name: value for name, value in state.items() if name != "optimisers"})
            _save(kept, state)
    writer.close()
    (options.out / "history.json").write_text(json.dumps(history, indent=2) + "\n")


def _alone(trainer, parts: Sequence, photos, options: argparse.Namespace, rng: np.random.Generator) -> list:
    """Images for single tools, as many as ``--single`` asks for beside these parts: a tool that plans use much is reminded much of its own.

    See :func:`experiments.opera.crops.single_part`.
    """
    from experiments.opera.crops import single_part

    uses = [name for part in parts for name in part.plan for _ in part.degraded if name in trainer.optimisers]
    count = round(sum(len(part.degraded) for part in parts) * options.single / (1 - options.single)) if uses else 0
    sizes = [min(ALONE, count - start) for start in range(0, count, ALONE)]
    return [
        single_part(trainer.tools[str(rng.choice(uses))], photos, size, int(rng.binomial(size, options.clean)), options.crop, rng)
        for size in sizes
    ]


def _planning(options: argparse.Namespace, photos: str, crop: int | None) -> tuple[Planner, RestorationProcess]:
    from experiments.opera.plans import planning

    return planning(options.policy, options.toolbox, photos, crop, options.combos, options.seed)


def _plans(options: argparse.Namespace, planner, process, console: Console) -> list:
    from experiments.opera.plans import make_plans, read_plans

    if options.plans:
        return read_plans(options.plans)
    with console.status("planning") as status:
        told = lambda done, total: status.update(f"planning: {done} of {total} images")  # noqa: E731
        return make_plans(process, planner, options.images, options.seed, options.out / "plans.json", told)


def _tell_plans(planned: Sequence, console: Console) -> None:
    lengths = [len(each.tools) for each in planned]
    uses = Counter(tool for each in planned for tool in each.tools)
    console.print(
        f"{len(planned)} plans, {len({each.tools for each in planned})} different, of {np.mean(lengths):.2f} tools on average, "
        f"{max(lengths)} at most; {', '.join(f'{tool} {count}' for tool, count in uses.most_common())}",
        soft_wrap=True,
    )


def _save(path: Path, state: dict) -> None:
    import torch

    temporary = path.with_suffix(".part")
    torch.save(state, temporary)
    temporary.replace(path)


# -- the closing table ---------------------------------------------------------------------------------------------------------------


def evaluate(options: argparse.Namespace, toolbox, file: Path, console: Console) -> dict:
    """The policy's plans on whole held-out photographs, executed with both toolboxes; printed and kept in ``table.json``."""
    from experiments.opera.executed import METRICS, compare_by_group, execute, show_groups
    from experiments.opera.plans import make_plans
    from ir_env.evaluation import save_json
    from ir_env.metrics import MetricSuite
    from tool_actors.toolboxes import load_toolbox

    planner, process = _planning(options, options.heldout, None)
    with console.status("planning") as status:
        tell: Callable[[str], Callable] = lambda what: lambda done, total: status.update(f"{what}: {done} of {total} images")  # noqa: E731
        path = options.out / f"heldout_plans_{options.samples}.json"
        planned = make_plans(process, planner, options.samples, HELDOUT_SEED, path, tell("planning"))
        before = execute(process.dataset, planned, toolbox, METRICS, tell("original tools"))
        after = execute(process.dataset, planned, load_toolbox(file), METRICS, tell("co-trained tools"))
    told = compare_by_group(planned, before, after)
    show_groups(told, console, f"Plans of {planner.name} on {len(planned)} held-out photographs, executed")
    console.print(f"metrics: {MetricSuite(METRICS).describe()}")
    samples = [each.sample.id for each in planned]
    save_json({"groups": told, "samples": samples, "original": before, "co_trained": after}, options.out / "table.json")
    return told


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
