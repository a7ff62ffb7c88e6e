import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from ir_env.actions import ActionTable
from ir_env.datasets.base import fixed_samples
from ir_env.planner import run
from ir_env.process import RestorationProcess
from ir_env.view import View
from policies.planners.perception import EncoderPerception, KnownDegradations
from policies.planners.traversal import SCHEDULE, TraversalPlanner
from policies.vlm.model import VisionLanguageModel
from policies.vlm.planner import SETTINGS, PolicySettings, VLMPlanner
from tool_actors.errors import IrEnvError
from tool_actors.tasks import TASKS
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "nlm.strong", "dcp.strong", "dcp.light", "gamma.brighten", "bicubic.x4"]


@pytest.fixture(scope="module")
def process():
    return RestorationProcess({"split": "heldout", "combos": "noise,haze+noise,low_light"}, TOOLS, metrics=["psnr"], reward="delta_psnr")


@pytest.fixture
def episodes(process):
    return process.start(fixed_samples(process.dataset, 6, 1))


def names(process, episode):
    return [process.actions.name(action) for action in episode.history]


@pytest.fixture(scope="module")
def taught():
    """A nano model that has learned one answer for every image: ``dcp.strong`` first, stop after it."""
    settings = PolicySettings(compact=True, view=View(glimpses=0), toolbox=TOOLS)
    prompter = settings.prompter(ActionTable(load_toolbox(TOOLS)))
    vlm = VisionLanguageModel.load("nano", prompter)
    rng = np.random.default_rng(0)
    first, last = prompter.actions.index("dcp.strong"), prompter.actions.stop
    optimiser = torch.optim.Adam(vlm.model.parameters(), 2e-3)
    for _ in range(100):
        images = rng.integers(0, 256, (4, 64, 64, 3), np.uint8)
        prompts = vlm.encode([prompter.messages([image], (first,) * (i % 2)) for i, image in enumerate(images)])
        tokens, mask = vlm.encode_answers([prompter.answer(last if i % 2 else first) for i in range(4)])
        optimiser.zero_grad()
        loss = -vlm.logprobs(prompts, tokens, mask).sum(1).mean()
        loss.backward()
        optimiser.step()
        if loss < 0.05:
            break
    return VLMPlanner(vlm, settings)


def test_the_model_decides(taught, process, episodes, tmp_path):
    for _ in run(process, taught, episodes):
        pass
    assert {tuple(names(process, episode)) for episode in episodes} == {("dcp.strong", "stop")}
    assert taught.well_formed == 1 and taught.counts["answers"] == 12 and taught.toolbox == TOOLS
    taught.vlm.save(tmp_path)
    taught.settings.save(tmp_path)
    loaded = VLMPlanner.load(tmp_path)
    [episode] = process.start(fixed_samples(process.dataset, 1, 1))
    for _ in run(process, loaded, [episode]):
        pass
    assert names(process, episode) == ["dcp.strong", "stop"] and loaded.settings == taught.settings
    for text in ("{", json.dumps({"compact": True, "view_size": 64}), json.dumps({"view": {"glimpse": 1}})):
        (tmp_path / SETTINGS).write_text(text)
        with pytest.raises(IrEnvError, match=r"not the settings of a policy .* Train it again"):
            VLMPlanner.load(tmp_path)


def test_a_policy_keeps_the_view_that_it_was_trained_with(tmp_path):
    assert PolicySettings.of("somebody/model").view == View(overview=0, glimpses=0, whole=1024)
    assert PolicySettings.of("nano").view == View()
    own = View(overview=0, glimpses=0, whole=512, images="all")
    assert PolicySettings.of("somebody/model", own).view == own, "what was not trained here takes any"
    PolicySettings(view=own).save(tmp_path)
    assert PolicySettings.of(tmp_path).view == PolicySettings.of(tmp_path, own).view == own
    for other in (View(), View(overview=0, glimpses=0, whole=512), View(overview=0, glimpses=0, whole=256, images="all")):
        with pytest.raises(IrEnvError, match=r"Set env_config.view \(--view of commands\) to the first") as raised:
            PolicySettings.of(tmp_path, other)
        assert '"whole": 512, "images": "all"' in str(raised.value)


def test_malformed_answers_are_counted_and_end_the_restoration(process, episodes):
    settings = PolicySettings.of("nano")
    untrained = VisionLanguageModel.load("nano", settings.prompter(process.actions))
    planner = VLMPlanner(untrained, settings, temperature=1.0, max_tokens=8)
    for _ in run(process, planner, episodes):
        pass
    assert all(names(process, episode) == ["stop"] and not episode.error for episode in episodes)
    assert planner.counts["malformed"] == planner.counts["answers"] == 6 and planner.well_formed == 0
    assert sum(count for reason, count in planner.counts.items() if ": " in reason) == 6


def test_traversal_keeps_the_best_tool_of_each_task_in_order(process, episodes):
    for episode in episodes:
        planner = TraversalPlanner(KnownDegradations(episode.combo), threshold=0.1)
        before = process.executor.stats.requests
        for _ in run(process, planner, [episode]):
            pass
        kept = [process.actions[action] for action in episode.history[:-1]]
        agenda = set(planner.perceive.tasks)
        assert {action.task for action in kept} <= agenda and len({action.task for action in kept}) == len(kept)
        assert episode.executions >= 2 * len(kept) - 1
        # each execution is one request; what is kept was run when it was tried
        assert process.executor.stats.requests - before == episode.executions
        scores = [float(score[0]) for score in episode.scores]
        assert all(after - start >= 0.1 for start, after in pairwise(scores))
        if kept:
            rivals = [a for a in range(process.actions.stop) if process.actions[a].task == kept[0].task]
            [fresh] = process.start(fixed_samples(process.dataset, 6, 1)[episodes.index(episode) : episodes.index(episode) + 1])
            trials = [fresh.fork() for _ in rivals]
            outcomes = process.step(trials, rivals)
            assert max(outcome.reward for outcome in outcomes) == pytest.approx(scores[1] - scores[0], abs=1e-4)


def test_traversal_rolls_back_what_gains_too_little(process, episodes):
    planner = TraversalPlanner(lambda observation: ("denoise", "dehaze", "brighten", "super_resolve"), threshold=1000.0)
    for _ in run(process, planner, episodes):
        pass
    assert all(names(process, episode) == ["stop"] for episode in episodes)
    assert [episode.executions for episode in episodes] == [5] * len(episodes), (
        "every tool was tried but the enlarging one, which the mask forbids"
    )


def test_traversal_perceives_with_the_encoder(process):
    [episode] = process.start(fixed_samples(process.dataset, 1, 1))
    assert episode.combo == "noise"
    planner = TraversalPlanner()
    assert isinstance(planner.perceive, EncoderPerception)
    for _ in run(process, planner, [episode]):
        pass
    assert process.actions[episode.history[0]].task == "denoise"


def test_the_schedule_holds_every_task():
    assert sorted(SCHEDULE) == sorted(TASKS)
