from tool_actors.published.imdn import IMDN


def test_a_random_network_is_a_tool(check_network):
    check_network(lambda: IMDN(4), scale=4)
