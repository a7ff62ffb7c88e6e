from ir_env.degradations import degrade
from tool_actors.published.aodnet import AODNet


def test_a_random_network_is_a_tool(check_network):
    check_network(AODNet, parameters=1_761)


def test_the_published_one_gains_on_haze(published, gain, crop_of_128):
    assert gain(published["aodnet.dehaze"], [degrade(crop_of_128, "haze", 3, severity={"haze": {}}).image], [crop_of_128]) > 3
