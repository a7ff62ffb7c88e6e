import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tool_actors.published.iat import IAT
from tool_actors.weight_files import load_into


def test_a_random_network_is_a_tool(check_network):
    check_network(IAT, parameters=91_154)


def test_subnormal_weights_are_flushed(tmp_path):
    state = IAT().state_dict()
    save_file({**state, "local_net.conv1.bias": torch.full((16,), 1e-41)}, tmp_path / "w.safetensors")
    loaded = load_into(IAT(), tmp_path / "w.safetensors").state_dict()
    assert not loaded.pop("local_net.conv1.bias").any()
    assert all(torch.equal(value, state[name]) for name, value in loaded.items())


@pytest.mark.parametrize(("tool", "means"), [("iat.lol_v1", (0.8363, 0.8237, 0.9153)), ("iat.exposure", (0.0880, 0.0622, 0.1533))])
def test_outputs_are_those_of_the_published_code(published, means_on_a_smooth_image, tool, means):
    assert means_on_a_smooth_image(published[tool]) == pytest.approx(means, abs=2e-4)


def test_it_gains_at_night(published, gain, crops, night):
    assert gain(published["iat.lol_v1"], [night(crop) for crop in crops], crops) > 10


def test_it_gains_on_overexposure(published, gain, crops):
    assert gain(published["iat.exposure"], [np.rint((crop / 255) ** 0.45 * 255).astype(np.uint8) for crop in crops], crops) > 5
