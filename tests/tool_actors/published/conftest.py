"""What all published networks are tested for, and how their gain on a degradation is measured."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ir_env.images import load_image
from tool_actors.learned import LearnedTool
from tool_actors.toolboxes import load_toolbox
from tool_actors.weight_files import load_into, weight_folders

PHOTOS = ("barbara", "lenna", "monarch", "zebra")


@pytest.fixture
def check_network(tmp_path):
    """Checks a network with random weights as a tool: shapes, range of sizes, gradients, its weights as a file, its fingerprint."""

    def check(make, parameters=None, scale=1, multiple=1):
        def tool_of(module):
            return LearnedTool("some.tool", "denoise", module, scale=scale, multiple=multiple)

        torch.manual_seed(0)
        network = make()
        assert parameters is None or sum(value.numel() for value in network.parameters()) == parameters
        tool = tool_of(network)
        images = torch.rand(2, 3, 17, 26, requires_grad=True)
        output = tool(images)
        assert output.shape == (2, 3, 17 * scale, 26 * scale)
        assert torch.allclose(torch.cat([tool(image[None]) for image in images]), output, atol=1e-5)
        output.mean().backward()
        assert torch.isfinite(images.grad).all() and all(image.abs().sum() > 0 for image in images.grad)
        assert torch.isfinite(tool(torch.zeros(1, 3, 8, 8))).all()
        save_file(network.state_dict(), tmp_path / "w.safetensors")
        loaded = tool_of(load_into(make(), tmp_path / "w.safetensors"))
        assert torch.equal(loaded(images), output)
        for again in (loaded, tool_of(copy.deepcopy(network)), tool_of(pickle.loads(pickle.dumps(network)))):
            assert again.spec.fingerprint == tool.spec.fingerprint
        with torch.no_grad():
            next(network.parameters()).add_(0.01)
        assert tool_of(network).spec.fingerprint != tool.spec.fingerprint

    return check


@pytest.fixture(scope="session")
def published():
    """The toolbox of the published networks; skips the test where their weights are not there."""
    if not any((folder / "published").is_dir() for folder in weight_folders()):
        pytest.skip("IR_ENV_ASSETS names no folder with the published weights")
    return load_toolbox("published")


@pytest.fixture(scope="session")
def crops():
    """The middle of four photographs, each uint8 (256, 256, 3)."""
    folder = next((folder for folder in weight_folders() if (folder / "images" / "set14").is_dir()), Path())
    if folder == Path():
        pytest.skip("IR_ENV_ASSETS names no folder with Set14")
    photos = [load_image(folder / "images" / "set14" / f"{name}.png") for name in PHOTOS]
    return [photo[(top := (len(photo) - 256) // 2) : top + 256, (left := (photo.shape[1] - 256) // 2) : left + 256] for photo in photos]


@pytest.fixture
def crop_of_128(photo):
    """Part of a clean photograph, uint8 (128, 128, 3)."""
    return np.ascontiguousarray(photo[60:188, 120:248])


@pytest.fixture
def gain():
    """Mean gain in PSNR, in dB, of a tool on degraded images, each uint8 (H, W, 3)."""

    def measure(tool, degraded, clean):
        with torch.inference_mode():
            outputs = [tool(torch.from_numpy(image / np.float32(255)).permute(2, 0, 1)[None]).clamp(0, 1) for image in degraded]
        restored = [output[0].permute(1, 2, 0).numpy() * 255 for output in outputs]
        before, after = (
            np.mean([10 * np.log10(255**2 / np.mean((image.astype(float) - target) ** 2)) for image, target in zip(images, clean)])
            for images in (degraded, restored)
        )
        return after - before

    return measure


@pytest.fixture
def means_on_a_smooth_image():
    """Channel means of a tool's output on a smooth image, to be compared with those of the authors' sequence of operations."""

    def measure(tool):
        y, x = torch.meshgrid(torch.linspace(0, 1, 40), torch.linspace(0, 1, 48), indexing="ij")
        with torch.inference_mode():
            output = tool(torch.stack([0.6 * x, 0.6 * y, 0.3 + 0.3 * torch.sin(6 * x * y)])[None])
        return output.mean((0, 2, 3)).tolist()

    return measure


@pytest.fixture
def night():
    """Darkens an image more than the recipe's low light does: about as much as what the networks were trained on."""
    return lambda image: np.rint((image / 255) ** 2.2 * 0.3 * 255).astype(np.uint8)
