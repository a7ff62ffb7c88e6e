"""OPERA's scripts around its trainings: behaviour, curves, table by group, alternation, the start that imitates."""

import argparse
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.benchmark.sets import trained_combos
from experiments.opera import alternate, clone, curves, sft
from experiments.opera.behaviour import Planned, behaviour
from experiments.opera.table import METRICS, PAPER, group_differences, group_means, group_of
from experiments.resumable import load_rows
from experiments.tir_agent import demos
from ir_env.actions import ActionTable
from ir_env.evaluation import Row, Table
from ir_env.observation import observe_state
from ir_env.plan_answer import plan_space
from ir_env.view import View
from policies.loading import load_policy
from policies.opera.rl_module import PlanRLModule
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS


def test_behaviour_by_hand():
    planned = [
        Planned(("noise",), ("denoise", "denoise"), ("noise",)),
        Planned(("rain", "haze"), ("derain", "dehaze"), ("rain",)),
        Planned(("haze", "rain"), ("dehaze", "derain", "motion_deblur", "defocus_deblur"), ("haze", "rain")),
        Planned(("rain", "noise", "jpeg"), ("derain", "denoise", "motion_deblur"), ("jpeg", "haze"), consistent=False),
    ]
    assert behaviour(planned) == pytest.approx(
        {
            "denoises first, of noisy images": 1 / 2,
            "derains before it dehazes": 1 / 2,
            "deblurring repeated": 1 / 2,
            "denoising repeated": 1 / 2,
            "tools, 1 degradation": 2,
            "tools, 2 degradations": 3,
            "tools, 3 degradations": 3,
            "Rd": (1 + 2 / 3 + 1 + 2 / 5) / 4,
            "well-formed answers": 1,
            "consistent answers": 3 / 4,
        }
    )
    assert behaviour(planned[:1])["deblurring repeated"] is None


def test_means_by_group_and_the_papers_contradiction():
    samples = ["a[0,0,64,64]|rain+haze|1", "b[0,0,64,64]|haze+noise|2", "c[0,0,64,64]|noise+jpeg|3", "d[0,0,64,64]|rain|4"]
    assert group_of(samples) == ["A", "B", "A", ""]
    per_image = {name: [1.0, 2.0, 3.0, 9.0] for name in ("gain", "psnr", "psnry", "ssim_ycbcr", "piqe")}
    means = group_means(per_image, group_of(samples))
    assert means["A"]["psnry"] == 2 and means["B"]["psnry"] == 2 and "C" not in means
    assert PAPER["1"]["OPERA, full"] == PAPER["10"]["with Rc, full"] != PAPER["9"]["1:3:5, full"]


def test_differences_by_group_are_of_the_mean_of_the_first_rows():
    def row(name, gains):
        columns = {column: gains for column in ("gain", *METRICS)}
        return Row(name, 4, 0.0, None, 0.0, None, {}, 0.0, 0.0, 0.0, 0.0, 0, columns)

    rows = [row("a", [2.0, 4.0, 1.0, 9.0]), row("b", [4.0, 6.0, 1.0, 9.0]), row("c", [1.0, 2.0, 3.0, 0.0])]
    told = group_differences(Table(rows, ["p", "q", "p", "q"]), ["a", "b"], "c", ["A", "A", "B", ""])
    assert [line.partition(";")[0] for line in told] == [
        "group A, a + b less c: gain +2.500 [+2.000, +3.000]",
        "group B, a + b less c: gain -2.000 [+nan, +nan]",
    ]


def test_curves_are_read_and_drawn(tmp_path):
    trial = tmp_path / "run" / "trial"
    trial.mkdir(parents=True)
    lines = [{"training_iteration": at, "grpo": {"part": {"quality": at / 10, "degradation": 0.5}}} for at in (1, 2, 2, 3)]
    (trial / "result.json").write_text("\n".join(map(json.dumps, lines)))
    assert [result["training_iteration"] for result in curves.results_of(tmp_path / "run")] == [1, 2, 3]
    curves.main(["--run", f"a={tmp_path / 'run'}", "--out", str(tmp_path / "figure.png")])
    assert (tmp_path / "figure.png").stat().st_size > 1000
    with pytest.raises(IrEnvError, match="none of ir_env/RestorationPlan-v0"):
        curves.main(["--figure", "5", "--run", f"a={tmp_path / 'run'}", "--out", str(tmp_path / "figure.png")])
    with pytest.raises(IrEnvError, match="holds no result"):
        curves.results_of(tmp_path / "nowhere")


def test_rounds_build_on_one_another_and_go_on_where_they_stopped(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(alternate.subprocess, "run", lambda command, check: ran.append(command))
    arguments = ["--photos", "P", "--heldout", "H", "--out", str(tmp_path), "--rounds", "2"]
    for turn in (1, 2):
        for name in ("planner", "tools"):
            (tmp_path / f"{name}-{turn}").mkdir()
    assert alternate.main(arguments) == 0
    planner, tools, again, _, table = (" ".join(command) for command in ran)
    assert "env_config.toolbox=default" in planner and "model_config.start" not in planner
    assert f"--policy {tmp_path / 'planner-1'}" in tools and "--toolbox default" in tools
    learned = tmp_path / "tools-1" / "toolbox" / "toolbox.yaml"
    assert f"env_config.toolbox={learned}" in again and f"model_config.start={tmp_path / 'planner-1'}" in again
    assert f"full 1={tmp_path / 'planner-1'}@{learned}" in table
    alternate.main(arguments)
    assert len(ran) == 6, "all stages are done; the table is drawn again"
    (tmp_path / "planner-2" / alternate.DONE).unlink()
    (tmp_path / "planner-2" / "tuner.pkl").touch()
    options = argparse.Namespace(out=tmp_path, photos="P", seed=0, planner=[])
    assert alternate.planner_command(options, 2, "default", None)[-1] == "--resume"


def test_a_start_imitates_demonstrations(tmp_path, photo):
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(3):
        Image.fromarray(photo[: 200 + index, :200]).save(photos / f"{index}.png")
    made = ["--photos", photos, "--out", tmp_path / "demos", "--count", 24, "--heldout", 2, "--crop", 64, "--heldout-crop", 64]
    made += ["--combos", "noise,haze", "--processes", 1, "--toolbox", write_toolbox(tmp_path)]
    demos.main([str(word) for word in made])
    out = tmp_path / "start.safetensors"
    told = clone.main(["--demos", str(tmp_path / "demos"), "--out", str(out), "--epochs", "12", "--batch", "8", "--max-plan", "3"])
    assert told["after"] > told["before"] + 1
    assert not any(name.startswith("encoder.") for name in load_file(out))
    pairs = [["denoise", "tv.denoise"], ["dehaze", "dcp.strong"]]
    module = make_module(pairs, {"start": str(out)})
    planner = module.planner("mine", {"dataset": {"combos": "jpeg"}})
    assert trained_combos(planner) >= {("noise",), ("jpeg",)}, "of the demonstrations, and of the training"
    assert torch.equal(module.network.actor.bias, load_file(out)["actor.bias"])
    with pytest.raises(IrEnvError, match=r"does not fit|is no start"):
        make_module([*pairs, ["derain", "guided.derain"]], {"start": str(out)})


@pytest.mark.slow
def test_a_nano_that_sees_learns_to_write_plans(tmp_path, photo):
    from PIL import Image

    from policies.vlm.model import VisionLanguageModel
    from policies.vlm.planner import PolicySettings
    from tool_actors.toolboxes import load_toolbox

    photos, seeing, toolbox = tmp_path / "photos", tmp_path / "seeing", write_toolbox(tmp_path)
    photos.mkdir()
    for index in range(3):
        Image.fromarray(photo[: 200 + index, :200]).save(photos / f"{index}.png")
    settings = PolicySettings.of("nano")
    VisionLanguageModel.load("nano", settings.prompter(ActionTable(load_toolbox(toolbox))), seed=5).save(seeing)
    settings.after("single").save(seeing)
    made = ["--photos", photos, "--out", tmp_path / "demos", "--count", 12, "--heldout", 2, "--crop", 64, "--heldout-crop", 64]
    demos.main([str(word) for word in (*made, "--combos", "noise,haze", "--processes", 1, "--toolbox", toolbox)])
    told = ["--demos", tmp_path / "demos", "--model", seeing, "--out", tmp_path / "sft", "--steps", 1, "--lr", 0, "--heldout", 1]
    sft.main([str(word) for word in (*told, "--batch", 4, "--processes", 1, "--threads", 1, "--terse", 0.5)])
    before, after = VisionLanguageModel.load(seeing), VisionLanguageModel.load(tmp_path / "sft" / "policy")
    tower = "model.visual.patch_embed.proj.weight"
    assert torch.equal(before.model.state_dict()[tower], after.model.state_dict()[tower])
    texts = load_rows(tmp_path / "sft" / "examples")["text"]
    assert 0 < sum(text.startswith("<think></think>") for text in texts) < len(texts)
    assert load_policy(tmp_path / "sft" / "policy").trained_combos == ("single", "noise,haze"), "what it started from saw them, too"
    assert len(after.tokenizer(texts[0]).input_ids) < 40 < len(before.tokenizer(texts[0]).input_ids)


def write_toolbox(folder):
    path = folder / "tools.yaml"
    path.write_text(json.dumps(["tv.denoise", "dcp.strong"]))
    return path


def make_module(pairs, more):
    import gymnasium
    from ray.rllib.core.rl_module import RLModuleSpec

    from ir_env.actions import ActionTable
    from ir_env.observation import observation_space

    actions, view = ActionTable.from_pairs(pairs), View()
    space = observation_space(actions, view, 3)
    assert space.contains(observe_state([np.zeros((64, 64, 3), np.uint8)], (), actions.mask((64, 64), ()), view, 3))
    assert isinstance(plan_space(actions, 3), gymnasium.spaces.MultiDiscrete) and len(DEGRADATIONS) == 8
    return RLModuleSpec(PlanRLModule, space, plan_space(actions, 3), model_config={"actions": pairs, **more}).build()
