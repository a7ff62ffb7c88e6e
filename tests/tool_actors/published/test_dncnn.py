import pytest

from ir_env.degradations import degrade
from tool_actors.published.dncnn import DnCNN


@pytest.mark.parametrize("channels", [3, 1])
def test_a_random_network_is_a_tool(check_network, channels):
    check_network(lambda: DnCNN(channels))


@pytest.mark.parametrize(
    ("tool", "degradation", "severity", "least"),
    [("dncnn.blind", "noise", {"kind": "gaussian", "sigma": 25}, 9.5), ("dncnn.jpeg", "jpeg", {"quality": 20}, 0.6)],
)
def test_the_published_ones_gain_on_noise_and_jpeg(published, gain, crop_of_128, tool, degradation, severity, least):
    degraded = degrade(crop_of_128, degradation, 3, severity={degradation: severity}).image
    assert gain(published[tool], [degraded], [crop_of_128]) > least
