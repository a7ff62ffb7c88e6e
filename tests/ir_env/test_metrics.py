import pickle
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from ir_env.degradations import degrade
from ir_env.metrics import DEFAULT_METRICS, METRICS, Metric, MetricError, MetricSuite, MetricWeightsMissing, _resize
from ir_env.metrics import _to_tensor as to_tensor
from ir_env.observation import inform
from ir_env.process import RestorationProcess
from tool_actors.errors import UnknownNameError
from tool_actors.extras import MissingExtraError


@pytest.fixture
def pair(photo):
    noisy = photo + np.random.default_rng(0).normal(0, 15, photo.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), photo


def test_golden_psnr(crop):
    shifted = np.clip(crop.astype(int) + 4, 4, 255).astype(np.uint8)
    error = np.mean((shifted.astype(float) - crop) ** 2)
    assert MetricSuite(["psnr"]).score([shifted], [crop])[0, 0] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert MetricSuite(["psnr"]).score([crop], [crop])[0, 0] == pytest.approx(80, abs=0.01)


def independent(images, luma):
    """PSNR and SSIM on a luma, written from the standards (BT.601, 16 to 235; YIQ) with numpy and scikit-image."""
    weights, offset = {"ycbcr": ((65.481, 128.553, 24.966), 16), "yiq": ((0.299 * 255, 0.587 * 255, 0.114 * 255), 0)}[luma]
    restored, clean = (image.astype(np.float64) / 255 @ np.array(weights) + offset for image in images)
    psnr = 10 * np.log10(255**2 / np.mean((restored - clean) ** 2))
    settings = {"data_range": 255, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    _, places = structural_similarity(np.rint(restored), np.rint(clean), **settings)
    return psnr, np.maximum(places[5:-5, 5:-5], 0).mean()


def tid2013_i03():
    """The distorted image I03 of TID2013 and its reference, which pyiqa's wheel carries for its own calibration."""
    folder = Path(metadata.distribution("pyiqa").locate_file("ResultsCalibra"))
    return [cv2.imread(str(folder / part / "I03.bmp"))[..., ::-1].copy() for part in ("dist_dir", "ref_dir")]


def test_the_fields_numbers():
    distorted, clean = tid2013_i03()
    names = ["psnr", "psnry", "ssim_ycbcr", "ssim_yiq"]
    told = dict(zip(names, MetricSuite(names).score([distorted], [clean])[0].tolist(), strict=True))
    assert told == pytest.approx({"psnr": 21.114, "psnry": 23.592, "ssim_ycbcr": 0.7341, "ssim_yiq": 0.6997}, abs=6e-4)
    psnry, ssim = independent((distorted, clean), "ycbcr")
    assert told["psnry"] == pytest.approx(psnry, abs=1e-3) and told["ssim_ycbcr"] == pytest.approx(ssim, abs=1e-5)
    assert told["ssim_yiq"] == pytest.approx(independent((distorted, clean), "yiq")[1], abs=1e-5)


def test_psnry_is_basicsrs(pair, basicsr):
    from basicsr.metrics.psnr_ssim import calculate_psnr

    noisy, clean = pair
    theirs = calculate_psnr(noisy[..., ::-1], clean[..., ::-1], crop_border=0, test_y_channel=True)
    assert MetricSuite(["psnry"]).score([noisy], [clean])[0, 0] == pytest.approx(theirs, abs=1e-3)


def text_page():
    """Black letters on white, as a scan has them, and the same a little blurred: the case that float32 gets wrong."""
    page = np.full((160, 240, 3), 255, np.uint8)
    for line in range(20, 160, 24):
        cv2.putText(page, "flat white, sharp ink", (8, line), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1)
    return page, cv2.GaussianBlur(page, (3, 3), 0.6)


@pytest.mark.parametrize("name", ["ssim_ycbcr", "ssim_yiq"])
def test_ssim_equals_an_independent_one_where_float32_does_not(name, pair):
    page, blurred = text_page()
    flat = np.full((64, 64, 3), 173, np.uint8)
    almost = flat.copy()
    almost[::7, ::5] += 1
    for images in (pair, (blurred, page), (almost, flat), (flat, almost)):
        expected = independent(images, name.removeprefix("ssim_"))[1]
        assert MetricSuite([name]).score(images[:1], images[1:])[0, 0] == pytest.approx(expected, abs=1e-5)
    for same in (flat, page, np.zeros_like(flat)):
        assert MetricSuite([name]).score([same], [same])[0, 0] == 1.0


def test_ssim_without_a_custom_is_refused_with_both_names():
    with pytest.raises(MetricError, match=r"ssim_ycbcr .* ssim_yiq"):
        MetricSuite(["ssim"])


def smooth(height, width):
    return np.repeat(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], height, axis=0).repeat(3, axis=2)


def starry():
    sky = np.zeros((256, 256, 3), np.uint8)
    sky[::64, ::64] = 255
    return sky


@pytest.mark.parametrize("shape", [(192, 192), (300, 389)])
@pytest.mark.parametrize("combo", ["noise", "motion_blur", "haze+jpeg"])
def test_niqe_is_basicsrs(photo, shape, combo, basicsr):
    from basicsr.metrics.niqe import calculate_niqe

    image = degrade(photo[: shape[0], : shape[1]], combo, 3).image
    # a shape of the table's next entry, .001 apart, is as near now and then
    assert MetricSuite(["niqe"]).score([image], [None])[0, 0] == pytest.approx(calculate_niqe(image[..., ::-1], crop_border=0), rel=5e-4)


@pytest.mark.parametrize("shape", [(64, 64), (101, 145), (300, 389)])
@pytest.mark.parametrize("combo", ["noise", "low_light", "haze+jpeg", "low_resolution"])
def test_piqe_is_pyiqas(photo, shape, combo):
    from pyiqa.archs.piqe_arch import piqe

    image = degrade(photo[: shape[0] * 4, : shape[1] * 4] if combo == "low_resolution" else photo[: shape[0], : shape[1]], combo, 3).image
    theirs = piqe(to_tensor([image], "cpu"))[0].item()
    assert MetricSuite(["piqe"]).score([image], [None])[0, 0] == pytest.approx(theirs, abs=1e-3)


def test_what_needs_pyiqa_names_the_extra(crop, monkeypatch):
    monkeypatch.setattr("tool_actors.extras.find_spec", lambda name: None)
    assert np.isfinite(MetricSuite(DEFAULT_METRICS).score([crop], [crop])).all()
    with pytest.raises(MissingExtraError, match=r"pip install 'ir-env\[metrics\]'"):
        MetricSuite(["gmsd"]).score([crop], [crop])


def test_what_has_no_value_is_nan_then_its_worst_and_counted():
    odd = [np.zeros((200, 200, 3), np.uint8), np.full((200, 200, 3), 90, np.uint8), smooth(200, 300), starry()]
    suite = MetricSuite(["niqe", "piqe", "psnr"])
    raw = suite.score(odd, odd)
    assert np.isnan(raw[0, :2]).all() and np.isfinite(raw[:, 2]).all()
    told = suite.defined(raw)
    assert np.isfinite(told).all() and told[0, :2].tolist() == [METRICS["niqe"].worst, METRICS["piqe"].worst]
    assert suite.undefined == Counter({name: int(n) for name, n in zip(suite.names, np.isnan(raw).sum(0), strict=True) if n})
    assert f"niqe had no value on {suite.undefined['niqe']} images" in suite.describe()
    assert suite.defined(np.zeros((2, 3), np.float32)) == pytest.approx(0) and suite.undefined["psnr"] == 0


def test_no_black_image_brings_a_reward_that_is_not_a_number():
    process = RestorationProcess(toolbox=["gamma.brighten"], metrics=["psnr", "piqe"], max_steps=2)
    black = np.zeros((64, 64, 3), np.uint8)
    episode = process.start_image(black, black)
    process.step([episode], [0])
    assert np.isfinite(episode.total_reward) and np.isfinite(episode.scores).all()
    assert process.suite.undefined["piqe"] >= 1 and inform(episode, process.suite.names)["undefined"] == 1


@pytest.mark.parametrize("scale", [2, 3, 4, 8, 1 / 2])
@pytest.mark.parametrize("shape", [(96, 144), (95, 143)])
def test_an_image_of_another_scale_is_brought_to_its_references_size_before_every_metric(photo, scale, shape):
    clean = photo[: shape[0], : shape[1]]
    size = tuple(-(-side // scale) if scale > 1 else round(side / scale) for side in reversed(shape))
    small = cv2.resize(clean, tuple(map(int, size)), interpolation=cv2.INTER_AREA)
    suite = MetricSuite(["psnr", "piqe"])
    told = suite.score([small], [clean])[0]
    large = _resize(to_tensor([small], "cpu"), clean.shape)[0].permute(1, 2, 0).numpy()
    assert told == pytest.approx(suite.score([large], [clean])[0], abs=1e-4)


def test_leaving_super_resolution_out_is_not_rewarded(photo):
    """A sharp small image scores well by itself; beside its reference, it is what a viewer would see of it."""
    clean = photo[:256, :256]
    small = cv2.resize(clean, (64, 64), interpolation=cv2.INTER_AREA)
    niqe, large = MetricSuite(["niqe"]), cv2.resize(small, (256, 256), interpolation=cv2.INTER_CUBIC)
    assert niqe.score([small], [clean])[0, 0] == pytest.approx(niqe.score([large], [clean])[0, 0], rel=0.1)
    assert niqe.score([small], [clean])[0, 0] > niqe.score([clean], [clean])[0, 0] + 2


def test_small_images_are_mirrored_for_no_reference_metrics(crop):
    mirrored = np.pad(crop, ((0, 128), (0, 128), (0, 0)), mode="symmetric")
    suite = MetricSuite(["niqe"])
    assert suite.score([crop], [None]) == pytest.approx(suite.score([mirrored], [None]), rel=1e-5)


def redness(images, references):
    return images[:, 0].mean((1, 2)) - references[:, 0].mean((1, 2))


REDNESS = Metric("redness", True, True, "more red than the reference", offline=True, function=redness)


def test_a_metric_of_ones_own(crop, monkeypatch):
    redder = np.clip(crop + np.array([20, 0, 0]), 0, 255).astype(np.uint8)
    suite = MetricSuite(["psnr", REDNESS])
    assert suite.names == ("psnr", "redness") and suite.score([redder], [crop])[0, 1] == pytest.approx(20 / 255, abs=0.02)
    again = pickle.loads(pickle.dumps(suite))
    assert again.score([redder], [crop]) == pytest.approx(suite.score([redder], [crop]))
    monkeypatch.setitem(sys.modules, "a_users_module", SimpleNamespace(REDNESS=REDNESS, OTHER=3))
    assert MetricSuite(["a_users_module:REDNESS"]).names == ("redness",)
    for place in ("a_users_module:NOPE", "a_users_module:OTHER", "no_such_module:X"):
        with pytest.raises(MetricError, match=place):
            MetricSuite([place])
    process = RestorationProcess(toolbox=["gamma.brighten"], metrics=["psnr", REDNESS], reward_weights={"redness": 1.0}, max_steps=2)
    episode = process.start_image(crop, crop)
    process.step([episode], [0])
    assert episode.total_reward == pytest.approx(float(episode.scores[1][1] - episode.scores[0][1]), abs=1e-6)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.offline])
def test_offline_metrics_rank_a_clean_image_above_a_noisy_one(name, pair):
    noisy, clean = pair
    better, worse = MetricSuite([name]).score([clean, noisy], [clean, clean])[:, 0]
    assert (better > worse) == METRICS[name].higher_is_better


def test_batches_equal_single_images_and_keep_order(photo):
    rng = np.random.default_rng(0)
    images = [photo[y : y + size, 40 : 40 + size] for y, size in ((0, 64), (30, 96), (60, 64))]
    noisy = [np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8) for image in images]
    together = MetricSuite(DEFAULT_METRICS).score(noisy, images)
    for index in range(3):
        alone = MetricSuite(DEFAULT_METRICS).score(noisy[index : index + 1], images[index : index + 1])[0]
        assert together[index] == pytest.approx(alone, abs=2e-4)


def test_a_quarter_size_image_is_enlarged_as_matlab_does(crop, basicsr):
    from basicsr.utils.matlab_functions import imresize

    small = np.clip(np.rint(imresize(crop / 255.0, 0.25) * 255), 0, 255).astype(np.uint8)
    large = np.clip(imresize(small / 255.0, 4), 0, 1).astype(np.float32)
    suite = MetricSuite(["psnr"])
    assert suite.score([small], [crop])[0, 0] == pytest.approx(suite.score([large], [crop])[0, 0], abs=0.15)


def test_vif_of_an_image_is_its_own_in_any_batch(photo):
    clean = photo[:96, :96]
    grey, spot = np.full_like(clean, 128), clean.copy()
    spot[5, 5] = 0
    images = [grey, spot, np.zeros_like(clean), np.random.default_rng(0).integers(0, 256, clean.shape, np.uint8)]
    together = MetricSuite(["vif"]).score(images, [clean] * 4)
    alone = np.concatenate([MetricSuite(["vif"]).score([image], [clean]) for image in images])
    assert np.array_equal(together, alone, equal_nan=True) and together[1, 0] > 0.99


@pytest.mark.parametrize(("size", "of"), [((16, 940), (16, 1020)), ((64, 66), (64, 64)), ((60, 96), (64, 96)), ((500, 8), (1000, 20))])
def test_other_proportions_are_refused(size, of):
    image, reference = (np.zeros((*sides, 3), np.uint8) for sides in (size, of))
    if size == (64, 66):
        image, reference = reference, image
    with pytest.raises(MetricError, match="proportions"):
        MetricSuite(["psnr"]).score([image], [reference])


def test_references_of_two_kinds_are_each_what_they_are(crop):
    clean = crop.astype(np.float32) / 255
    assert MetricSuite(["psnr"]).score([crop, crop], [crop, clean])[:, 0] == pytest.approx(80, abs=0.1)


def test_signs_follow_the_direction():
    assert MetricSuite(["psnr", "gmsd", "niqe"]).signs.tolist() == [1, -1, -1]


def test_what_cannot_be_scored_says_why(crop):
    with pytest.raises(MetricError, match="there is none"):
        MetricSuite(["psnr"]).score([crop], [None])
    with pytest.raises(MetricError, match="cannot be compared"):
        MetricSuite(["psnr"]).score([crop], [crop[:60]])
    with pytest.raises(MetricError, match="at least 176"):
        MetricSuite(["ms_ssim"]).score([crop], [crop])
    with pytest.raises(UnknownNameError, match="did you mean 'lpips'"):
        MetricSuite(["lpisp"])
    with pytest.raises(MetricError, match="twice"):
        MetricSuite(["psnr", "psnr"])


def test_absent_weights_are_named_with_the_place_where_they_are_looked_for(crop, monkeypatch, tmp_path):
    import torch

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(url, dst, *arguments, **named):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(MetricWeightsMissing) as caught:
        MetricSuite(["lpips"]).score([crop], [crop])
    message = str(caught.value)
    assert (
        "'lpips'" in message and str(tmp_path) in message and "alexnet" in message and "no route to host" in message and "psnry" in message
    )
