from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ir_env.actions import ActionTable
from ir_env.metrics import DEFAULT_METRICS, METRICS
from ir_env.rewards import Transition, make_reward
from tool_actors.errors import IrEnvError
from tool_actors.toolboxes import load_toolbox

NAMES = ("psnry", "ssim_ycbcr", "gmsd")


def step(before, after, ends=False):
    vectors = [np.asarray(vector, np.float32) for vector in (before, before, after)]
    return Transition(*vectors, ends=ends)


def test_golden_values():
    transition = step((20.0, 0.5, -0.2), (23.0, 0.56, -0.1))
    assert make_reward("delta_psnr", NAMES)(transition) == pytest.approx(3.0)
    assert make_reward("delta_iqa", NAMES)(transition) == pytest.approx(3 / 9 + 0.06 / 0.3, abs=1e-5)
    assert make_reward("delta_iqa", NAMES, {"gmsd": 2.0})(transition) == pytest.approx(0.2, abs=1e-6)
    assert make_reward("final_iqa", NAMES, {"ssim_ycbcr": 1.0})(transition) == 0
    assert make_reward("final_iqa", NAMES, {"ssim_ycbcr": 1.0})(step((0, 0, 0), (20, 0.56, 0), ends=True)) == pytest.approx(0.56)
    own = make_reward(lambda t: float(t.after[0]), NAMES)
    assert own(transition) == 23


@given(st.lists(st.tuples(st.floats(0, 60), st.floats(0, 1), st.floats(-1, 0)), min_size=2, max_size=7))
def test_increments_telescope(vectors):
    reward = make_reward("delta_iqa", NAMES)
    total = sum(reward(step(a, b)) for a, b in pairwise(vectors))
    assert total == pytest.approx(reward(step(vectors[0], vectors[-1])), abs=1e-4)


def test_the_default_reward_sees_colour_and_holds_a_no_reference_metric():
    reward = make_reward("delta_iqa", DEFAULT_METRICS)
    weights = dict(zip(DEFAULT_METRICS, reward.weights, strict=True))
    assert weights["psnr"] > 0 and weights["psnry"] == 0, "PSNR counts once, over RGB"
    assert any(weights[name] for name in DEFAULT_METRICS if not METRICS[name].needs_reference)


def test_delta_psnr_needs_a_psnr():
    with pytest.raises(IrEnvError, match="psnr"):
        make_reward("delta_psnr", ("ssim_ycbcr",))


def test_action_table():
    actions = ActionTable(load_toolbox("classical"), low_resolution_below=64)
    assert actions.name(actions.stop) == "stop" and actions.index("stop") == len(actions) == actions.n - 1
    for index, action in enumerate(actions):
        assert actions.index(action.tool) == index and actions.name(index) == action.tool
    enlarging = [i for i, action in enumerate(actions) if action.task == "super_resolve"]
    assert actions.mask((16, 16), ()).all()
    assert actions.mask((64, 16), ()).sum() == actions.n - len(enlarging)
    assert not actions.mask((16, 16), (enlarging[0],))[enlarging].any()
    assert actions.mask((640, 640), (actions.stop,))[actions.stop] == 1
    with pytest.raises(IrEnvError, match="nope"):
        actions.index("nope")
