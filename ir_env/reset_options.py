"""How an episode begins: drawn from the dataset, or as the options of ``reset`` say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ir_env.datasets.base import Sample
from ir_env.degradations import degrade, parse_combo, seed_for
from ir_env.episode import Episode
from ir_env.images import load_image
from ir_env.process import RestorationProcess
from tool_actors.errors import IrEnvError, UnknownNameError

__all__ = ["OPTIONS", "start_episodes"]

OPTIONS = ("image", "combo", "sample")


def start_episodes(process: RestorationProcess, rngs: Sequence[np.random.Generator], options: Mapping | None) -> list[Episode]:
    """Begin one episode per generator.

    Args:
        process: the decision process.
        rngs: one generator per episode, for what the options leave open; two in the same state draw the same sample.
        options: see :class:`ir_env.env.RestorationEnv`.
    """
    if options is not None and not isinstance(options, Mapping):
        raise IrEnvError(f"the options of reset are a mapping of {', '.join(OPTIONS)}, not {options!r}")
    options = {key: value for key, value in (options or {}).items() if value is not None}
    for key in options:
        if key not in OPTIONS:
            raise UnknownNameError("reset option", key, OPTIONS)
    if not isinstance(options.get("image", ""), str | Path | np.ndarray):
        raise IrEnvError(f"reset option image: give a path or an array uint8 (H, W, 3), not {options['image']!r}")
    if not isinstance(options.get("sample", ""), str | Sample):
        raise IrEnvError(f"reset option sample: give an info['sample'] or a Sample, not {options['sample']!r}")
    if "image" in options:
        return [_start_image(process, options["image"], options.get("combo"), rng) for rng in rngs]
    samples = []
    for rng in rngs:
        if "sample" in options:
            sample = options["sample"]
            sample = sample if isinstance(sample, Sample) else Sample.parse(sample)
        else:
            sample = process.dataset.draw(rng)
        if "combo" in options:
            sample = replace(sample, combo=parse_combo(options["combo"]))
        samples.append(sample)
    return process.start(samples)


def _start_image(process: RestorationProcess, image: str | Path | np.ndarray, combo: str | None, rng: np.random.Generator) -> Episode:
    name = "image" if isinstance(image, np.ndarray) else str(image)
    pixels = image if isinstance(image, np.ndarray) else load_image(image)
    if combo is None:
        return process.start_image(pixels, None, name)
    pixels = pixels[: pixels.shape[0] // 4 * 4, : pixels.shape[1] // 4 * 4]
    degraded = degrade(pixels, combo, seed_for(name, parse_combo(combo), int(rng.integers(1_000_000))))
    episode = process.start_image(degraded.image, pixels, name)
    episode.combo = "+".join(parse_combo(combo))
    return episode
