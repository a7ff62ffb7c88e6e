import os
from pathlib import Path

import numpy as np
import pytest

from ir_env.evaluation import run_all
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from tool_actors.published.rl_restore import DeepTool, SmallTool

ASSETS = os.environ.get("IR_ENV_ASSETS")
JUDGED = {"metrics": ["piqe"], "reward_weights": {"piqe": 1.0}}


@pytest.mark.parametrize(("make", "parameters"), [(SmallTool, 21_827), (DeepTool, 50_851)])
def test_a_random_network_is_a_tool(check_network, make, parameters):
    check_network(make, parameters)


@pytest.mark.skipif(not ASSETS, reason="IR_ENV_ASSETS names no folder with the published weights")
@pytest.mark.parametrize(("level", "before", "after"), [("mild", 20.03, 24.71), ("moderate", 20.10, 24.76), ("severe", 19.92, 23.42)])
def test_the_agent_reproduces_its_published_conversion(level, before, after):
    planner, dataset = load_policy("rl_restore"), {"pairs": str(Path(ASSETS) / "rl_restore" / "test"), "name": level}
    process = RestorationProcess(dataset, planner.toolbox, metrics=["psnr"], reward="delta_psnr", **planner.env_config)
    assert len(process.dataset.samples) == 4
    episodes = process.start(process.dataset.samples)
    run_all(process, planner, episodes)
    assert np.mean([episode.scores[0][0] for episode in episodes]) == pytest.approx(before, abs=0.01)
    assert np.mean([episode.scores[-1][0] for episode in episodes]) == pytest.approx(after, abs=0.05)


@pytest.mark.skipif(not ASSETS, reason="IR_ENV_ASSETS names no folder with the published weights")
def test_the_patches_of_a_large_image_vote():
    planner = load_policy("rl_restore")
    process = RestorationProcess({"pairs": str(Path(ASSETS) / "rl_restore" / "test")}, planner.toolbox, **JUDGED, **planner.env_config)
    assert len(process.dataset.samples) == 12 and process.dataset.samples[0].photo == "mild/1"
    first, *others = [process.dataset.load(sample).degraded for sample in process.dataset.samples]

    def plan(image):
        episode = process.start_image(np.ascontiguousarray(image))
        run_all(process, planner, [episode])
        return episode.history

    other = next(image for image in others if plan(image)[0] != plan(first)[0])
    two, one = np.hstack([first, other, first]), np.hstack([other, other, first])
    assert plan(two)[0] == plan(first)[0] and plan(one)[0] == plan(other)[0]
    assert plan(np.pad(first, ((0, 40), (0, 20), (0, 0)))) == plan(first), "what is left over has no vote"
    assert plan(first[:40]) == [process.actions.stop], "too small to be looked at"
