"""The eight degradations, with the parameter ranges, the order and the uint8 rounding of AgenticIR's recipe; and a user's own.

Every degradation takes and returns uint8 (H, W, 3), RGB; so an image is rounded after each. Sources: AgenticIR
(Zhu et al., ICLR 2025), whose haze follows RESIDE, motion and defocus blur imagecorruptions, noise and resizing BasicSR.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from ir_env.degradations.combos import ALIASES, ORDER, Combo, parse_combo
from ir_env.degradations.depth import Box, DepthSource, SyntheticDepth
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import TASK_OF

Parameters = dict[str, Any]
DRAWS = 64
"""Of parameters, until the kind comes that was asked for: of three kinds one stays away in 1 of 10^11 cases."""
RAIN_FIELD = 256
"""Rain is drawn on a field of at least this side and cut, so that a small crop gets the density and brightness of a photograph."""


@dataclass(frozen=True)
class Scene:
    """What haze needs to know about where the pixels come from."""

    photo: str = ""
    shape: tuple[int, int] | None = None
    box: Box | None = None
    depth: DepthSource = field(default_factory=SyntheticDepth)


@dataclass(frozen=True)
class Degradation:
    """One degradation: how its parameters are drawn, and how it is applied."""

    name: str
    draw: Callable[[np.random.Generator, float | None], Parameters]
    """(generator, severity) -> parameters; severity in [0, 1] fixes where in its range each parameter lies, None draws it."""
    apply: Callable[[np.ndarray, Parameters, np.random.Generator, Scene], np.ndarray]


@dataclass(frozen=True)
class Applied:
    """A degraded image, and with what parameters it was made."""

    image: np.ndarray
    """uint8 (h, w, 3); a quarter of the size after ``low_resolution``."""
    parameters: tuple[tuple[str, Parameters], ...]
    """(degradation, parameters) in order of application."""


def seed_for(image: str, combo: Combo, seed: int = 0) -> int:
    """The seed of an (image, combination): the same on every machine."""
    digest = hashlib.sha256(f"{image}|{'+'.join(combo)}|{seed}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def degrade(
    image: np.ndarray,
    combo: str | Sequence[str],
    seed: int,
    *,
    severity: float | Mapping[str, float | Parameters] | None = None,
    scene: Scene | None = None,
) -> Applied:
    """Apply the degradations of a combination, in order.

    Args:
        image: uint8 (H, W, 3), RGB.
        combo: e.g. ``"rain+haze"``.
        seed: see :func:`seed_for`; the same seed gives the same image.
        severity: None draws the recipe's parameters; a number in [0, 1] goes from the mild to the strong end of each range; a mapping
            gives, by degradation, a number or the parameters themselves (those not named are drawn).
        scene: photograph, crop and depth source, for haze.
    """
    combo = parse_combo(combo)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise IrEnvError(f"degrade needs uint8 (H, W, 3), RGB; this is {image.dtype} {image.shape}")
    check_severity(severity)
    chosen = severity if isinstance(severity, Mapping) else dict.fromkeys(combo, severity)
    used = []
    for name, stream in zip(combo, np.random.SeedSequence(seed).spawn(len(combo)), strict=True):
        rng = np.random.default_rng(stream)
        wanted = chosen.get(name)
        explicit = wanted if isinstance(wanted, Mapping) else {}
        parameters = _draw(RECIPE[name], rng, None if isinstance(wanted, Mapping) else wanted, explicit)
        image = RECIPE[name].apply(image, parameters, rng, scene or Scene())
        used.append((name, parameters))
    return Applied(image, tuple(used))


def check_severity(severity: float | Mapping[str, float | Parameters] | None) -> None:
    """Raise :class:`IrEnvError` for a number outside [0, 1], a degradation that there is not, or a value that is neither."""
    for name, wanted in severity.items() if isinstance(severity, Mapping) else [("the degradations", severity)]:
        if isinstance(severity, Mapping) and name not in RECIPE:
            raise UnknownNameError("degradation", name, RECIPE, "A severity is a number in [0, 1], or a mapping by degradation.")
        if isinstance(wanted, int | float) and not 0 <= wanted <= 1:
            raise IrEnvError(f"severity of {name} must lie in [0, 1], not {wanted}")
        if wanted is not None and not isinstance(wanted, int | float | Mapping):
            raise IrEnvError(f"severity of {name} is {wanted!r}: write a number in [0, 1], or parameters by name")


def add_degradation(degradation: Degradation, task: str, *, before: str | None = None, aliases: Sequence[str] = ()) -> Degradation:
    """Add a degradation of one's own, in this process: combinations may name it, datasets draw it, tools may undo it.

    Args:
        degradation: its name, and how it is drawn and applied.
        task: which task undoes it: one of those there are, or a new one, which tools may then have.
        before: its place in the order of random combinations; by default at the end.
        aliases: other names for it.

    Raises:
        IrEnvError: a degradation of that name is there.
    """
    name = degradation.name
    if name in RECIPE:
        raise IrEnvError(f"there is a degradation named {name!r} already: choose another name")
    if before is not None and before not in ORDER:
        raise UnknownNameError("degradation", before, ORDER)
    RECIPE[name], TASK_OF[name] = degradation, task
    ORDER.insert(len(ORDER) if before is None else ORDER.index(before), name)
    ALIASES.update(dict.fromkeys(map(str.lower, aliases), name))
    return degradation


def _draw(degradation: Degradation, rng: np.random.Generator, severity: float | None, explicit: Mapping[str, Any]) -> Parameters:
    """Drawn parameters with the explicit ones in their place; a kind that is asked for is drawn until it comes."""
    parameters = degradation.draw(rng, severity)
    drawn = [parameters]
    if "kind" in explicit:
        while parameters.get("kind") != explicit["kind"] and len(drawn) < DRAWS:
            drawn.append(parameters := degradation.draw(rng, severity))
        if parameters.get("kind") != explicit["kind"]:
            kinds = sorted({str(each["kind"]) for each in drawn if "kind" in each})
            raise IrEnvError(f"{degradation.name} has no kind {explicit['kind']!r}; it has {', '.join(kinds) or 'none'}")
    if unknown := set(explicit) - set(parameters):
        raise IrEnvError(f"{degradation.name} has no parameter {sorted(unknown)}; it has {sorted(parameters)}")
    return {**parameters, **explicit}


def _uniform(rng: np.random.Generator, low: float, high: float, severity: float | None) -> float:
    """U(low, high), or the point of the range that the severity names (``low`` is the mild end)."""
    return float(rng.uniform(min(low, high), max(low, high))) if severity is None else low + severity * (high - low)


def _integer(rng: np.random.Generator, low: int, high: int, severity: float | None) -> int:
    """An integer from low to high, both included (``low`` is the mild end)."""
    return int(rng.integers(min(low, high), max(low, high) + 1)) if severity is None else round(low + severity * (high - low))


def _choice(rng: np.random.Generator, options: Sequence, severity: float | None):
    """One of the options (the first is the mildest)."""
    return options[int(rng.integers(len(options)))] if severity is None else options[round(severity * (len(options) - 1))]


def _round(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# -- noise -------------------------------------------------------------------------------------------------------------------------


def _draw_noise(rng, severity):
    if rng.random() < 0.5:
        return {"kind": "gaussian", "sigma": _uniform(rng, 20, 50, severity)}
    return {"kind": "poisson", "scale": _uniform(rng, 1, 3, severity)}


def _noise(image, parameters, rng, scene):
    """Colour Gaussian noise of sigma grey levels, or Poisson noise with BasicSR's rule for the number of levels."""
    if parameters["kind"] == "gaussian":
        return _round(image + rng.normal(0.0, parameters["sigma"], image.shape))
    levels = 2.0 ** math.ceil(math.log2(max(len(np.unique(image)), 1)))
    clean = image / 255.0
    noisy = rng.poisson(clean * levels) / levels
    return _round((clean + (noisy - clean) * parameters["scale"]) * 255.0)


# -- blur --------------------------------------------------------------------------------------------------------------------------


def _draw_motion_blur(rng, severity):
    radius, sigma = _choice(rng, ((10, 3), (15, 5), (15, 8)), severity)
    return {"radius": radius, "sigma": sigma, "angle": float(rng.uniform(-90, 90))}


def _motion_blur(image, parameters, rng, scene):
    """The mean of shifted copies with edge replication, weighted by a one-sided Gaussian of width 2 * radius + 1."""
    width = 2 * parameters["radius"] + 1
    weights = np.exp(-0.5 * (np.arange(width) / parameters["sigma"]) ** 2)
    weights /= weights.sum()
    angle = math.radians(parameters["angle"])
    kernel = np.zeros((2 * width - 1, 2 * width - 1), np.float32)
    for step, weight in enumerate(weights):
        dy, dx = math.ceil(step * math.sin(angle) - 0.5), math.ceil(step * math.cos(angle) - 0.5)
        kernel[width - 1 + dy, width - 1 + dx] += weight
    return _round(cv2.filter2D(image.astype(np.float32), -1, kernel, borderType=cv2.BORDER_REPLICATE))


def _draw_defocus_blur(rng, severity):
    radius, alias = _choice(rng, ((3, 0.1), (4, 0.5), (6, 0.5)), severity)
    return {"radius": radius, "alias": alias}


def _defocus_blur(image, parameters, rng, scene):
    """A disk on a 17 x 17 grid, softened by a 3 x 3 Gaussian."""
    y, x = np.mgrid[-8:9, -8:9]
    disk = (x * x + y * y <= parameters["radius"] ** 2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (3, 3), parameters["alias"])
    return _round(cv2.filter2D(image.astype(np.float32), -1, kernel))


# -- weather -----------------------------------------------------------------------------------------------------------------------


def _draw_rain(rng, severity):
    return {
        "length": _integer(rng, 20, 39, severity),
        "angle": int(rng.integers(-30, 30)),
        "value": _integer(rng, 50, 99, severity),
        "width": 3,
    }


def _rain(image, parameters, rng, scene):
    """White streaks: sparse noise filtered with a rotated line, min-max normalised and added."""
    height, width = image.shape[:2]
    field_shape = max(height, RAIN_FIELD), max(width, RAIN_FIELD)
    drops = rng.uniform(0, 256, field_shape)
    drops[drops < 256 - 0.01 * parameters["value"]] = 0
    drops = cv2.filter2D(drops, -1, np.array([[0, 0.1, 0], [0.1, 8, 0.1], [0, 0.1, 0]]))
    length = parameters["length"]
    turn = cv2.getRotationMatrix2D((length / 2, length / 2), parameters["angle"] - 45, 1 - length / 100.0)
    streak = cv2.warpAffine(np.eye(length), turn, (length, length))
    streak = cv2.GaussianBlur(streak, (parameters["width"], parameters["width"]), 0)
    rain = cv2.filter2D(drops, -1, streak)
    # cut off to whole levels before it is added, as the recipe does
    rain = cv2.normalize(rain, None, 0, 255, cv2.NORM_MINMAX)[:height, :width].astype(np.uint8)
    return _round(image.astype(np.int16) + rain[..., None])


def _draw_haze(rng, severity):
    return {"airlight": _uniform(rng, 0.7, 1.0, severity), "beta": _uniform(rng, 0.6, 1.8, severity)}


def _haze(image, parameters, rng, scene):
    """Koschmieder's law: J t + 255 A (1 - t), t = exp(-beta d)."""
    height, width = image.shape[:2]
    box = scene.box or (0, 0, height, width)
    depth = scene.depth.depth(scene.photo, scene.shape or (box[0] + box[2], box[1] + box[3]), box, rng)
    if depth.shape != (height, width):
        depth = cv2.resize(depth, (width, height), interpolation=cv2.INTER_CUBIC)
    transmission = np.exp(-parameters["beta"] * depth)[..., None]
    return _round(image * transmission + 255.0 * parameters["airlight"] * (1.0 - transmission))


# -- light -------------------------------------------------------------------------------------------------------------------------


def _draw_low_light(rng, severity):
    kind = ("shift", "gamma", "range")[int(rng.integers(3))]
    if kind == "shift":
        return {"kind": kind, "shift": _integer(rng, 30, 49, severity)}
    if kind == "gamma":
        return {"kind": kind, "gamma": _uniform(rng, 0.7, 0.5, severity)}
    return {"kind": kind, "top": _integer(rng, 149, 100, severity)}


def _low_light(image, parameters, rng, scene):
    """On V of HSV: a shift, a gamma, or a linear map of its range onto 0..top."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    value = hsv[..., 2].astype(np.float32)
    if parameters["kind"] == "shift":
        value = value - parameters["shift"]
    elif parameters["kind"] == "gamma":
        value = (value / 255.0) ** (1.0 / parameters["gamma"]) * 255.0
    else:
        low, high = float(value.min()), float(value.max())
        value = (value - low) / max(high - low, 1.0) * parameters["top"]
    hsv[..., 2] = _round(value)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


# -- file --------------------------------------------------------------------------------------------------------------------------


def _draw_jpeg(rng, severity):
    return {"quality": _integer(rng, 29, 10, severity)}


def _jpeg(image, parameters, rng, scene):
    """OpenCV's encoder at quality 10 to 29."""
    _, code = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, parameters["quality"]])
    return cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def _draw_low_resolution(rng, severity):
    return {"scale": 0.25}


def _low_resolution(image, parameters, rng, scene):
    """MATLAB-style antialiased bicubic reduction, not enlarged again."""
    from ir_env.matlab_resize import imresize

    return _round(imresize(image / 255.0, parameters["scale"]) * 255.0)


RECIPE: dict[str, Degradation] = {
    degradation.name: degradation
    for degradation in (
        Degradation("noise", _draw_noise, _noise),
        Degradation("motion_blur", _draw_motion_blur, _motion_blur),
        Degradation("defocus_blur", _draw_defocus_blur, _defocus_blur),
        Degradation("rain", _draw_rain, _rain),
        Degradation("haze", _draw_haze, _haze),
        Degradation("jpeg", _draw_jpeg, _jpeg),
        Degradation("low_light", _draw_low_light, _low_light),
        Degradation("low_resolution", _draw_low_resolution, _low_resolution),
    )
}
"""Degradation name -> how it is drawn and applied."""
