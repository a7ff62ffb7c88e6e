"""Demonstrations for TIR-Agent: degraded photographs, and how a training-free agent in 4KAgent's manner restores them.

How to run
----------
    python -m experiments.tir_agent.demos --photos FOLDER --out results/demos
    python -m experiments.tir_agent.demos --photos FOLDER --out results/demos --perception encoder --metrics psnr,ssim_ycbcr,lpips
    python -m experiments.tir_agent.demos --photos FOLDER --out results/demos --executor pool --processes 16    # see `ir-env pool start`

The agent (``policies/planners/traversal.py``) perceives which degradations there are, runs all tools of one task after another, keeps the
best result, and rolls back what gains less than ``--threshold``. ``--out`` then holds a dataset of Hugging Face's ``datasets``
(``load_from_disk``) with the splits ``train`` and ``heldout`` (one photograph in five, or ``--heldout-photos``) and the columns

    sample, combo       which photograph, crop and seed; the degradations
    degraded, clean     images
    tasks, tools        the trajectory, step by step, without the stop that ends it
    gain                of the restoration, in units of the reward
    executions          tools that the agent ran for it, those rolled back too

Those to learn from are crops and whole photographs in turn, those held out whole photographs, as they are in use (``--crop``,
``--heldout-crop``). An interrupted run goes on where it stopped.

Results to expect
-----------------
200 photographs of BSDS500's train set, 1600 demonstrations: 1.99 steps, 8.48 tool runs and a gain of +1.72 per image; 32 minutes on a core
that was shared with others.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.resumable import keep_settings, make_rows

if TYPE_CHECKING:
    from datasets import DatasetDict

CHUNK = 16
SPLITS = ("train", "heldout")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of photographs, or builtin; one in five is held out")
    parser.add_argument("--out", type=Path, default=Path("results/tir_agent_demos"))
    parser.add_argument("--count", type=int, default=5000, help="demonstrations for training")
    parser.add_argument("--heldout", type=int, default=256, help="demonstrations on held-out photographs")
    parser.add_argument("--heldout-photos", help="folder of those photographs; by default one in five of --photos")
    parser.add_argument("--combos", default="random:1:2:3", help="of degradations, see ir_env.degradations.parse_combos")
    parser.add_argument(
        "--crop", default="256,0", help="side of the crops for training, 0 for whole photographs; several, separated by commas, take turns"
    )
    parser.add_argument("--heldout-crop", type=int, default=0, help="the same on held-out photographs")
    parser.add_argument("--toolbox", default="default")
    parser.add_argument("--metrics", default="psnr,ssim_ycbcr,piqe", help="that judge the results, weighed as in the reward delta_iqa")
    parser.add_argument("--perception", choices=("known", "encoder"), default="known", help="the degradations are told, or perceived")
    parser.add_argument("--threshold", type=float, default=0.02, help="least gain of a step that is not rolled back")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--executor", default="local", help="local: each process runs its tools; pool or pool:NAME: they share a running MC-Pool"
    )
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args(arguments)

    from datasets import DatasetDict, disable_progress_bars

    from tool_actors.toolboxes import load_toolbox

    disable_progress_bars()
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "executor", "processes")}
    settings["toolbox"] = load_toolbox(options.toolbox).references
    settings["metrics"] = options.metrics.split(",")
    keep_settings(options.out, settings)
    if (options.out / "data").is_dir():
        print(f"{options.out}: made already")
        return
    start = time.monotonic()
    made = {}
    crops_of = {"train": [int(side) for side in options.crop.split(",")], "heldout": [options.heldout_crop]}
    for split, count in zip(SPLITS, (options.count, options.heldout), strict=True):
        crops = crops_of[split]
        jobs = [
            {
                **settings,
                "executor": options.executor,
                "split": split,
                "at": at,
                "count": min(CHUNK, count - at),
                "crop": crops[at // CHUNK % len(crops)],
            }
            for at in range(0, count, CHUNK)
        ]
        made[split] = make_rows(demonstrate, jobs, features(), options.out / "pieces" / split, options.processes, f"{split} demonstrations")
    temporary = options.out / ".data.part"
    DatasetDict(made).save_to_disk(temporary)
    temporary.replace(options.out / "data")
    shutil.rmtree(options.out / "pieces")
    print(f"{options.out}: {describe(made['train'])}  ({time.monotonic() - start:.0f} s)")


def features():
    """The columns."""
    from datasets import Features, Image, List, Value

    texts = List(Value("string"))
    columns = {"sample": Value("string"), "combo": Value("string"), "degraded": Image(), "clean": Image(), "tasks": texts, "tools": texts}
    return Features({**columns, "gain": Value("float32"), "executions": Value("int32")})


def load_demonstrations(folder: str | Path) -> tuple[DatasetDict, dict[str, Any]]:
    """The demonstrations that this script wrote, and its settings."""
    from datasets import load_from_disk

    from tool_actors.errors import IrEnvError

    folder = Path(folder)
    if not (folder / "data").is_dir():
        raise IrEnvError(f"{folder}: holds no demonstrations; make some with python -m experiments.tir_agent.demos --out {folder}")
    return load_from_disk(folder / "data"), json.loads((folder / "settings.json").read_text())


_processes: dict[str, Any] = {}


def demonstrate(job: dict[str, Any]) -> list[dict]:
    """The rows of one piece; an image on which a tool failed is left out."""
    import numpy as np
    from PIL import Image

    from ir_env.planner import run
    from policies.planners.perception import EncoderPerception, KnownDegradations
    from policies.planners.traversal import TraversalPlanner

    process = process_for(job, job["split"])
    perceive = EncoderPerception() if job["perception"] == "encoder" else None
    rng = np.random.default_rng([job["seed"], SPLITS.index(job["split"]), job["at"]])
    rows = []
    for _ in range(job["count"]):
        [episode] = process.start([process.dataset.draw(rng)])
        planner = TraversalPlanner(perceive or KnownDegradations(episode.combo), job["threshold"])
        for _ in run(process, planner, [episode]):
            pass
        if episode.error:
            continue
        steps = [process.actions[action] for action in episode.applied]
        rows.append(
            {
                "sample": episode.sample,
                "combo": episode.combo,
                "degraded": Image.fromarray(episode.states[0].as_uint8()),
                "clean": Image.fromarray(episode.reference),
                "tasks": [step.task for step in steps],
                "tools": [step.tool for step in steps],
                "gain": episode.total_reward,
                "executions": episode.executions,
            }
        )
    return rows


def process_for(settings: dict[str, Any], split: str):
    """The decision process of the demonstrations, kept in this process from one piece to the next."""
    from ir_env.process import RestorationProcess
    from tool_actors.tasks import TASKS

    apart = settings.get("heldout_photos")
    photos = {"photos": settings["photos"], "split": "all" if apart and split == "train" else split}
    if apart and split == "heldout":
        photos = {"photos": apart, "split": "all"}
    dataset = {**photos, "crop_size": settings["crop"] or None, "combos": settings["combos"]}
    toolbox, metrics, executor = (settings[name] for name in ("toolbox", "metrics", "executor"))
    key = json.dumps([dataset, toolbox, metrics, executor])
    if key not in _processes:
        _processes[key] = RestorationProcess(dataset, toolbox, metrics=metrics, max_steps=len(TASKS) + 1, executor=executor)
    return _processes[key]


def describe(rows) -> str:
    import numpy as np

    steps = np.mean([len(tools) for tools in rows["tools"]])
    return (
        f"{len(rows)} demonstrations for training, {steps:.2f} steps, {np.mean(rows['executions']):.2f} tool runs and a gain of "
        f"{np.mean(rows['gain']):+.3f} per image"
    )


if __name__ == "__main__":
    main()
