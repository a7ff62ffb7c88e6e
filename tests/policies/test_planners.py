from dataclasses import replace

import numpy as np
import pytest

from ir_env.datasets.base import fixed_samples
from ir_env.evaluation import compare, run_all
from ir_env.planner import Planner, observation_of, run
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from policies.planners import FixedPlan, GreedyPlanner, NothingPlanner, RandomPlanner, baselines, search_fixed_plan
from policies.planners.traversal import TraversalPlanner
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


@pytest.mark.parametrize(
    "reward",
    ["final_iqa", lambda step: float(step.after[0] - step.initial[0]) if step.ends else 0.0],
    ids=["of a quality at the end", "a function at the end"],
)
def test_the_searched_plan_does_not_depend_on_when_the_reward_is_given(process, reward):
    settings = {"metrics": ["psnr"], "reward": reward, "reward_weights": {"psnr": 1.0}}
    late = RestorationProcess(process.dataset, TOOLS, **settings)
    plans = []
    for each in (process, late):
        episodes = each.start(fixed_samples(each.dataset, 6, 1))
        plans.append(search_fixed_plan(each, episodes, max_length=2, beam=1).tools)
    assert plans[0] == plans[1] != ()


def test_greedy_stops_where_no_tool_is_allowed():
    process = RestorationProcess({"split": "heldout", "combos": "noise"}, ["bicubic.x4"], metrics=["psnr"], reward="delta_psnr")
    assert (rewards(process, GreedyPlanner(), 2) == 0).all()


def test_what_the_oracle_tried_is_counted_and_not_run_again(process):
    alone = RestorationProcess(process.dataset, TOOLS, metrics=["psnr"], reward="delta_psnr", cache_bytes=0)
    [episode] = alone.start(fixed_samples(process.dataset, 1, 1))
    for _ in run(alone, GreedyPlanner(), [episode]):
        pass
    # all but the enlarging one, on each image that was reached
    assert episode.applied and episode.executions == 4 * len(episode.states) == alone.executor.stats.executions


def test_the_usual_baselines_beside_a_policy():
    env_config = {"dataset": {"combos": "haze,noise"}, "toolbox": ["tv.denoise", "dcp.strong"], "metrics": ["psnr"], "reward": "delta_psnr"}

    def table():
        return compare(env_config, {"mine": FixedPlan(["tv.denoise"]), **baselines()}, samples=8, pairs=[("mine", "nothing")])

    told = table()
    assert [row.policy for row in told.rows] == ["mine", "nothing", "random", "best fixed plan", "greedy (oracle)"]
    assert told.row("greedy").reward >= told.row("best fixed").reward >= told.row("mine").reward
    assert told.row("nothing").reward == 0 and told.row("nothing").tools == 0
    assert "best fixed plan (fixed: dcp.strong" in told.note and "greedy (oracle) looks at the clean image" in told.note
    assert told == table(), "the same seed, the same table"


@pytest.mark.parametrize("reference", [False, True])
def test_traversal_judges_without_the_clean_image(photo, reference):
    noisy = np.clip(photo + np.random.default_rng(0).normal(0, 30, photo.shape), 0, 255).astype(np.uint8)[:200, :240]
    process = RestorationProcess(toolbox=TOOLS, metrics=["piqe"], reward_weights={"piqe": 1.0}, cache_bytes=0)
    episode = process.start_image(noisy, photo[:200, :240] if reference else None)
    judges = {"niqe": 1.0, "piqe": 0.1} if reference else None
    planner = TraversalPlanner(lambda observation: ("denoise", "dehaze"), judges=judges)
    assert not planner.needs_reference
    for _ in run(process, planner, [episode]):
        pass
    assert process.actions.name(episode.history[0]) == "tv.denoise" and not episode.error
    assert episode.executions == process.executor.stats.executions, "what was tried is not run again, without a cache"


def test_traversal_says_what_it_misses_where_it_can_try_nothing(process):
    [episode] = process.start(fixed_samples(process.dataset, 1, 1))
    blind = replace(observation_of(process, episode), oracle=None, try_tools=None)
    with pytest.raises(IrEnvError, match="traversal tries tools"):
        TraversalPlanner(lambda observation: ("denoise",)).plan(blind)


def test_traversal_enlarges_whatever_the_judges_say_of_another_picture(crop):
    process = RestorationProcess(toolbox=TOOLS, metrics=["psnr"], reward="delta_psnr", low_resolution_below=64)
    episode = process.start_image(crop[::4, ::4].copy(), crop)
    planner = TraversalPlanner(lambda observation: ("denoise", "super_resolve"), judges={"piqe": 0.1})
    for _ in run(process, planner, [episode]):
        pass
    assert "bicubic.x4" in map(process.actions.name, episode.applied) and episode.state.shape == (64, 64, 3)


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


def test_an_all_in_one_network_is_a_plan_of_one_tool(crop):
    planner = load_policy("all_in_one")
    process = RestorationProcess(toolbox=planner.toolbox, metrics=["piqe"], reward_weights={"piqe": 1.0})
    episode = process.start_image(crop)
    run_all(process, planner, [episode])
    assert [process.actions.name(action) for action in episode.history] == ["allinone.small", "stop"]
    assert planner.trained_combos and "rain+haze" in planner.trained_combos[0]
    with pytest.raises(IrEnvError, match="instruction"):
        load_policy("all_in_one:instructir.seven")
    with pytest.raises(IrEnvError, match=r"write fixed:tv\.denoise"):
        load_policy("all_in_one:tv.denoise")


@pytest.mark.parametrize("name", ["simplecall", "tir_agent"])
def test_the_policies_that_come_with_the_project_restore_what_they_were_not_trained_on(name):
    planner = load_policy(name)
    process = RestorationProcess(
        {"photos": "builtin", "split": "heldout", "crop_size": 256, "combos": "low_light+noise,haze"},
        planner.toolbox,
        metrics=["psnr", "ssim_ycbcr", "piqe"],
    )
    episodes = process.start(fixed_samples(process.dataset, 8, 0))
    run_all(process, planner, episodes)
    gains = [process.gain(episode) for episode in episodes]
    # measured: +2.0 and +2.0, seven images better each
    assert np.mean(gains) > 0.5 and sum(gain > 0 for gain in gains) >= 5
