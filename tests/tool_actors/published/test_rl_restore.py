import os
from pathlib import Path

import numpy as np
import pytest

from ir_env.images import load_image
from ir_env.planner import run
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from tool_actors.published.rl_restore import DeepTool, SmallTool

ASSETS = os.environ.get("IR_ENV_ASSETS")


@pytest.mark.parametrize(("make", "parameters"), [(SmallTool, 21_827), (DeepTool, 50_851)])
def test_a_random_network_is_a_tool(check_network, make, parameters):
    check_network(make, parameters)


@pytest.mark.skipif(not ASSETS, reason="IR_ENV_ASSETS names no folder with the published weights")
@pytest.mark.parametrize(("level", "before", "after"), [("mild", 20.03, 24.71), ("moderate", 20.10, 24.76), ("severe", 19.92, 23.42)])
def test_the_agent_reproduces_its_published_conversion(level, before, after):
    process = RestorationProcess(toolbox="rl_restore", metrics=["psnr"], reward="delta_psnr", max_steps=3, quantize="none")
    folder = Path(ASSETS) / "rl_restore" / "test"
    pairs = [[load_image(folder / f"{level}_{kind}" / f"{number}.png") for kind in ("in", "gt")] for number in (1, 2, 3, 4)]
    episodes = [process.start_image(degraded, clean) for degraded, clean in pairs]
    for _ in run(process, load_policy("rl_restore"), episodes):
        pass
    assert np.mean([episode.scores[0][0] for episode in episodes]) == pytest.approx(before, abs=0.01)
    assert np.mean([episode.scores[-1][0] for episode in episodes]) == pytest.approx(after, abs=0.05)
