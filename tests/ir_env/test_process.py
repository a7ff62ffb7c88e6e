import itertools

import numpy as np
import pytest

from ir_env.actions import MALFORMED
from ir_env.planner import NothingPlanner, Planner, observation_of, run
from ir_env.process import RestorationProcess
from ir_env.reset_options import start_episodes
from tool_actors.errors import IrEnvError
from tool_actors.toolbox import Tool, Toolbox, ToolSpec
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "dcp.strong", "bicubic.x4"]
BLIND = {"metrics": ["piqe"], "reward": "delta_iqa", "reward_weights": {"piqe": 1.0}}


class Failing(Tool):
    spec = ToolSpec("failing.tool", "denoise", fingerprint="f")

    def __call__(self, images):
        raise RuntimeError("out of order")


class Drawing(Tool):
    """Another result at each call."""

    spec = ToolSpec("drawing.tool", "denoise", fingerprint="d", deterministic=False)

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __call__(self, images):
        return images * float(self.rng.uniform(0.5, 1))


def make(tools=TOOLS, **options):
    return RestorationProcess(toolbox=tools, **{"metrics": ["psnr"], "reward": "delta_psnr", "cache_bytes": 0, **options})


def test_an_outcome_tells_what_a_step_did(crop):
    process = make(Toolbox([*load_toolbox(TOOLS), Failing()]), max_steps=3, invalid_reward=-0.5, malformed_reward=-0.7)
    starts = [process.start_image(crop // 2, crop, name) for name in ("runs", "stops", "forbidden", "malformed", "fails")]
    actions = [0, process.actions.stop, process.actions.index("bicubic.x4"), MALFORMED, process.actions.index("failing.tool")]
    runs, stops, forbidden, malformed, fails = process.step(starts, actions)
    assert (runs.tool, runs.invalid, runs.terminated, runs.error) == ("tv.denoise", False, False, "") and runs.seconds > 0
    assert runs.reward == pytest.approx(float(starts[0].scores[1][0] - starts[0].scores[0][0]))
    assert (stops.tool, stops.terminated, stops.reward, stops.seconds) == ("stop", True, 0.0, 0.0)
    assert (forbidden.tool, forbidden.invalid, forbidden.reward) == ("bicubic.x4", True, -0.5)
    assert (malformed.tool, malformed.invalid, malformed.reward) == ("malformed", True, -0.7)
    assert fails.terminated and "out of order" in fails.error and fails.reward == -0.5 and not fails.invalid
    assert [episode.executions for episode in starts] == [1, 0, 0, 0, 1]
    [second] = process.step(starts[:1], [0])
    [third] = process.step(starts[:1], [0])
    assert (second.truncated, third.truncated, third.terminated) == (False, True, False)


def test_tools_are_tried_without_a_reference_counted_and_not_run_again(crop):
    process = make(**BLIND)
    episode = process.start_image(crop)
    observation = observation_of(process, episode)
    assert observation.oracle is None and observation.executions == 0
    stop = process.actions.stop
    now, denoised, dehazed, forbidden, malformed = observation.try_tools([stop, 0, 1, 2, MALFORMED])
    assert [each.action for each in (now, denoised, dehazed)] == [stop, 0, 1]
    assert now.image is forbidden.image and np.array_equal(now.image, crop) and not np.array_equal(denoised.image, crop)
    assert now.scores == forbidden.scores == malformed.scores and now.scores["piqe"] == pytest.approx(float(episode.scores[0][0]))
    assert not episode.history and len(episode.states) == 1, "nothing is taken"
    assert process.executor.stats.executions == episode.executions == observation_of(process, episode).executions == 2
    observation.try_tools([0, 1, 0])
    process.step([episode], [1])
    assert process.executor.stats.executions == episode.executions == 2 and np.array_equal(episode.state.pixels, dehazed.image)
    observation_of(process, episode).try_tools([1])
    assert process.executor.stats.executions == episode.executions == 3, "another image"
    with pytest.raises(IrEnvError, match="out of range"):
        observation.try_tools([9])
    with pytest.raises(IrEnvError, match="only the oracle"):
        observation.try_tools([0], ["psnr"])


def test_a_planner_looks_further_than_one_tool_ahead(photo):
    process = RestorationProcess(toolbox=["tv.denoise", "gamma.brighten", "bicubic.x4"], cache_bytes=0, low_resolution_below=300, **BLIND)
    episode = process.start_image(np.ascontiguousarray(photo[:64, :64]))
    observation = observation_of(process, episode)
    stop = process.actions.stop
    [ahead, aside] = observation.try_tools([1, stop], after=[0, 2])
    assert ahead.image.shape == (256, 256, 3) and episode.executions == 3 and not episode.history
    assert observation.try_tools([2], after=[0, 2])[0].image is aside.image, "enlarged once already"
    for action in (0, 2, 1):
        process.step([episode], [action])
    assert np.array_equal(episode.state.pixels, ahead.image) and not episode.tried
    assert process.executor.stats.executions == episode.executions == 3, "what was tried on the way is not run again"
    for after in ([2], [stop]):
        with pytest.raises(IrEnvError, match="cannot be taken before"):
            observation.try_tools([0], after=after)


def test_nothing_is_tried_after_what_failed(crop):
    process = make(Toolbox([Drawing(), Failing()]))
    with pytest.raises(IrEnvError, match=r"failed here: .*out of order"):
        process.try_tools(process.start_image(crop, crop), [0], after=[1])


def test_plans_are_followed_with_each_beginning_once(photo):
    process = RestorationProcess(toolbox=["tv.denoise", "gamma.brighten", "bicubic.x4"], metrics=["psnr"], max_steps=3, cache_bytes=0)
    clean = np.ascontiguousarray(photo[:64, :64])
    episode = process.start_image(clean[::4, ::4].copy(), clean)
    plans = [plan for length in range(4) for plan in itertools.product(range(3), repeat=length)]
    followed = process.follow([episode] * len(plans), plans)
    assert not episode.history and all(each.done for each in followed)
    for plan, each in zip(plans, followed, strict=True):
        alone = episode.fork()
        for action in plan:
            if alone.mask[action] and not alone.done:
                process.step([alone], [action])
        if not alone.done:
            process.step([alone], [process.actions.stop])
        assert np.array_equal(each.state.pixels, alone.state.pixels) and each.applied == alone.applied
        assert each.total_reward == pytest.approx(alone.total_reward) and each.executions == len(each.applied)
    before = process.executor.stats.executions
    process.follow([episode] * len(plans), plans)
    beginnings = {tuple(each.applied[:length]) for each in followed for length in range(1, len(each.applied) + 1)}
    assert process.executor.stats.executions - before == len(beginnings)


@pytest.mark.parametrize("action", [1.7, "tv.denoise", None, float("nan")])
def test_an_action_is_a_whole_number(action, crop):
    process = make()
    episode = process.start_image(crop, crop)
    with pytest.raises(IrEnvError, match="whole number"):
        process.step([episode], [action])
    with pytest.raises(IrEnvError, match="twice"):
        process.step([episode, episode], [0, 1])
    assert not episode.history


@pytest.mark.parametrize("options", [{"image": 5}, {"image": [[1, 2]]}, {"sample": 5}, [1]])
def test_reset_options_of_another_kind_are_named(options, crop):
    with pytest.raises(IrEnvError, match="option"):
        start_episodes(make(), [np.random.default_rng(0)], options)


def test_a_plan_ends_where_its_tool_fails(crop):
    process = make(Toolbox([Drawing(), Failing()]))
    episode = process.start_image(crop, crop)
    failed, fine = process.follow([episode, episode], [[0, 1, 0], [0]])
    assert "out of order" in failed.error and failed.applied == [0] and failed.history == [0, 1]
    assert not fine.error and fine.history == [0, process.actions.stop]
    with pytest.raises(IrEnvError, match="out of range"):
        process.follow([episode], [[7]])


def test_metrics_that_an_image_does_not_allow_are_none(photo):
    process = make(low_resolution_below=300, **BLIND)
    flat = np.full((224, 224, 3), 0, np.uint8)
    small = process.start_image(photo[:64, :64].copy())
    enlarged, still = observation_of(process, small).try_tools([2, process.actions.stop], ["niqe"])
    assert enlarged.image.shape == (256, 256, 3) and enlarged.scores["niqe"] > 0 and still.scores["niqe"] > 0
    [told] = observation_of(process, process.start_image(photo[:224, :224].copy())).try_tools([0])
    assert told.scores["niqe"] > 0 and told.scores["piqe"] > 0
    state = process.start_image(photo).state
    scores = process.judge([state, type(state).from_pixels(flat)], ["piqe"])
    assert scores[0]["piqe"] > 0 and scores[1]["piqe"] is None


def test_what_is_tried_is_what_is_taken_even_by_a_tool_that_draws(crop):
    process = make(Toolbox([Drawing(), Failing()]))
    episode = process.start_image(crop, crop)
    drawn, failed = observation_of(process, episode).try_tools([0, 1], ["piqe"])
    assert "out of order" in failed.error and np.array_equal(failed.image, crop)
    [gain, _] = process.gains_of(episode, [0, 1])
    other = episode.fork()
    [outcome] = process.step([episode], [0])
    assert np.array_equal(episode.state.pixels, drawn.image) and outcome.reward == pytest.approx(gain)
    [outcome] = process.step([other], [1])
    assert "out of order" in outcome.error and episode.executions == other.executions == 2


def test_what_was_tried_is_kept_up_to_a_bound(crop, monkeypatch):
    monkeypatch.setattr("ir_env.process.TRIED_BYTES", crop.nbytes)
    process = make()
    episode = process.start_image(crop // 2, crop)
    assert len(process.try_tools(episode, [0, 1])) == 2 and list(episode.tried) == [(1,)]


@pytest.mark.parametrize("reward", ["delta_psnr", "final_iqa"])
def test_a_gain_is_that_in_quality_whenever_the_reward_gives_it(crop, reward):
    process = make(reward=reward, reward_weights={"psnr": 1.0}, invalid_reward=-9.0)
    episode = process.start_image(crop // 2, crop)
    for action in (0, MALFORMED, process.actions.stop):
        process.step([episode], [action])
    assert process.gain(episode) == pytest.approx(
        float(episode.scores[-1][0] - episode.scores[0][0])
    ) and episode.total_reward < process.gain(episode) + (0 if reward == "delta_psnr" else 99)


def test_a_planner_is_asked_until_it_stops(crop):
    process = make()
    asked = []

    class Mine(Planner):
        def plan(self, observation):
            asked.append(observation.history)
            return 0 if len(observation.history) < 2 else NothingPlanner().plan(observation)

    list(run(process, Mine(), [process.start_image(crop // 2, crop)]))
    assert asked == [(), (0,), (0, 0)]
