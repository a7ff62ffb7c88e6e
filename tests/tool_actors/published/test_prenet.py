import pytest

from ir_env.degradations import degrade
from tool_actors.published.prenet import PReNet, PRNr


@pytest.mark.parametrize("make", [PReNet, PRNr])
def test_a_random_network_is_a_tool(check_network, make):
    check_network(make)


@pytest.mark.parametrize("tool", ["prenet.rain100l", "prn_r.rain100l"])
def test_the_published_ones_gain_on_rain(published, gain, crop_of_128, tool):
    assert gain(published[tool], [degrade(crop_of_128, "rain", 3, severity={"rain": {}}).image], [crop_of_128]) > 8
