import copy
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ir_env.degradations import degrade
from ir_env.images import load_image
from tool_actors.learned import LearnedTool
from tool_actors.published import dmphn, iat, sci
from tool_actors.published.dmphn import DMPHN
from tool_actors.published.iat import IAT
from tool_actors.published.sci import SCI
from tool_actors.weight_files import UnsupportedCheckpointError, load_into

ASSETS = os.environ.get("IR_ENV_ASSETS")
needs_assets = pytest.mark.skipif(not ASSETS, reason="IR_ENV_ASSETS names no folder with the published weights")
PHOTOS = ("barbara", "lenna", "monarch", "zebra")


@pytest.mark.parametrize(("make", "multiple", "parameters"), [(SCI, 1, 258), (IAT, 1, 91_154), (DMPHN, 8, 5_424_393)])
def test_random_networks_keep_shapes_and_pass_gradients(make, multiple, parameters, tmp_path):
    torch.manual_seed(0)
    network = make()
    assert sum(value.numel() for value in network.parameters()) == parameters
    tool = LearnedTool("some.tool", "brighten", network, multiple=multiple)
    images = torch.rand(2, 3, 17, 26, requires_grad=True)
    output = tool(images)
    assert output.shape == images.shape
    assert torch.allclose(torch.cat([tool(image[None]) for image in images]), output, atol=1e-5)
    output.mean().backward()
    assert torch.isfinite(images.grad).all() and all(image.abs().sum() > 0 for image in images.grad)
    assert torch.isfinite(tool(torch.zeros(1, 3, 8, 8))).all()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert torch.equal(
        LearnedTool("some.tool", "brighten", load_into(make(), tmp_path / "w.safetensors"), multiple=multiple)(images), output
    )
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert LearnedTool("some.tool", "brighten", again, multiple=multiple).spec.fingerprint == tool.spec.fingerprint


def test_sci_takes_what_it_needs_from_a_file_of_training_and_no_less(tmp_path):
    state = SCI().state_dict()
    twice = {name.replace(".conv.", ".blocks.0."): value.clone() for name, value in state.items()}
    save_file({**twice, **state, "calibrate.in_conv.0.bias": torch.zeros(16)}, tmp_path / "full.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in load_into(SCI(), tmp_path / "full.safetensors").state_dict().items())
    save_file({**state, "other": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file(twice, tmp_path / "less.safetensors")
    for name, words in (("more", "Unexpected key"), ("less", "Missing key")):
        with pytest.raises(UnsupportedCheckpointError, match=words):
            load_into(SCI(), tmp_path / f"{name}.safetensors")


def test_iat_flushes_subnormal_weights(tmp_path):
    state = IAT().state_dict()
    save_file({**state, "local_net.conv1.bias": torch.full((16,), 1e-41)}, tmp_path / "w.safetensors")
    loaded = load_into(IAT(), tmp_path / "w.safetensors").state_dict()
    assert not loaded.pop("local_net.conv1.bias").any()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.fixture(scope="module")
def tools():
    return {entry.name: entry.build() for room in (sci, iat, dmphn) for entry in room.tools()}


@pytest.fixture(scope="module")
def crops():
    """The middle of four photographs, each uint8 (256, 256, 3)."""
    photos = [load_image(Path(ASSETS) / "images" / "set14" / f"{name}.png") for name in PHOTOS]
    return [photo[(top := (len(photo) - 256) // 2) : top + 256, (left := (photo.shape[1] - 256) // 2) : left + 256] for photo in photos]


@needs_assets
@pytest.mark.parametrize(
    ("tool", "means"),
    [
        ("sci.easy", (0.4895, 0.5459, 0.7202)),
        ("sci.medium", (0.7324, 0.7516, 0.8959)),
        ("sci.difficult", (0.6434, 0.6359, 0.7674)),
        ("iat.lol_v1", (0.8363, 0.8237, 0.9153)),
        ("iat.exposure", (0.0880, 0.0622, 0.1533)),
        ("dmphn.gopro", (0.3062, 0.3020, 0.4199)),
    ],
)
def test_outputs_are_those_of_the_published_code(tool, means, tools):
    """Channel means that the authors' sequence of operations, written out one by one, gives on a smooth image."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
    with torch.inference_mode():
        output = tools[tool](torch.stack([0.6 * x, 0.6 * y, 0.3 + 0.3 * torch.sin(6 * x * y)])[None])
    assert output.mean((0, 2, 3)).tolist() == pytest.approx(means, abs=2e-4)


def line_blur(length):
    return lambda image: cv2.filter2D(image, -1, np.full((1, length), 1 / length))


def low_light(**parameters):
    return lambda image: degrade(np.ascontiguousarray(image), "low_light", 3, severity={"low_light": parameters}).image


def night(image):
    """Darker than the recipe's low light: about what the networks were trained on."""
    return np.rint((image / 255) ** 2.2 * 0.3 * 255).astype(np.uint8)


def overexposed(image):
    return np.rint((image / 255) ** 0.45 * 255).astype(np.uint8)


@needs_assets
@pytest.mark.parametrize(
    ("tool", "degradation", "gain"),
    [
        ("sci.easy", low_light(kind="range", top=100), 5),
        ("sci.medium", night, 8),
        ("sci.difficult", night, 6.5),
        ("iat.lol_v1", night, 10),
        ("iat.exposure", overexposed, 5),
        ("dmphn.gopro", line_blur(9), 1.5),
        ("dmphn.gopro", line_blur(15), 1),
    ],
)
def test_published_tools_gain_on_light_and_motion(tool, degradation, gain, tools, crops):
    degraded = [degradation(crop) for crop in crops]
    with torch.inference_mode():
        outputs = [tools[tool](torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None]).clamp(0, 1) for image in degraded]
    restored = [output[0].permute(1, 2, 0).numpy() * 255 for output in outputs]
    before, after = (
        np.mean([10 * np.log10(255**2 / np.mean((image.astype(float) - crop) ** 2)) for image, crop in zip(images, crops)])
        for images in (degraded, restored)
    )
    print(f"{tool}: {before:.2f} -> {after:.2f} dB")
    assert after - before > gain
