"""OPERA's exhaustive study (section 3.2): all 340 plans of four tools on each image, and what the best of them have in common.

How to run
----------
    python -m experiments.opera.exhaustive_study --photos FOLDER --out results/opera_study
    python -m experiments.opera.exhaustive_study --photos FOLDER --out results/opera_study_paper --toolbox opera --size 256 \\
        --tools noise=restormer.gaussian_denoise_50,rain=restormer.derain,haze=xrestormer.dehaze,motion_blur=restormer.motion_deblur \\
        --metrics psnr,ssim_ycbcr,lpips,clipiqa,musiq

``--out`` then holds ``study.json`` (the statistics with their intervals, the paper's beside them, by combination, and image by image),
``study.png``, and in ``images`` the values of every plan. An interrupted run goes on where it stopped.

As in the paper there are four tools, the eight combinations of appendix B.2, each applied in the order in which it is written, 15
photographs, all plans of one to four tools, three full-reference and two no-reference metrics, and its selection of plans
(``experiments/opera/plan_statistics.py``). Common beginnings of plans run once: 340 plans take 340 runs of a tool, which are counted.

What is not as in the paper, or is not told there:

    blur            is motion blur here; the paper does not say which it is, nor on which its X-Restormer was trained
    tools           small ones that come with the project: of each task the one that gains most over the recipe's whole range of the
                    degradation, and for noise that of the strongest, as the paper takes Restormer for sigma 50
    metrics         need no weights: PSNR, SSIM, GMSD; NIQE, PIQE. The paper's are PSNR, SSIM, LPIPS; CLIP-IQA, MUSIQ
    photographs     crops of 192 px, the least that NIQE is defined on; one of each photograph, the same in all combinations
    ties            plans of equal value share their mean rank; a plan without a value ranks last
    images          all count. 66.3 % is no whole number of 120 images: the paper leaves some out and does not say which
    de-duplication  keeps each tool where it first comes

"By chance" are the shares among all plans: most of them hold an out-of-scope tool, and a repeated one, whether that helps or not.

Results to expect
-----------------
BSDS500's test set, 120 images (paper): 18.2 high-performing plans an image (12.05), 50 % of them with an out-of-scope tool (60.0), which
are better on 33 % of the images (66.3), best rank 31.9 with and 20.1 without (34.9, 43.2); 77 % with a repeated tool (77.6), rank 32.1, and
41.0 without the repeats (54.0, 65.3). 12 minutes on two cores, 340 runs of a tool for each image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.opera.plan_statistics import all_plans
from experiments.opera.study_report import report
from experiments.resumable import keep_settings, make_rows
from tool_actors.errors import IrEnvError
from tool_actors.threads import limit_threads

if TYPE_CHECKING:
    from ir_env.datasets import Sample, SynthesisedDataset
    from ir_env.metrics import MetricSuite
    from tool_actors.executor import LocalExecutor

COMBOS = "rain+noise,rain+haze,haze+noise,rain+motion_blur,haze+motion_blur,motion_blur+noise,rain+haze+noise,rain+haze+motion_blur"
"""OPERA, appendix B.2."""
TOOLS = "noise=noise.gaussian45,rain=rain.heavy,haze=haze.thin,motion_blur=motion.short"
METRICS = "psnr,ssim_ycbcr,gmsd,niqe,piqe"
AT_ONCE = 8
"""Plans that are judged together: their maps stay in a processor's cache."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", required=True, help="folder of clean photographs that no tool learned from, or builtin")
    parser.add_argument("--out", type=Path, default=Path("results/opera_study"))
    parser.add_argument("--images", type=int, default=15, help="photographs, each in all combinations")
    parser.add_argument("--size", type=int, default=192, help="side of the crops in pixels; 0 takes whole photographs")
    parser.add_argument("--combos", default=COMBOS, help="combinations of degradations, separated by commas")
    parser.add_argument("--toolbox", default="default", help="that holds the tools")
    parser.add_argument("--tools", default=TOOLS, metavar="DEGRADATION=TOOL,...", help=f"one for each degradation; by default {TOOLS}")
    parser.add_argument("--longest", type=int, default=4, help="tools in the longest plans")
    parser.add_argument("--metrics", default=METRICS, help="of both kinds, full-reference and no-reference")
    parser.add_argument("--seed", type=int, default=0, help="names the photographs, crops and degradations")
    parser.add_argument("--processes", type=int, default=2, help="with one thread each")
    options = parser.parse_args(arguments)
    limit_threads(1)

    from ir_env.datasets import SynthesisedDataset

    settings = {key: value for key, value in vars(options).items() if key not in ("out", "processes")}
    settings["tools"] = parse_tools(options.tools)
    settings["metrics"] = options.metrics.split(",")
    dataset = SynthesisedDataset(options.photos, crop_size=options.size or None, combos=options.combos, seed=options.seed)
    check(settings, dataset)
    keep_settings(options.out, settings)
    start = time.monotonic()
    jobs = [{**settings, "sample": sample.id} for sample in draw_samples(dataset, options.images, options.seed)]
    rows = make_rows(measure, jobs, features(), options.out / "images", options.processes, "images")
    print(f"{len(rows)} images in {time.monotonic() - start:.0f} s")
    report(list(rows), settings, _suite(*settings["metrics"]), options.out)
    return 0


# -- what is measured ----------------------------------------------------------------------------------------------------------------


def parse_tools(text: str) -> dict[str, str]:
    """``"noise=noise.gaussian45,rain=rain.heavy"``: the tool of each degradation."""
    from ir_env.degradations import parse_combo

    pairs = [pair.partition("=") for pair in text.split(",")]
    if wrong := [name for name, equals, tool in pairs if not (equals and tool)]:
        raise IrEnvError(f"--tools: {wrong[0]!r} names no tool; write DEGRADATION=TOOL, separated by commas, e.g. {TOOLS}")
    tools = {parse_combo(name)[0]: tool.strip() for name, _, tool in pairs}
    if len(tools) < len(pairs):
        raise IrEnvError(f"--tools {text}: names a degradation twice; each has one tool here")
    return tools


def check(settings: Mapping[str, Any], dataset: SynthesisedDataset) -> None:
    """Raise :class:`IrEnvError` for settings that leave the study without an answer."""
    if len(dataset.photos) < settings["images"]:
        raise IrEnvError(f"--photos {settings['photos']}: holds {len(dataset.photos)} photographs; lower --images {settings['images']}")
    for combo in dataset.combos.entries:
        if missing := set(combo) - set(settings["tools"]):
            raise IrEnvError(f"combination {'+'.join(combo)}: --tools names no tool for {', '.join(sorted(missing))}")
        if not set(settings["tools"]) - set(combo):
            raise IrEnvError(f"combination {'+'.join(combo)}: no tool of --tools is out of its scope; leave it out, or give more tools")
    kinds = {metric.needs_reference for metric in _suite(*settings["metrics"]).metrics}
    if len(kinds) < 2:
        raise IrEnvError(f"--metrics {','.join(settings['metrics'])}: takes full-reference and no-reference metrics, e.g. {METRICS}")
    _executor(settings["toolbox"], *settings["tools"].values())


def draw_samples(dataset: SynthesisedDataset, images: int, seed: int) -> list[Sample]:
    """Photographs at random, of each one crop, in all combinations."""
    rng, chosen = np.random.default_rng(seed), {}
    while len(chosen) < images:
        sample = dataset.draw(rng)
        chosen.setdefault(sample.photo, sample)
    return [replace(sample, combo=combo) for sample in chosen.values() for combo in dataset.combos.entries]


def features():
    """The columns of a row, which is an image."""
    from datasets import Features, List, Value

    numbers = {name: Value("float64") for name in ("tool_seconds", "metric_seconds")}
    return Features({"sample": Value("string"), "values": List(List(Value("float32"))), "executions": Value("int32"), **numbers})


def measure(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The values of all plans on an image, by all metrics, and how often a tool ran for that."""
    from ir_env.datasets.base import Sample
    from tool_actors.executor import ImageState
    from tool_actors.plans import iter_plans

    pair = _dataset(job["photos"], job["size"], job["combos"], job["seed"]).load(Sample.parse(job["sample"]))
    executor, suite = _executor(job["toolbox"], *job["tools"].values()), _suite(*job["metrics"])
    plans = all_plans(list(job["tools"]), job["longest"])
    start = ImageState.from_pixels(pair.degraded)
    before = executor.stats.executions, sum(executor.stats.seconds.values())
    values, waiting, metric_seconds = np.empty((len(plans), len(suite.names)), np.float32), {}, 0.0

    def judge() -> float:
        began = time.perf_counter()
        values[list(waiting)] = suite.score(list(waiting.values()), [pair.reference] * len(waiting))
        waiting.clear()
        return time.perf_counter() - began

    for number, step, result in iter_plans(executor, [(start, [job["tools"][name] for name in plan]) for plan in plans], AT_ONCE):
        if result.error is not None:
            raise result.error
        if step + 1 == len(plans[number]) and result.state is not None:
            waiting[number] = result.state.pixels
        if len(waiting) == AT_ONCE:
            metric_seconds += judge()
    if waiting:
        metric_seconds += judge()
    executions = executor.stats.executions - before[0]
    if executions != len(plans):
        raise IrEnvError(
            f"{job['sample']}: a tool ran {executions} times for {len(plans)} plans; tools must be deterministic, and all differ"
        )
    tool_seconds = sum(executor.stats.seconds.values()) - before[1]
    told = {"executions": executions, "tool_seconds": tool_seconds, "metric_seconds": metric_seconds}
    return [{"sample": job["sample"], "values": values.tolist(), **told}]


@cache
def _dataset(photos: str, size: int, combos: str, seed: int) -> SynthesisedDataset:
    from ir_env.datasets import SynthesisedDataset

    return SynthesisedDataset(photos, crop_size=size or None, combos=combos, seed=seed)


@cache
def _executor(toolbox: str, *tools: str) -> LocalExecutor:
    from tool_actors.executor import LocalExecutor
    from tool_actors.toolboxes import load_toolbox

    # without a cache, so that what is counted is what the plans' order saves
    return LocalExecutor(load_toolbox(toolbox, lambda name: name in tools).select(tools), cache_bytes=0)


@cache
def _suite(*metrics: str) -> MetricSuite:
    from ir_env.metrics import MetricSuite

    return MetricSuite(metrics)


if __name__ == "__main__":
    from experiments.cli.common import guarded

    raise SystemExit(guarded(main))
