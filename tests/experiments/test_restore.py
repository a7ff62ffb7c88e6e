"""`ir-env restore`: the settings of the training with the photograph's size rule, and odd files that stop nobody else."""

import io
import json
import os
import re
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.cli.ir_env import main
from experiments.restore import restore_all
from experiments.restore_files import Output
from ir_env.env import RestorationEnv
from ir_env.images import load_image, save_image
from ir_env.planner import Planner
from policies.planners import FixedPlan
from policies.restoration import photograph_process
from tool_actors.toolbox import Tool, Toolbox, ToolSpec

BRIGHTEN = "--policy=fixed:gamma.brighten"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def trace_of(stem, folder="out"):
    """The trace, read as strictly as JSON asks for."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    with open(f"{folder}/{stem}_trace.json", encoding="utf-8") as file:
        return json.loads(file.read(), parse_constant=refuse)


# -- the process ---------------------------------------------------------------------------------------------------------------------


def test_a_small_photograph_is_enlarged(photo, capsys):
    save_image("small.png", photo[:80, :120])
    assert main(["restore", "small.png", "--policy=fixed:x4.fidelity", "--out=out"]) == 0
    assert load_image("out/small_restored.png").shape == (320, 480, 3)
    assert "x4.fidelity" in capsys.readouterr().out and trace_of("small")["not_run"] == []


def test_a_tool_that_was_asked_for_and_did_not_run_is_said(photo, capsys):
    save_image("large.png", photo)
    save_image("small.png", photo[:40, :60])
    plan = "--policy=fixed:x4.fidelity+gamma.brighten+x4.fidelity"
    assert main(["restore", "large.png", "small.png", plan, "--out=out", "--max-steps=1"]) == 0
    [large, small] = capsys.readouterr().out.splitlines()
    assert "(gamma.brighten; " in large and "not run: x4.fidelity (its longer side, 448 px, is not below 300)" in large
    assert "(x4.fidelity; " in small and "not run: gamma.brighten (after 1 steps" in small
    assert [tool["tool"] for tool in trace_of("large")["not_run"]] == ["x4.fidelity", "x4.fidelity"]
    assert trace_of("small")["not_run"][1] == {"tool": "x4.fidelity", "why": "an image is enlarged once"}


def test_a_forbidden_choice_of_a_policy_is_said_and_moves_no_step(photo):
    class Stubborn(Planner):
        toolbox = ["x4.fidelity", "gamma.brighten"]

        def plan(self, observation):
            return min(len(observation.history), observation.actions.stop)

    save_image("large.png", photo)
    assert restore_all(["large.png"], Stubborn(), Output("out")) == 0
    trace = trace_of("large")
    assert [(step["tool"], step["task"]) for step in trace["steps"]] == [
        (None, None),
        ("x4.fidelity", None),
        ("gamma.brighten", "brighten"),
        ("stop", None),
    ]
    assert trace["steps"][0]["metrics"] == trace["steps"][1]["metrics"] != trace["steps"][2]["metrics"]
    assert [tool["tool"] for tool in trace["not_run"]] == ["x4.fidelity"]


def test_a_trained_policy_restores_with_the_settings_of_its_training():
    from policies.loading import planner_of
    from policies.simplecall.rl_module import SimpleCallRLModule

    trained = {
        "dataset": {"photos": "builtin", "split": "train", "crop_size": 64},
        "toolbox": ["gamma.brighten", "x4.fidelity"],
        "max_steps": 3,
        "quantize": "none",
        "reward": "delta_iqa",
    }
    env = RestorationEnv(**trained)
    module = SimpleCallRLModule(
        observation_space=env.observation_space, action_space=env.action_space, model_config={"encoder": "cnn", "hidden": [8]}
    )
    planner = planner_of(module, "trained", trained)
    process = photograph_process(planner)
    assert process.actions.low_resolution_below == 300 != env.actions.low_resolution_below
    assert process.executor.quantize == "none" and process.max_steps == 3
    assert process.executor.toolbox.names == ["gamma.brighten", "x4.fidelity"]
    assert photograph_process(planner, max_steps=2).max_steps == 2, "what is asked for wins"
    planner.env_config["low_resolution_below"] = 512
    assert photograph_process(planner).actions.low_resolution_below == 512, "so does a rule that the training names"
    assert photograph_process(FixedPlan(["gamma.brighten"])).max_steps == 6


# -- odd files -----------------------------------------------------------------------------------------------------------------------


def odd_images(photo):
    """Images on which NIQE or PIQE have no value, or which are at an edge of what there is."""
    random = np.random.default_rng(0)
    starry = np.zeros((256, 320, 3), np.uint8)
    starry[random.integers(0, 256, 40), random.integers(0, 320, 40)] = 255
    logo = np.zeros((400, 600, 4), np.uint8)
    logo[8:88, 8:88] = np.dstack([photo[96:176, 160:240], np.full((80, 80), 255, np.uint8)])
    ramp = np.repeat(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], 300, 0).repeat(3, 2)
    return {
        "black100": np.zeros((100, 100, 3), np.uint8),
        "black": np.zeros((256, 256, 3), np.uint8),
        "white": np.full((200, 300, 3), 255, np.uint8),
        "flat": np.full((240, 240, 3), 128, np.uint8),
        "ramp": ramp,
        "starry": starry,
        "logo": logo,
        "noise": random.integers(0, 256, (192, 192, 3)).astype(np.uint8),
        "column": np.ascontiguousarray(np.tile(photo[:300, :16], (10, 1, 1))),
        "row": np.ascontiguousarray(np.tile(photo[:16], (1, 7, 1))),
        "tiny": photo[:16, :16],
    }


def test_images_without_a_score_are_restored_and_their_traces_are_json(photo, capsys):
    images = {**odd_images(photo), "zebra": photo}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(f"{name}.png")
    assert main(["restore", ".", BRIGHTEN, "--out=out"]) == 0
    assert capsys.readouterr().out.count("gamma.brighten") == 12
    for name in images:
        assert load_image(f"out/{name}_restored.png").shape[2] == 3 and load_image(f"out/{name}_steps.png").shape[1] < 2000
        for step in trace_of(name)["steps"]:
            for metric, value in step["metrics"].items():
                assert (value is None) == (f"{metric}: " in (step["note"] or "")), "each null says why"
    first = {name: trace_of(name)["steps"][0] for name in images}
    for name in ("black100", "black"):
        assert first[name]["metrics"] == {"niqe": None, "piqe": None}
    for name in ("white", "flat", "ramp", "logo"):
        assert first[name]["metrics"]["niqe"] is None and first[name]["metrics"]["piqe"] > 0
    assert first["zebra"]["note"] is None and all(value > 0 for value in first["zebra"]["metrics"].values())


def test_files_that_cannot_be_read_are_named_and_the_others_are_restored(photo, crop, capsys):
    save_image("a.jpg", photo)
    with open("cut.jpg", "wb") as file, open("a.jpg", "rb") as whole:
        file.write(whole.read()[:4000])
    with open("text.png", "w") as file:
        file.write("not an image")
    open("nothing.png", "wb").close()
    os.mkdir("empty")
    Image.new("1", (15000, 15000)).save("bomb.png")
    os.symlink("nowhere.png", "dangling.png")
    save_image("z.png", crop)
    bad = ["cut.jpg", "text.png", "nothing.png", "empty", "bomb.png", "dangling.png", "gone.png", "n" * 300 + ".png"]
    assert main(["restore", "a.jpg", *bad, "z.png", BRIGHTEN, "--out=out"]) == 2
    output = capsys.readouterr()
    assert [line.split("  ")[0] for line in output.out.splitlines()] == ["out/a_restored.jpg", "out/z_restored.png"]
    errors = output.err.splitlines()
    for name in bad:
        assert any(line.startswith(f"error: {name}: ") for line in errors), name
    assert errors[-1].startswith("2 restored, 8 failed: ") and all(name in errors[-1] for name in bad) and "Traceback" not in output.err
    assert sorted(os.listdir("out")) == sorted(
        ["a_restored.jpg", "a_steps.png", "a_trace.json", "z_restored.png", "z_steps.png", "z_trace.json"]
    )


def test_a_file_that_vanishes_on_the_way_is_named(crop, capsys):
    class Jealous(FixedPlan):
        def plan(self, observation):
            if os.path.exists("b.png"):
                os.remove("b.png")
            return super().plan(observation)

    for name in "abc":
        save_image(f"{name}.png", crop)
    assert restore_all(["."], Jealous(["gamma.brighten"]), Output("out")) == 2
    output = capsys.readouterr()
    assert "error: b.png: no such file" in output.err and "2 restored, 1 failed: b.png" in output.err
    assert "a_restored" in output.out and "c_restored" in output.out


def test_what_a_tool_or_a_planner_raises_ends_one_photograph_only(crop, photo, capsys):
    class Picky(Tool):
        """Fails on small images."""

        spec = ToolSpec("picky.denoise", "denoise", "picky")

        def __call__(self, images):
            if images.shape[-1] == 64:
                raise ZeroDivisionError("picky")
            return images

    class Mine(Planner):
        toolbox = Toolbox([Picky()])

        def plan(self, observation):
            if observation.image.shape[0] == 48:
                return int(np.empty((1 << 58, 3))[0, 0])  # more memory than there is
            if observation.image.shape[0] == 32:
                raise KeyError("no such thing")
            return observation.actions.stop if observation.history else 0

    for number, side in enumerate((300, 64, 48, 32, 200)):
        save_image(f"{number}.png", np.ascontiguousarray(photo[:side, :side]))
    assert restore_all([f"{number}.png" for number in range(5)], Mine(), Output("out")) == 2
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 3, "where a tool failed, the image that there was before it is saved"
    assert re.search(r"error: 1\.png: tool 'picky\.denoise' failed .*ZeroDivisionError: picky", output.err)
    assert trace_of("1")["not_run"] == [{"tool": "picky.denoise", "why": "it failed"}]
    assert "error: 2.png: " in output.err and "Unable to allocate" in output.err
    assert "error: 3.png: KeyError: 'no such thing'" in output.err
    assert "3 restored, 3 failed: 1.png, 2.png, 3.png" in output.err


def test_results_that_cannot_be_written_are_named_and_the_others_are_kept(crop, capsys):
    for name in "abc":
        save_image(f"{name}.png", crop)
    for name in ("a_trace.json", "b_steps.png", "c_restored.png"):
        os.makedirs(f"out/{name}/in the way")
    assert main(["restore", "a.png", "b.png", "c.png", BRIGHTEN, "--out=out"]) == 2
    output = capsys.readouterr()
    for name in ("a.png: out/a_trace.json", "b.png: out/b_steps.png", "c.png: out/c_restored.png"):
        assert f"error: {name}: cannot be written" in output.err
    assert "2 restored, 3 failed" in output.err and load_image("out/a_restored.png").shape == crop.shape
    assert trace_of("b")["restored"] == "b_restored.png"
    assert not [name for name in os.listdir("out") if name.endswith(".part")], "nothing half-written stays"


def test_names_that_are_long_or_cannot_be_printed(crop, monkeypatch):
    names = ["x" * 251 + ".png", "x" * 250 + "y.png", "ü" * 125 + ".png", "übung.png", os.fsdecode(b"\xff\xfe.png"), "a\nb.png"]
    for name in names:
        save_image(name, crop)
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    assert main(["restore", *names, BRIGHTEN, "--out=out"]) == 0
    ascii_only.flush()
    printed = ascii_only.buffer.getvalue().decode("ascii")
    assert r"\xfcbung_restored.png" in printed and r"\udcff\udcfe_restored.png" in printed
    assert printed.count("name is too long for its results") == 3
    results = os.listdir("out")
    assert len(results) == 3 * len(names), "long names that differ at their ends keep results of their own"
    traces = [trace_of(name.removesuffix("_trace.json")) for name in results if name.endswith("_trace.json")]
    assert {trace["image"] for trace in traces} == set(names) and all(trace["restored"] in results for trace in traces)
