import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ir_env.degradations import degrade
from tool_actors.published.sci import SCI
from tool_actors.weight_files import UnsupportedCheckpointError, load_into


def test_a_random_network_is_a_tool(check_network):
    check_network(SCI, parameters=258)


def test_it_takes_what_it_needs_from_a_file_of_training_and_no_less(tmp_path):
    state = SCI().state_dict()
    twice = {name.replace(".conv.", ".blocks.0."): value.clone() for name, value in state.items()}
    save_file({**twice, **state, "calibrate.in_conv.0.bias": torch.zeros(16)}, tmp_path / "full.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in load_into(SCI(), tmp_path / "full.safetensors").state_dict().items())
    save_file({**state, "other": torch.zeros(1)}, tmp_path / "more.safetensors")
    save_file(twice, tmp_path / "less.safetensors")
    for name, words in (("more", "Unexpected key"), ("less", "Missing key")):
        with pytest.raises(UnsupportedCheckpointError, match=words):
            load_into(SCI(), tmp_path / f"{name}.safetensors")


@pytest.mark.parametrize(
    ("tool", "means"),
    [("sci.easy", (0.4895, 0.5459, 0.7202)), ("sci.medium", (0.7324, 0.7516, 0.8959)), ("sci.difficult", (0.6434, 0.6359, 0.7674))],
)
def test_outputs_are_those_of_the_published_code(published, means_on_a_smooth_image, tool, means):
    assert means_on_a_smooth_image(published[tool]) == pytest.approx(means, abs=2e-4)


def test_the_easy_one_gains_on_a_narrowed_range(published, gain, crops):
    low_light = {"low_light": {"kind": "range", "top": 100}}
    degraded = [degrade(np.ascontiguousarray(crop), "low_light", 3, severity=low_light).image for crop in crops]
    assert gain(published["sci.easy"], degraded, crops) > 5


@pytest.mark.parametrize(("tool", "least"), [("sci.medium", 8), ("sci.difficult", 6.5)])
def test_the_others_gain_at_night(published, gain, crops, night, tool, least):
    assert gain(published[tool], [night(crop) for crop in crops], crops) > least
