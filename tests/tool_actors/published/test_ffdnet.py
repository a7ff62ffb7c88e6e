import pytest

from ir_env.degradations import degrade
from tool_actors.published.ffdnet import FFDNet


def test_a_random_network_is_a_tool(check_network):
    check_network(lambda: FFDNet(25), multiple=2)


@pytest.mark.parametrize(("sigma", "least"), [(25, 9.5), (50, 11)])
def test_the_published_ones_gain_on_noise(published, gain, crop_of_128, sigma, least):
    degraded = degrade(crop_of_128, "noise", 3, severity={"noise": {"kind": "gaussian", "sigma": sigma}}).image
    assert gain(published[f"ffdnet.sigma{sigma}"], [degraded], [crop_of_128]) > least
