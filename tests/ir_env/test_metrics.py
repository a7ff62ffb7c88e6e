import sys

import numpy as np
import pytest

from ir_env.compat import import_basicsr
from ir_env.metrics import DEFAULT_METRICS, METRICS, MetricError, MetricSuite, MetricWeightsMissing, _create
from ir_env.metrics import _to_tensor as to_tensor
from tool_actors.errors import UnknownNameError


@pytest.fixture
def pair(photo):
    noisy = photo + np.random.default_rng(0).normal(0, 15, photo.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8), photo


def test_golden_psnr(crop):
    shifted = np.clip(crop.astype(int) + 4, 4, 255).astype(np.uint8)
    error = np.mean((shifted.astype(float) - crop) ** 2)
    assert MetricSuite(["psnr"]).score([shifted], [crop])[0, 0] == pytest.approx(10 * np.log10(255**2 / error), abs=1e-3)
    assert MetricSuite(["psnr"]).score([crop], [crop])[0, 0] == pytest.approx(80, abs=0.01)


def test_ssim_in_float32_equals_pyiqas(pair):
    noisy, clean = pair
    theirs = _create("ssim", "cpu")(to_tensor([noisy], "cpu"), to_tensor([clean], "cpu")).item()
    assert MetricSuite(["ssim"]).score([noisy], [clean])[0, 0] == pytest.approx(theirs, abs=1e-5)


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


def test_a_quarter_size_image_is_enlarged_as_matlab_does(crop):
    import_basicsr()
    from basicsr.utils.matlab_functions import imresize

    small = np.clip(np.rint(imresize(crop / 255.0, 0.25) * 255), 0, 255).astype(np.uint8)
    large = np.clip(imresize(small / 255.0, 4), 0, 1).astype(np.float32)
    suite = MetricSuite(["psnr"])
    assert suite.score([small], [crop])[0, 0] == pytest.approx(suite.score([large], [crop])[0, 0], abs=0.15)


def test_signs_follow_the_direction():
    assert MetricSuite(["psnr", "gmsd", "niqe"]).signs.tolist() == [1, -1, -1]


def test_what_cannot_be_scored_says_why(crop):
    with pytest.raises(MetricError, match="there is none"):
        MetricSuite(["psnr"]).score([crop], [None])
    with pytest.raises(MetricError, match="cannot be compared"):
        MetricSuite(["psnr"]).score([crop], [crop[:60]])
    with pytest.raises(MetricError, match="at least 192"):
        MetricSuite(["niqe"]).score([crop], [None])
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


def test_the_shim_makes_basicsr_importable():
    import_basicsr()
    assert sys.modules["basicsr"].__name__ == "basicsr"
    from basicsr.data.degradations import rgb_to_grayscale

    assert callable(rgb_to_grayscale)
