import cv2
import numpy as np
import pytest

from tool_actors.published.dmphn import DMPHN


def test_a_random_network_is_a_tool(check_network):
    check_network(DMPHN, parameters=5_424_393, multiple=8)


def test_outputs_are_those_of_the_published_code(published, means_on_a_smooth_image):
    assert means_on_a_smooth_image(published["dmphn.gopro"]) == pytest.approx((0.3062, 0.3020, 0.4199), abs=2e-4)


@pytest.mark.parametrize(("length", "least"), [(9, 1.5), (15, 1)])
def test_it_gains_on_motion(published, gain, crops, length, least):
    degraded = [cv2.filter2D(crop, -1, np.full((1, length), 1 / length)) for crop in crops]
    assert gain(published["dmphn.gopro"], degraded, crops) > least
