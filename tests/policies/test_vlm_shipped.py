import numpy as np
import pytest

from ir_env.actions import ActionTable
from ir_env.planner import observation_of
from ir_env.process import RestorationProcess
from policies.loading import load_policy
from policies.vlm.model import VisionLanguageModel
from policies.vlm.planner import PolicySettings, VLMPlanner
from policies.vlm.pretrained import ModelError
from policies.vlm.shipped import SMALL, save_small
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "dcp.strong"]


@pytest.fixture(scope="module")
def planner():
    settings = PolicySettings.of("nano")
    return VLMPlanner(VisionLanguageModel.load("nano", settings.prompter(ActionTable(load_toolbox(TOOLS)))), settings, max_tokens=12)


def test_a_quarter_of_the_size_answers_the_same(tmp_path, planner):
    save_small(planner, tmp_path / "small", {"trained": "for a test"})
    planner.vlm.save(tmp_path / "whole")
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).iterdir()) for name in ("small", "whole")]
    assert sizes[0] < 0.3 * sizes[1]
    small = load_policy(tmp_path / "small")
    assert small.settings == planner.settings
    before, after = (dict(each.vlm.model.named_parameters()) for each in (planner, small))
    for name, value in before.items():
        rows = value.detach().flatten(1) if value.ndim > 1 else value.detach()[None]
        error = (after[name].detach().reshape(rows.shape) - rows).abs().amax(1)
        assert (error <= rows.abs().amax(1) / 200 + 1e-6).all(), name
    assert after["model.language_model.embed_tokens.weight"] is small.vlm.model.get_output_embeddings().weight, "still tied"
    process = RestorationProcess(toolbox=TOOLS, metrics=["psnr"])
    [episode] = process.start([process.dataset.draw(np.random.default_rng(0))])
    prompter = planner.settings.prompter(process.actions)
    chats = [prompter.messages(prompter.pictures(planner.settings.view.look(observation_of(process, episode).trajectory)), ())]
    logits = [each.vlm.model(**each.vlm.encode(chats)).logits[:, -1] for each in (planner, small)]
    assert (logits[1] - logits[0]).norm() < 0.1 * logits[0].norm()


def test_a_shipped_policy_says_what_all_its_trainings_saw(tmp_path, planner):
    trained = VLMPlanner(planner.vlm, planner.settings.after("jpeg+rain"))
    trained.env_config = {"dataset": {"photos": "builtin", "combos": "A"}}
    save_small(trained, tmp_path / "bare", {})
    assert load_policy(tmp_path / "bare").trained_combos == ("jpeg+rain", "A")
    save_small(trained, tmp_path / "told", {"trained": {"dataset": {"combos": "B"}}})
    assert set(load_policy(tmp_path / "told").trained_combos) == {"jpeg+rain", "A", "B"}
    trained.settings = PolicySettings(combos=None)
    save_small(trained, tmp_path / "unknown", {})
    assert load_policy(tmp_path / "unknown").trained_combos is None, "where nobody knows the one before, nobody knows all"


def test_damaged_small_weights_are_named(tmp_path, planner):
    save_small(planner, tmp_path, {})
    (tmp_path / SMALL).write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_policy(tmp_path)
