import gymnasium
import numpy as np
import pytest

from ir_env.actions import ActionTable
from ir_env.env import RestorationEnv
from ir_env.plan_answer import PlanAnswer, to_indices, write_plan
from ir_env.plan_env import RestorationPlanEnv, RestorationPlanVectorEnv
from ir_env.plan_reward import PLAN_REWARDS, f1, find_judge, judge_by_rules, mean_of_both
from ir_env.rewards import Transition
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "nlm.strong", "dcp.light", "x4.edge"]
ACTIONS = ActionTable(load_toolbox(TOOLS))


def plan(tools=("tv.denoise",), degradations=("noise",), think=None):
    return PlanAnswer(tuple(map(ACTIONS.index, tools)), tuple(degradations), think)


# -- the reward ----------------------------------------------------------------------------------------------------------------------


def transition(answer, after=(25.0, 0.5, -40.0), truth=("noise", "haze"), consistent=True):
    vectors = [np.array(vector, np.float32) for vector in ((20.0, 0.4, -60.0), (20.0, 0.4, -60.0), after)]
    return Transition(*vectors, ends=True, answer=answer, degradations=truth, consistent=consistent)


NAMES = ("psnr", "ssim_ycbcr", "piqe")


def test_the_product_by_hand():
    reward = PLAN_REWARDS["opera"](NAMES)
    # weights 30/9, 1/.3 and 100/50 of (25 - 10)/30, .5 and 1 - .4; F1 of one of two: 2/3
    quality = (30 / 9 * 0.5 + 1 / 0.3 * 0.5 + 2 * 0.6) / (30 / 9 + 1 / 0.3 + 2)
    parts = reward.parts(transition(plan()))
    assert parts == pytest.approx({"quality": quality, "degradation": 2 / 3, "format": 1.0, "consistency": 1.0})
    assert reward(transition(plan())) == pytest.approx(quality * 2 / 3)
    assert reward(transition(plan(), consistent=False)) == 0
    assert reward(transition(PlanAnswer(reason="not text"))) == 0 and reward.parts(transition(PlanAnswer(reason="not text")))["format"] == 0
    assert "piqe in the place of lpips, clipiqa, musiq" in reward.describe()


def test_the_form_of_the_released_code_by_hand():
    reward = PLAN_REWARDS["opera_code"](NAMES)
    accuracy = 25 / 9 + 0.5 / 0.3 - 40 / 50
    assert reward(transition(plan())) == pytest.approx((1 + 0.5) / 2, abs=1e-5), "not above .8: quality does not count"
    assert reward(transition(plan(degradations=("haze", "noise")))) == pytest.approx(1 + accuracy, abs=1e-5)


def test_quality_is_positive_and_a_better_image_never_counts_less():
    reward = PLAN_REWARDS["opera"](NAMES)
    worst, best = (reward.quality(np.array(scores)) for scores in ((-5.0, 0.0, -100.0), (60.0, 1.0, 0.0)))
    assert worst == 0 and best == pytest.approx(1)


def test_weights_are_checked():
    assert PLAN_REWARDS["opera"](NAMES, {"psnr": 2.0}).weights == (1.0, 0.0, 0.0)
    for weights in ({"psnr": -1.0}, {"lpips": 1.0}):
        with pytest.raises(IrEnvError, match="cannot be weighed"):
            PLAN_REWARDS["opera"](NAMES, weights)


@pytest.mark.parametrize(
    ("predicted", "true", "f", "mean"),
    [
        ((), (), 1, 1),
        (("rain",), (), 0, 0),
        ((), ("rain",), 0, 0),
        (("rain",), ("rain", "haze", "noise"), 0.5, 2 / 3),
        (("a", "b"), ("b", "a"), 1, 1),
    ],
)
def test_agreement_of_sets(predicted, true, f, mean):
    assert f1(predicted, true) == pytest.approx(f) and mean_of_both(predicted, true) == pytest.approx(mean)


def test_step_environments_refuse_rewards_of_plans():
    env = RestorationEnv(toolbox=TOOLS, reward=PLAN_REWARDS["opera"](("psnr", "psnry", "ssim_ycbcr", "piqe")))
    env.reset(seed=0)
    with pytest.raises(IrEnvError, match="RestorationPlan-v0"):
        env.step(0)


# -- judges --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("think", "tools", "degradations", "verdict"),
    [
        ("The sky is grainy and distances are hazy.", ("tv.denoise", "dcp.light"), ("noise", "haze"), True),
        ("I would call tv.denoise first, then stop.", ("tv.denoise",), ("noise",), True),
        ("", ("tv.denoise",), ("noise",), False),
        ("noise", ("tv.denoise",), ("noise",), False),
        ("The sky is grainy and nothing else is wrong.", ("tv.denoise", "dcp.light"), ("noise",), False),
        ("There is haze, but no noise at all.", ("tv.denoise", "dcp.light"), ("haze",), False),
        ("There is haze, but no noise at all.", ("dcp.light",), ("haze",), True),
        ("There is haze, but no noise at all.", ("dcp.light",), ("haze", "noise"), False),
        (None, ("tv.denoise",), ("haze",), True),
    ],
)
def test_the_rules(think, tools, degradations, verdict):
    assert judge_by_rules([plan(tools, degradations, think)], ACTIONS) == [verdict]


def test_judges_by_name():
    assert find_judge("rules") is judge_by_rules
    assert find_judge("ir_env.plan_reward:find_judge", {"judge": "rules"}) is judge_by_rules  # a factory of any package
    with pytest.raises(UnknownNameError, match="judge 'nobody'"):
        find_judge("nobody")
    with pytest.raises(IrEnvError, match="cannot be imported"):
        find_judge("ir_env.nowhere:judge")


# -- the environment -----------------------------------------------------------------------------------------------------------------


def test_gymnasium_checks_it():
    from gymnasium.utils.env_checker import check_env

    check_env(gymnasium.make("ir_env/RestorationPlan-v0", toolbox=TOOLS).unwrapped, skip_render_check=True)


def test_a_plan_is_executed_as_steps_would_and_its_parts_are_told():
    env, steps = RestorationPlanEnv(toolbox=TOOLS, render_mode="rgb_array"), RestorationEnv(toolbox=TOOLS)
    first, info = env.reset(seed=3)
    start, _ = steps.reset(options={"sample": info["sample"]})
    assert all(np.array_equal(first[key], start[key]) for key in start)
    answer = plan(("dcp.light", "tv.denoise", "tv.denoise"), info["combo"].split("+"), "Haze and noise are there, so I treat both.")
    observation, reward, terminated, truncated, told = env.step(write_plan(answer, env.actions))
    for tool in ("dcp.light", "tv.denoise", "tv.denoise"):
        expected, *_, last = steps.step(ACTIONS.index(tool))
    assert told["metrics"] == pytest.approx(last["metrics"]) and np.array_equal(observation["overview"], expected["overview"])
    assert terminated and not truncated and told["tool"] == "dcp.light+tv.denoise+tv.denoise"
    assert told["parts"]["degradation"] == 1 and reward == pytest.approx(told["parts"]["quality"])
    assert env.render().shape[2] == 3
    with pytest.raises(IrEnvError, match="has ended"):
        env.step(write_plan(answer, env.actions))


def test_malformed_answers_run_nothing_and_are_counted():
    env = RestorationPlanVectorEnv(num_envs=3, toolbox=TOOLS)
    _, before = env.reset(seed=0)
    _, rewards, terminated, _, infos = env.step(["nonsense", "<think>", to_indices(plan(), ACTIONS, 6)])
    assert rewards[:2].tolist() == [0, 0] and rewards[2] >= 0 and terminated.all()
    assert infos["invalid"].tolist() == [True, True, False] and infos["parts"]["format"].tolist() == [0, 0, 1]
    assert infos["metrics"]["psnr"][:2].tolist() == before["metrics"]["psnr"][:2].tolist()
    assert sum(env.process.malformed.values()) == 2 and env.process.executor.stats.executions == 1
    _, rewards, terminated, _, infos = env.step(["nonsense"] * 3)
    assert not terminated.any() and rewards.tolist() == [0, 0, 0] and infos["tool"].tolist() == ["", "", ""], "the dead step begins anew"
    with pytest.raises(IrEnvError, match="2 plans for 3"):
        env.step(["nonsense"] * 2)


def test_common_beginnings_run_once():
    env = RestorationPlanVectorEnv(num_envs=4, group_size=4, toolbox=TOOLS, cache_bytes=0)
    env.reset(seed=1)
    answers = [("tv.denoise",), ("tv.denoise", "dcp.light"), ("tv.denoise", "dcp.light", "nlm.strong"), ("dcp.light",)]
    env.step([to_indices(plan(tools), ACTIONS, 6) for tools in answers])
    assert env.process.executor.stats.executions == 4


def test_settings_of_steps_are_refused():
    with pytest.raises(IrEnvError, match="max_plan"):
        RestorationPlanEnv(max_steps=3)
