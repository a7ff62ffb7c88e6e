import hashlib
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tool_actors.published.imdn import IMDN
from tool_actors.published.prenet import PReNet
from tool_actors.published.xrestormer import XRestormer, from_state, is_xrestormer
from tool_actors.weight_files import UnsupportedCheckpointError

GOLDEN = json.loads(Path(__file__).with_name("xrestormer_golden.json").read_text())
SMALL = [network["arguments"] for network in GOLDEN["small"]]


def count(size):
    return torch.arange(size, dtype=torch.float64)


def golden_images():
    return (torch.sin(0.11 * count(3 * 64 * 64)) * 0.5 + 0.5).reshape(1, 3, 64, 64)


def golden_weights(network):
    """Deterministic weights, with which the published network adds little to the first convolution."""
    return {
        name: (torch.sin(0.37 * count(value.numel()) + len(name)) * 0.05).reshape(value.shape).float()
        for name, value in network.state_dict().items()
    }


def strong_weights(network):
    """Deterministic weights that keep the features' size, so that a mistake anywhere changes the output."""
    state = {}
    for name, value in network.state_dict().items():
        numbers = torch.sin(0.37 * count(value.numel()) ** 2 + len(name)).reshape(value.shape)
        if value.ndim == 4:
            state[name] = numbers * 1.5 / value[0].numel() ** 0.5
        elif name.endswith("bias") or "rel_" in name:
            state[name] = numbers * 0.5
        else:
            state[name] = 1 + numbers * 0.5
    return state


def small(arguments=SMALL[0], **others):
    network = XRestormer(**arguments, **others)
    network.load_state_dict(strong_weights(network))
    return network.eval()


def listing(state):
    return sorted(f"{name} {list(value.shape)}" for name, value in state.items())


@pytest.mark.parametrize(("variant", "scale"), GOLDEN["released"].items())
def test_released_variants_have_the_published_names_and_shapes_and_are_recognised(variant, scale):
    network = XRestormer(**GOLDEN["arguments"], scale=scale)
    state = network.state_dict()
    assert sum(value.numel() for value in network.parameters()) == GOLDEN["parameters"]
    assert hashlib.sha256("\n".join(listing(state)).encode()).hexdigest() == GOLDEN["names_and_shapes"]
    assert is_xrestormer(state)
    again = from_state(state, scale=scale)
    assert again.scale == scale and all(torch.equal(value, state[name]) for name, value in again.state_dict().items())


# The four released networks of scale 1 differ in their weights only.
@pytest.mark.parametrize("scale", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_released_networks_reproduce_the_published_outputs(scale):
    expected = GOLDEN["outputs"][str(scale)]
    network = from_state(golden_weights(XRestormer(**GOLDEN["arguments"])), scale=scale)
    with torch.inference_mode():
        output = network(golden_images().float())
    assert list(output.shape) == expected["shape"]
    assert output.mean().item() == pytest.approx(expected["mean"], abs=1e-6)
    assert output.std().item() == pytest.approx(expected["std"], abs=1e-6)
    assert output.flatten()[:8].tolist() == pytest.approx(expected["first"], abs=1e-6)


@pytest.mark.parametrize("expected", GOLDEN["small"])
def test_small_networks_with_strong_weights_reproduce_the_published_code(expected):
    network = XRestormer(**expected["arguments"]).double()
    network.load_state_dict(strong_weights(network))
    with torch.inference_mode():
        output = network(golden_images())
    assert output.mean().item() == pytest.approx(expected["mean"], abs=1e-8)
    assert output.std().item() == pytest.approx(expected["std"], abs=1e-8)
    assert output[0, :, ::11, ::11].flatten().tolist() == pytest.approx(expected["every_eleventh"], abs=1e-8)


@pytest.mark.parametrize("arguments", SMALL)
@pytest.mark.parametrize("scale", [1, 4])
def test_arguments_are_inferred_from_names_and_shapes(arguments, scale):
    network = small(arguments, scale=scale)
    again = from_state(network.state_dict(), scale=scale)
    images = torch.rand(1, 3, 16, 64 // scale)
    with torch.inference_mode():
        assert listing(again.state_dict()) == listing(network.state_dict())
        assert torch.equal(again(images), network(images))


@pytest.mark.parametrize("scale", [1, 4])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 65), (17, 5), (33, 16)])
def test_any_size_goes_in_and_the_same_size_times_the_scale_comes_out(height, width, scale):
    with torch.inference_mode():
        output = small(scale=scale)(torch.rand(1, 3, height, width))
    assert output.shape == (1, 3, scale * height, scale * width) and output.isfinite().all()


def test_images_are_extended_by_reflection_and_enlarged_bilinearly():
    network, enlarging = small(), small(scale=4)
    images = torch.rand(1, 3, 40, 50)
    with torch.inference_mode():
        padded = F.pad(images, (0, 14, 0, 24), mode="reflect")
        assert torch.equal(network(images), network(padded)[..., :40, :50])
        enlarged = F.interpolate(images[..., :16, :32], scale_factor=4, mode="bilinear")
        assert torch.equal(enlarging(images[..., :16, :32]), network(enlarged))


@pytest.mark.parametrize("arguments", SMALL)
def test_a_batch_equals_its_images_one_by_one(arguments):
    network, images = small(arguments), torch.rand(3, 3, 30, 64)
    with torch.inference_mode():
        assert torch.allclose(network(images), torch.cat([network(image[None]) for image in images]), atol=1e-3)


@pytest.mark.parametrize("arguments", SMALL)
def test_gradients_reach_the_images_and_all_weights(arguments):
    network = small(arguments, scale=4)
    images = torch.rand(2, 3, 15, 9, requires_grad=True)
    network(images).square().mean().backward()
    assert (images.grad != 0).all()
    assert all(value.grad.abs().sum() > 0 for value in network.parameters())


def test_other_state_dicts_are_not_taken_for_an_xrestormer():
    for other in (IMDN(4).state_dict(), PReNet().state_dict(), {}):
        assert not is_xrestormer(other)
        with pytest.raises(UnsupportedCheckpointError, match="names are missing"):
            from_state(other)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("decoder_level2.0.norm3.body.weight"),
        lambda state: state.update(extra=torch.zeros(1)),
        lambda state: state.update({"output.weight": torch.zeros(3, 5, 3, 3)}),
        lambda state: state.update({"latent.0.channel_attn.temperature": torch.zeros(3, 1, 1)}),
        lambda state: state.update({"latent.0.spatial_attn.rel_pos_emb.rel_height": torch.zeros(7)}),
        lambda state: state.update({"latent.0.spatial_attn.rel_pos_emb.rel_height": torch.zeros(21, 16)}),
    ],
)
def test_damaged_state_dicts_are_refused(damage):
    state = small().state_dict()
    damage(state)
    with pytest.raises(UnsupportedCheckpointError, match="not an X-Restormer's"):
        from_state(state)
