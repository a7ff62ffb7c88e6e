from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_env.datasets import Sample, SynthesisedDataset
from ir_env.degradations import (
    GROUPS,
    ORDER,
    RECIPE,
    Degradation,
    DepthFolder,
    SyntheticDepth,
    add_degradation,
    degrade,
    parse_combo,
    parse_combos,
    seed_for,
)
from ir_env.degradations.combos import ALIASES
from ir_env.degradations.recipe import Scene
from ir_env.matlab_resize import imresize as own_imresize
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import DEGRADATIONS, TASK_OF
from tool_actors.toolbox import ToolSpec

SEEDS = 2000
GOLDEN_SEED = 21996628174381400
RANGES = {
    ("noise", "sigma"): (20, 50),
    ("noise", "scale"): (1, 3),
    ("motion_blur", "angle"): (-90, 90),
    ("rain", "length"): (20, 39),
    ("rain", "angle"): (-30, 29),
    ("rain", "value"): (50, 99),
    ("haze", "airlight"): (0.7, 1.0),
    ("haze", "beta"): (0.6, 1.8),
    ("low_light", "shift"): (30, 49),
    ("low_light", "gamma"): (0.5, 0.7),
    ("low_light", "top"): (100, 149),
    ("jpeg", "quality"): (10, 29),
}


def drawn(degradation, severity=None):
    return [RECIPE[degradation].draw(np.random.default_rng(seed_for("photo", (degradation,), seed)), severity) for seed in range(SEEDS)]


@pytest.mark.parametrize(("degradation", "parameter"), RANGES)
def test_parameters_stay_in_the_recipes_range_and_fill_it(degradation, parameter):
    low, high = RANGES[degradation, parameter]
    values = np.array([parameters[parameter] for parameters in drawn(degradation) if parameter in parameters])
    assert low <= values.min() and values.max() <= high
    histogram, _ = np.histogram(values, bins=5, range=(low, high))
    assert histogram.min() > 0.6 * len(values) / 5, "every fifth of the range is drawn"
    if isinstance(low, int) and values.dtype.kind == "i":
        assert set(values) == set(range(low, high + 1)), "every integer is drawn, the ends too"


@pytest.mark.parametrize(
    ("degradation", "read", "expected"),
    [
        ("noise", lambda p: p["kind"], {"gaussian": 1 / 2, "poisson": 1 / 2}),
        ("low_light", lambda p: p["kind"], {"shift": 1 / 3, "gamma": 1 / 3, "range": 1 / 3}),
        ("motion_blur", lambda p: (p["radius"], p["sigma"]), {(10, 3): 1 / 3, (15, 5): 1 / 3, (15, 8): 1 / 3}),
        ("defocus_blur", lambda p: (p["radius"], p["alias"]), {(3, 0.1): 1 / 3, (4, 0.5): 1 / 3, (6, 0.5): 1 / 3}),
    ],
)
def test_kinds_are_equally_likely(degradation, read, expected):
    counts = Counter(map(read, drawn(degradation)))
    assert set(counts) == set(expected)
    assert all(abs(counts[kind] / SEEDS - share) < 0.05 for kind, share in expected.items())


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_result_is_uint8_deterministic_and_degraded(degradation, crop):
    first, again = degrade(crop, degradation, 7), degrade(crop, degradation, 7)
    assert np.array_equal(first.image, again.image) and first.parameters == again.parameters
    assert first.image.dtype == np.uint8
    assert first.image.shape == ((16, 16, 3) if degradation == "low_resolution" else crop.shape)
    assert not np.array_equal(first.image, crop)
    assert degradation == "low_resolution" or not np.array_equal(first.image, degrade(crop, degradation, 8).image)


@pytest.mark.parametrize("degradation", [name for name in DEGRADATIONS if name != "low_resolution"])
def test_severity_goes_from_mild_to_strong(degradation, crop):
    def error(severity):
        return np.mean([(degrade(crop, degradation, seed, severity=severity).image.astype(float) - crop) ** 2 for seed in range(30)])

    assert error(0.0) < error(1.0)


def test_severity_by_name_and_explicit_parameters(crop):
    result = degrade(crop, "noise+jpeg", 1, severity={"noise": {"kind": "gaussian", "sigma": 5}, "jpeg": 1.0})
    assert dict(result.parameters)["noise"]["sigma"] == 5 and dict(result.parameters)["jpeg"]["quality"] == 10
    with pytest.raises(IrEnvError, match="severity of the degradations"):
        degrade(crop, "noise", 1, severity=1.5)
    with pytest.raises(IrEnvError, match="no parameter"):
        degrade(crop, "jpeg", 1, severity={"jpeg": {"qualty": 3}})


@pytest.mark.parametrize(
    "severity", [{"nose": 0.5}, {"noise": {"sgima": 5}}, {"noise": {"kind": "gaussian", "sgima": 5}}, {"noise": {"kind": "gausian"}}]
)
def test_a_severity_that_names_nothing_is_an_error(severity, crop):
    with pytest.raises(IrEnvError, match=r"nose|sgima|gausian"):
        degrade(crop, "noise", 1, severity=severity)


def test_a_dataset_refuses_a_wrong_severity_when_it_is_made():
    with pytest.raises(IrEnvError, match="did you mean 'noise'"):
        SynthesisedDataset(severity={"noize": 0.5})
    assert SynthesisedDataset(severity={"jpeg": 1.0}, combos="noise").severity, "what a combination lacks may be named"


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("seed", range(6))
def test_a_kind_without_its_parameters_draws_them(kind, seed, crop):
    [(_, parameters)] = degrade(crop, "noise", seed, severity={"noise": {"kind": kind}}).parameters
    assert set(parameters) == {"kind", "sigma" if kind == "gaussian" else "scale"} and parameters["kind"] == kind


@pytest.mark.parametrize("angle", [-30, 0, 29])
@pytest.mark.parametrize(("length", "value"), [(20, 50), (33, 99)])
def test_rain_is_agenticirs(angle, length, value):
    """Its steps in double precision, the layer cut off to whole levels before it is added; to the level."""
    clean = np.random.default_rng(1).integers(0, 256, (300, 280, 3), np.uint8)
    noise = np.random.default_rng(9).uniform(0, 256, (300, 280))
    noise[noise < 256 - value * 0.01] = 0
    noise = cv2.filter2D(noise, -1, np.array([[0, 0.1, 0], [0.1, 8, 0.1], [0, 0.1, 0]]))
    turn = cv2.getRotationMatrix2D((length / 2, length / 2), angle - 45, 1 - length / 100.0)
    kernel = cv2.GaussianBlur(cv2.warpAffine(np.diag(np.ones(length)), turn, (length, length)), (3, 3), 0)
    layer = cv2.filter2D(noise, -1, kernel)
    layer = (255 * (layer - layer.min()) / (layer.max() - layer.min()) + 1e-9).astype(np.uint8)
    expected = np.clip(clean.astype(int) + layer[..., None], 0, 255)
    parameters = {"length": length, "angle": angle, "value": value, "width": 3}
    rained = RECIPE["rain"].apply(clean, parameters, np.random.default_rng(9), Scene())
    assert np.abs(rained.astype(int) - expected).max() <= 1 and (rained != expected).mean() < 1e-3


def darken_edges(image, parameters, rng, scene):
    down, right = (np.abs(np.linspace(-1, 1, side)) for side in image.shape[:2])
    fall = 1 - parameters["depth"] * np.maximum(down[:, None], right)[..., None] ** 2
    return np.rint(image * fall).astype(np.uint8)


def test_a_degradation_of_ones_own(crop):
    vignette = Degradation("vignette", lambda rng, severity: {"depth": 0.8 if severity is None else severity}, darken_edges)
    add_degradation(vignette, "brighten_edges", before="noise", aliases=("vignetting",))
    try:
        assert parse_combo("vignetting+noise") == ("vignette", "noise")
        assert ORDER.index("vignette") + 1 == ORDER.index("noise")
        assert any("vignette" in combo for combo in parse_combos("random:0:1").entries)
        pair = SynthesisedDataset(combos="vignette", severity={"vignette": 0.5}).load(Sample("chelsea", ("vignette",), (0, 0, 64, 64)))
        assert pair.degraded[0, 0].sum() < pair.reference[0, 0].sum() and np.array_equal(pair.degraded[32, 32], pair.reference[32, 32])
        assert ToolSpec("mine.edges", "brighten_edges", fingerprint="1").task == "brighten_edges"
        with pytest.raises(IrEnvError, match="already"):
            add_degradation(vignette, "brighten_edges")
    finally:
        for table in (RECIPE, TASK_OF):
            table.pop("vignette", None)
        ORDER.remove("vignette")
        ALIASES.pop("vignetting", None)


def test_gaussian_noise_has_the_stated_sigma():
    grey = np.full((256, 256, 3), 128, np.uint8)
    noisy = degrade(grey, "noise", 3, severity={"noise": {"kind": "gaussian", "sigma": 30.0}}).image
    assert (noisy.astype(float) - 128).std() == pytest.approx(30.0, rel=0.02)


def test_poisson_noise_follows_basicsr(photo, basicsr):
    import torch
    from basicsr.data.degradations import add_poisson_noise_pt

    torch.manual_seed(0)
    clean = torch.from_numpy(photo.transpose(2, 0, 1)[None] / np.float32(255))
    theirs = (add_poisson_noise_pt(clean, scale=2.0, clip=True) - clean).std().item() * 255
    ours = degrade(photo, "noise", 5, severity={"noise": {"kind": "poisson", "scale": 2.0}}).image.astype(float) - photo
    assert ours.std() == pytest.approx(theirs, rel=0.03)


def test_low_resolution_is_basicsrs_matlab_resize(photo, basicsr):
    from basicsr.utils.matlab_functions import imresize

    expected = np.clip(np.rint(imresize(photo / 255.0, 0.25) * 255), 0, 255).astype(np.uint8)
    assert np.array_equal(degrade(photo, "low_resolution", 0).image, expected)
    for shape, scale in (((37, 50), 0.5), ((64, 65), 4), ((31, 90), 1 / 3)):
        part = photo[: shape[0], : shape[1]] / 255.0
        assert np.array_equal(own_imresize(part, scale), imresize(part, scale))


def test_motion_blur_equals_shifted_sums(crop):
    """imagecorruptions' way: sum of shifted copies with replicated edges."""
    parameters = {"radius": 10, "sigma": 3, "angle": 37.0}
    weights = np.exp(-0.5 * (np.arange(21) / 3.0) ** 2)
    weights /= weights.sum()
    padded = np.pad(crop.astype(float), ((32, 32), (32, 32), (0, 0)), mode="edge")
    total = np.zeros(crop.shape)
    for step, weight in enumerate(weights):
        dy, dx = (-int(np.ceil(step * f(np.radians(37.0)) - 0.5)) for f in (np.sin, np.cos))
        total += weight * padded[32 - dy : 96 - dy, 32 - dx : 96 - dx]
    blurred = degrade(crop, "motion_blur", 0, severity={"motion_blur": parameters}).image
    assert np.abs(blurred.astype(float) - np.rint(total)).max() <= 1


def test_golden_low_light():
    grey = np.full((16, 16, 3), 100, np.uint8)
    grey[0, 0] = 0
    shift = degrade(grey, "low_light", 0, severity={"low_light": {"kind": "shift", "shift": 30}}).image
    gamma = degrade(grey, "low_light", 0, severity={"low_light": {"kind": "gamma", "gamma": 0.5}}).image
    spread = degrade(grey, "low_light", 0, severity={"low_light": {"kind": "range", "top": 120}}).image
    assert shift[5, 5, 0] == 70 and shift[0, 0, 0] == 0
    assert gamma[5, 5, 0] == round(255 * (100 / 255) ** 2)
    assert spread[5, 5, 0] == 120


def test_haze_follows_the_depth(tmp_path, photo):
    depth = np.tile(np.linspace(0, 4, photo.shape[1], dtype=np.float32), (photo.shape[0] // 4, 1))
    np.save(tmp_path / "cat.npy", depth)
    scene = Scene("cat.png", depth=DepthFolder(tmp_path))
    hazed = degrade(photo, "haze", 1, severity={"haze": {"airlight": 1.0, "beta": 1.0}}, scene=scene).image.astype(float)
    expected = photo[:, -1] * np.exp(-1) + 255 * (1 - np.exp(-1))
    assert np.abs(hazed[:, -1] - expected).max() < 2
    assert np.abs(hazed[:, 0] - photo[:, 0]).max() < 3
    with pytest.raises(IrEnvError, match=r"no depth map for photograph 'dog'.*dog\.npy"):
        degrade(photo, "haze", 1, scene=Scene("dog.png", depth=DepthFolder(tmp_path)))
    with pytest.raises(IrEnvError, match="no such folder"):
        DepthFolder(tmp_path / "absent")


def test_mio100_depth_layout(tmp_path, photo):
    from scipy.io import savemat

    (tmp_path / "001").mkdir()
    savemat(tmp_path / "001" / "predict_depth.mat", {"data_obj": np.full((20, 30), 3.0)})
    depth = DepthFolder(tmp_path).depth("001.png", photo.shape[:2], (0, 0, 8, 8), np.random.default_rng(0))
    assert depth.shape == (8, 8) and depth == pytest.approx(1.0)


def test_synthetic_depth_of_a_crop_is_part_of_the_whole():
    whole = SyntheticDepth().depth("x", (100, 120), (0, 0, 100, 120), np.random.default_rng(4))
    part = SyntheticDepth().depth("x", (100, 120), (10, 20, 30, 40), np.random.default_rng(4))
    assert np.array_equal(part, whole[10:40, 20:60])
    assert whole.min() > 0 and whole.max() == pytest.approx(1.0)


def test_the_seed_of_an_image_and_combination_is_the_same_everywhere():
    assert seed_for("chelsea", ("rain", "haze"), 0) == GOLDEN_SEED
    assert len({seed_for(photo, combo, seed) for photo in "ab" for combo in (("rain",), ("haze",)) for seed in (0, 1)}) == 8


def test_order_matters(crop):
    assert not np.array_equal(degrade(crop, "noise+jpeg", 0).image, degrade(crop, "jpeg+noise", 0).image)


def test_groups_are_the_published_ones():
    assert [len(GROUPS[group]) for group in "ABC"] == [8, 4, 4]
    assert ("haze", "motion_blur", "low_resolution") in GROUPS["C"]
    assert parse_combo("dark+defocus blur+jpeg compression artifact") == ("low_light", "defocus_blur", "jpeg")
    assert len(parse_combos("A,B,C").entries) == 16
    assert parse_combos("single,rain+haze").entries[-1] == ("rain", "haze")
    likelier = parse_combos("A,C:2,rain+noise:0.5")
    assert likelier.weights == pytest.approx([1 / 16.5] * 8 + [2 / 16.5] * 4 + [0.5 / 16.5])


def test_random_combinations_keep_the_ratio():
    combos = parse_combos("random:1:3:5")
    assert len(combos.entries) == 8 + 28 + 56 and sum(combos.weights) == pytest.approx(1)
    rng = np.random.default_rng(0)
    sizes = Counter(len(combos.draw(rng)) for _ in range(9000))
    assert [sizes[n] / 1000 for n in (1, 2, 3)] == pytest.approx([1, 3, 5], rel=0.1)
    assert all(list(combo) == sorted(combo, key=ORDER.index) for combo in combos.entries)


@pytest.mark.parametrize("text", ["rian+haze", "D", "rain+rain", "", "random:x", "random:0:0", "rain++haze", "A:0", "A:x", "rain+haze:"])
def test_bad_combinations_are_refused(text):
    with pytest.raises(IrEnvError):
        parse_combos(text)
    if text == "rian+haze":
        with pytest.raises(UnknownNameError, match="did you mean 'rain'"):
            parse_combos(text)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**40), st.permutations(DEGRADATIONS), st.integers(1, 3), st.sampled_from([(32, 32), (48, 64), (96, 40)]))
def test_any_combination_on_any_size(seed, order, length, size):
    image = cv2.resize(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8), size[::-1])
    result = degrade(image, order[:length], seed)
    factor = 4 if "low_resolution" in order[:length] else 1
    assert result.image.shape == (size[0] // factor, size[1] // factor, 3)
    assert [name for name, _ in result.parameters] == list(order[:length])
