"""The commands, as a user runs them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ir_env.images import load_image, save_image

HEAVY = ("torch", "ray", "pyiqa", "basicsr", "transformers", "cv2")


@pytest.mark.parametrize("arguments", [("ir_env", "--help"), ("rllib", "--help"), ("rllib", "train", "file", "--help")])
def test_help_is_immediate_and_loads_nothing_heavy(arguments):
    code = (
        f"import atexit, sys; from experiments.cli import {arguments[0]} as command\n"
        f"atexit.register(lambda: print([name for name in {HEAVY} if name in sys.modules]))\n"
        f"command.main({list(arguments[1:])})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True)
    assert "usage" in result.stdout and result.stdout.endswith("[]\n"), result.stdout


@pytest.mark.parametrize(("program", "words"), [("ir_env", ("tools", "show", "nlm.lite")), ("rllib", ("evaluate", "nowhere"))])
def test_an_error_is_one_line_and_an_exit_code(program, words):
    command = [sys.executable, "-m", f"experiments.cli.{program}", *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert result.returncode == 2 and result.stderr.startswith("error: ") and "Traceback" not in result.stderr


def test_importing_the_package_is_light():
    code = f"import sys, ir_env; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_degrade_and_restore(command, tmp_path, photo):
    save_image(tmp_path / "cat.png", photo)
    result = command("ir-env", "degrade", "cat.png", "--combo", "rain+haze", "--seed", 1, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first = load_image(tmp_path / "cat_rain+haze.png")
    command("ir-env", "degrade", "cat.png", "--combo", "rain+haze", "--seed", 1, "--out", "again.png", cwd=tmp_path)
    assert np.array_equal(first, load_image(tmp_path / "again.png")), "the same seed, the same image"
    (tmp_path / "broken.png").write_bytes((tmp_path / "cat.png").read_bytes()[:2000])
    Image.new("L", (40, 30), 120).save(tmp_path / "grey.png")
    result = command(
        "ir-env",
        "restore",
        "cat_rain+haze.png",
        "broken.png",
        "grey.png",
        "--policy",
        "fixed:guided.derain+dcp.strong",
        "--out",
        "out",
        cwd=tmp_path,
    )
    assert result.returncode == 2 and "broken.png: not a readable image" in result.stderr, "the bad file is named, the others are restored"
    assert load_image(tmp_path / "out" / "cat_rain+haze_restored.png").shape == photo.shape
    assert load_image(tmp_path / "out" / "cat_rain+haze_steps.png").shape[0] > 190
    trace = json.loads((tmp_path / "out" / "cat_rain+haze_trace.json").read_text())
    assert [step["tool"] for step in trace["steps"]] == [None, "guided.derain", "dcp.strong", "stop"]
    assert all(step["metrics"]["niqe"] > 0 for step in trace["steps"]) and trace["steps"][1]["seconds"] > 0
    command("ir-env", "restore", "cat.png", "out/../cat.png", "--policy", "nothing", "--out", "twice", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "twice").glob("*_restored.png")] == ["cat_restored.png"], "one photograph, named twice"
    small = json.loads((tmp_path / "out" / "grey_trace.json").read_text())
    assert small["steps"][0]["metrics"]["niqe"] is None, "too small for NIQE"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("degrade", "absent.png", "--combo", "rain"), "absent.png: no such file"),
        (("degrade", "cat.png", "--combo", "rian"), "did you mean 'rain'"),
        (("degrade", "cat.png", "--combo", "rain", "--severity", "3"), "severity of the degradations"),
        (("restore", "cat.png", "--policy", "gredy"), "unknown policy 'gredy'"),
        (("restore", "cat.png", "--policy", "greedy"), "clean image"),
        (("restore", "cat.png", "--policy", "."), "holds no RLlib checkpoint"),
        (("restore", "cat.png", "--policy", "nothing", "--out", "cat.png/out"), "cannot be written"),
        (("restore", "cat.png", "--policy", "fixed:nlm.lite"), "nlm.lite"),
        (("tools", "list", "clasical"), "unknown toolbox 'clasical'"),
        (("tools", "show", "nlm.lite"), "did you mean 'nlm.light'"),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments, words, command, tmp_path, crop):
    save_image(tmp_path / "cat.png", crop)
    result = command("ir-env", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and words in result.stderr, result.stderr


def test_lists(command, tmp_path):
    tools, envs = command("ir-env", "tools", "list", "classical", cwd=tmp_path).stdout, command("ir-env", "envs", cwd=tmp_path).stdout
    assert "dcp.strong" in tools and "super_resolve" in tools
    assert "ir_env/Restoration-v0" in envs and "delta_iqa" in envs and "rain+haze" in envs


def test_restore_has_a_policy_of_its_own(command, tmp_path, photo):
    save_image(tmp_path / "cat.png", photo)
    command("ir-env", "degrade", "cat.png", "--combo", "low_light+noise", "--seed", 1, "--out", "dark.png", cwd=tmp_path)
    result = command("ir-env", "restore", "dark.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    trace = json.loads((tmp_path / "restored" / "dark_trace.json").read_text())
    assert trace["policy"] == "simplecall" and {"brighten", "denoise"} & {step["task"] for step in trace["steps"]}


def test_a_large_photograph_is_restored_whole(command, tmp_path, photo):
    large = np.tile(photo, (5, 5, 1))[:1500, :2000]
    save_image(tmp_path / "large.jpg", large)
    result = command("ir-env", "restore", "large.jpg", "--policy", "fixed:gamma.brighten+directional.derain", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_image(tmp_path / "out" / "large_restored.jpg").shape == (1500, 2000, 3)


def test_a_trained_policy_restores_a_photograph(trained, command, tmp_path, photo):
    save_image(tmp_path / "cat.png", photo)
    restored = command("ir-env", "restore", "cat.png", "--policy", trained.folder, "--out", "out", cwd=tmp_path)
    assert restored.returncode == 0 and load_image(tmp_path / "out" / "cat_restored.png").shape == photo.shape, restored.stderr


def test_a_cluster_that_was_named_is_not_replaced(command, tmp_path, monkeypatch):
    import ray

    asked = []

    def refuse(address, **options):
        # Ray itself gives up after minutes
        asked.append(address)
        raise ConnectionError

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    said = command("ir-env", "pool", "start", cwd=tmp_path)
    assert said.returncode == 2 and "answers at '127.0.0.1:9'" in said.stderr and "RAY_AUTH_MODE" in said.stderr and asked == ["auto"]
    words = ("bench", "--photos", "builtin", "--crop", 64, "--samples", 16, "--policy", "nothing", "--metrics", "psnr,piqe")
    said = command("ir-env", *words, "--executor", "pool", cwd=tmp_path)
    assert said.returncode == 2 and "answers at '127.0.0.1:9'" in said.stderr


@pytest.mark.parametrize("action", ["status", "stop"])
def test_a_pool_that_is_not_there_is_named(action, tmp_path):
    words = [sys.executable, "-m", "experiments.cli.ir_env", "pool", action, "--name", "nobody"]
    # where Ray notes the last cluster of this machine, which may have died
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path)}
    result = subprocess.run(words, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert result.returncode == 2 and ("ray start --head" in result.stderr or "no pool named 'nobody'" in result.stderr), result.stderr
