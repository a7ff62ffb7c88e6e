import numpy as np
import pytest

from ir_env.datasets.base import fixed_samples
from ir_env.planner import Planner, run
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from policies.planners import FixedPlan, GreedyPlanner, NothingPlanner, RandomPlanner, search_fixed_plan
from tool_actors.errors import IrEnvError, UnknownNameError

TOOLS = ["tv.denoise", "guided.derain", "dcp.strong", "gamma.brighten", "bicubic.x4"]


@pytest.fixture(scope="module")
def process():
    return RestorationProcess({"split": "heldout", "combos": "noise,haze,low_light"}, TOOLS, metrics=["psnr"], reward="delta_psnr")


def rewards(process, planner, count=12):
    episodes = process.start(fixed_samples(process.dataset, count, 1))
    for _ in run(process, planner, episodes):
        pass
    assert all(episode.done for episode in episodes)
    return np.array([episode.total_reward for episode in episodes])


def test_greedy_is_never_worse_than_stopping_nor_than_any_single_tool(process):
    greedy = rewards(process, GreedyPlanner())
    assert (greedy >= 0).all() and greedy.mean() > 2
    for tool in TOOLS:
        assert (greedy >= rewards(process, FixedPlan([tool])) - 1e-4).all()


def test_nothing_and_random(process):
    assert (rewards(process, NothingPlanner()) == 0).all()
    first = rewards(process, RandomPlanner(3))
    assert (first == rewards(process, RandomPlanner(3))).all() and (first != rewards(process, RandomPlanner(4))).any()


def test_a_fixed_plan_is_carried_out_in_order_and_skips_what_is_forbidden(process):
    [episode] = process.start(fixed_samples(process.dataset, 1, 1))
    for _ in run(process, FixedPlan(["tv.denoise", "bicubic.x4", "tv.denoise"]), [episode]):
        pass
    assert [process.actions.name(index) for index in episode.history] == ["tv.denoise", "tv.denoise", "stop"]


def test_the_searched_plan_is_the_best_of_all_short_plans(process):
    episodes = process.start(fixed_samples(process.dataset, 12, 1))
    best = search_fixed_plan(process, episodes, max_length=2, beam=len(TOOLS))
    assert not episodes[0].history, "the episodes are not changed"
    reached = rewards(process, best).mean()
    plans = [[a] for a in TOOLS] + [[a, b] for a in TOOLS for b in TOOLS]
    assert reached == pytest.approx(max(0, *(rewards(process, FixedPlan(plan)).mean() for plan in plans)), abs=1e-5)


def test_the_oracle_does_not_touch_the_episode(process):
    [episode] = process.start(fixed_samples(process.dataset, 1, 1))
    gains = process.gains_of(episode, [0, 1, 2])
    assert len(gains) == 3 and not episode.history and len(episode.states) == 1
    [outcome] = process.step([episode], [1])
    assert outcome.reward == pytest.approx(gains[1], abs=1e-6)


def test_greedy_without_a_reference_says_so(process, crop):
    blind = RestorationProcess(metrics=["piqe"], reward_weights={"piqe": 1.0}, toolbox=TOOLS)
    with pytest.raises(IrEnvError, match="clean image"):
        list(run(blind, GreedyPlanner(), [blind.start_image(crop)]))


def test_policies_by_name(process):
    class Mine(Planner):
        def plan(self, observation):
            assert observation.image.dtype == np.uint8 and observation.action_mask.shape == (observation.actions.n,)
            return observation.actions.stop

    mine = Mine()
    assert load_policy(mine) is mine and (rewards(process, mine) == 0).all()
    assert load_policy("fixed:tv.denoise+dcp.strong").tools == ("tv.denoise", "dcp.strong")
    assert isinstance(load_policy("greedy"), GreedyPlanner)
    with pytest.raises(UnknownNameError, match="did you mean 'greedy'"):
        load_policy("gredy")
    with pytest.raises(IrEnvError, match="no action uses"):
        rewards(process, load_policy("fixed:tv.denoize"))
