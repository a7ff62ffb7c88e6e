import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ir_env.datasets import SynthesisedDataset
from tool_actors.classical.defocus_deblur import disk_kernel
from tool_actors.classical.dehaze import dark_channel_prior
from tool_actors.classical.motion_deblur import motion_angle, trail_kernel
from tool_actors.toolboxes import load_toolbox

TOOLBOX = load_toolbox("classical")


def psnr(image, reference):
    return -10 * np.log10(np.mean((np.clip(image, 0, 1) - reference) ** 2) + 1e-10)


@pytest.mark.parametrize("name", TOOLBOX.names)
@pytest.mark.parametrize("size", [(16, 16), (17, 64), (33, 16)])
def test_every_tool_keeps_shape_and_range(name, size):
    tool = TOOLBOX[name]
    images = torch.rand(2, 3, *size)
    before = images.clone()
    output = tool(images)
    assert output.shape == (2, 3, size[0] * tool.spec.scale, size[1] * tool.spec.scale)
    assert output.dtype == torch.float32 and torch.isfinite(output).all()
    assert output.min() >= -1e-5 and output.max() <= 1 + 1e-5
    assert torch.equal(images, before), "the input is not written to"
    assert torch.equal(tool(images), output), "the same input gives the same output"


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
@pytest.mark.parametrize("name", TOOLBOX.names)
def test_flat_images_stay_finite(name, value):
    assert torch.isfinite(TOOLBOX[name](torch.full((1, 3, 32, 32), value))).all()


def gain(tool_name, degradation, count=16):
    dataset = SynthesisedDataset(split="train", combos=[degradation], crop_size=96)
    rng = np.random.default_rng(5)
    gains = []
    for _ in range(count):
        pair = dataset.load(dataset.draw(rng))
        degraded, clean = pair.degraded / np.float32(255), pair.reference / np.float32(255)
        output = TOOLBOX[tool_name](torch.from_numpy(degraded).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
        gains.append(psnr(output, clean) - psnr(degraded, clean))
    return float(np.mean(gains))


@pytest.mark.parametrize(
    ("degradation", "tool", "decibel"),
    [
        ("noise", "tv.denoise", 4.0),
        ("noise", "nlm.strong", 4.0),
        ("motion_blur", "wiener.motion_short", 0.4),
        ("defocus_blur", "rl.disk3", 0.4),
        ("rain", "guided.derain", 2.5),
        ("haze", "dcp.strong", 3.0),
        ("jpeg", "shifted_jpeg.q30", 0.1),
        ("low_light", "gamma.brighten", 4.0),
    ],
)
def test_each_task_has_a_tool_that_helps_its_degradation(degradation, tool, decibel):
    assert gain(tool, degradation) >= decibel


def test_wrong_tools_harm():
    assert gain("gamma.brighten", "jpeg") < -2
    assert gain("dcp.strong", "noise") < -0.3


def test_golden_brighten():
    image = torch.full((1, 3, 16, 16), 64 / 255)
    assert TOOLBOX["shift.brighten"](image)[0, 0, 0, 0].item() == pytest.approx(104 / 255, abs=1e-6)
    assert TOOLBOX["gamma.brighten"](image)[0, 0, 0, 0].item() == pytest.approx((64 / 255) ** (1 / 1.5), abs=1e-6)
    assert TOOLBOX["stretch.brighten"](image).min().item() == pytest.approx(1.0, abs=1e-5)


def test_haze_is_as_bright_whichever_of_equal_pixels_come_first():
    """Which indices a partition returns of equal values depends on the processor; here, on the side from which it looks."""
    image = np.full((64, 64, 3), 0.6, np.float32)
    image[:, :, 0] += np.linspace(0, 0.4, 64, dtype=np.float32)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    one, other = (dark_channel_prior(each, strength=0.9, window=9) for each in (image, mirrored))
    assert np.abs(one - other[:, ::-1]).max() < 1e-4


@settings(max_examples=30, deadline=None)
@given(st.floats(1.0, 8.0), st.floats(-180, 180))
def test_kernels_sum_to_one(sigma, angle):
    for kernel in (trail_kernel(sigma, angle), disk_kernel(sigma)):
        assert kernel.sum() == pytest.approx(1.0, abs=1e-5)
        assert kernel.min() >= 0 and kernel.shape[0] % 2 == 1


@pytest.mark.parametrize("angle", [-60, -30, 0, 30, 60, 85])
def test_motion_angle_is_found_on_a_blurred_texture(angle):
    rng = np.random.default_rng(0)
    texture = rng.random((128, 128, 3)).astype(np.float32)
    blurred = cv2.filter2D(texture, -1, trail_kernel(5.0, angle))
    difference = abs((motion_angle(blurred) - angle + 90) % 180 - 90)
    assert difference < 10
