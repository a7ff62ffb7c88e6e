"""The commands, as a user runs them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ir_env.images import load_image, save_image

SMALL = [
    "--set=num_env_runners=0",
    "--set=num_envs_per_env_runner=8",
    "--set=train_batch_size_per_learner=64",
    "--set=minibatch_size=32",
    "--set=num_epochs=1",
    "--set=env_config.max_steps=2",
    "--set=env_config.toolbox=[tv.denoise, dcp.strong, gamma.brighten]",
]


def command(name, *arguments, cwd, **options):
    """Run `ir-env` or `rllib` in a folder of its own."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "160"}
    module = {"ir-env": "experiments.cli.ir_env", "rllib": "experiments.cli.rllib"}[name]
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


@pytest.mark.parametrize("arguments", [("ir-env", "--help"), ("rllib", "--help"), ("rllib", "train", "file", "--help")])
def test_help_is_immediate_and_loads_nothing_heavy(arguments, tmp_path):
    start = time.monotonic()
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 0 and "usage" in result.stdout
    assert time.monotonic() - start < 1.0


def test_importing_the_package_is_light():
    code = (
        "import sys, ir_env; print([name for name in ('torch', 'ray', 'pyiqa', 'basicsr', 'transformers', 'cv2') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_degrade_and_restore(tmp_path, photo):
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
    assert {path.name for path in (tmp_path / "twice").glob("*_restored.png")} == {"cat_restored.png", "cat-2_restored.png"}
    small = json.loads((tmp_path / "out" / "grey_trace.json").read_text())
    assert small["steps"][0]["metrics"]["niqe"] is None, "too small for NIQE"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("degrade", "absent.png", "--combo", "rain"), "absent.png: no such file"),
        (("degrade", "cat.png", "--combo", "rian"), "did you mean 'rain'"),
        (("degrade", "cat.png", "--combo", "rain", "--severity", "3"), "severity of rain"),
        (("restore", "cat.png", "--policy", "gredy"), "unknown policy 'gredy'"),
        (("restore", "cat.png", "--policy", "greedy"), "clean image"),
        (("restore", "cat.png", "--policy", "."), "holds no RLlib checkpoint"),
        (("restore", "cat.png", "--policy", "nothing", "--out", "cat.png/out"), "cannot be written"),
        (("restore", "cat.png", "--policy", "fixed:nlm.lite"), "nlm.lite"),
        (("tools", "list", "clasical"), "unknown toolbox 'clasical'"),
        (("tools", "show", "nlm.lite"), "did you mean 'nlm.light'"),
    ],
)
def test_bad_input_is_named_without_a_traceback(arguments, words, tmp_path, crop):
    save_image(tmp_path / "cat.png", crop)
    result = command("ir-env", *arguments, cwd=tmp_path)
    assert result.returncode == 2 and words in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_lists(tmp_path):
    tools, envs = command("ir-env", "tools", "list", "classical", cwd=tmp_path).stdout, command("ir-env", "envs", cwd=tmp_path).stdout
    assert "dcp.strong" in tools and "super_resolve" in tools
    assert "ir_env/Restoration-v0" in envs and "delta_iqa" in envs and "rain+haze" in envs


def test_a_large_photograph_is_restored_whole(tmp_path, photo):
    large = np.tile(photo, (14, 14, 1))[:4000, :6000]
    save_image(tmp_path / "large.jpg", large)
    result = command("ir-env", "restore", "large.jpg", "--policy", "fixed:gamma.brighten+directional.derain", "--out", "out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_image(tmp_path / "out" / "large_restored.png").shape == (4000, 6000, 3)


def iterations(text):
    return [int(number) for number in re.findall(r"^iteration +(\d+) ", text, re.MULTILINE)]


@pytest.mark.timeout(900)
def test_training_is_interrupted_resumed_evaluated_and_used(tmp_path, photo):
    experiment = Path(__file__).parents[2] / "experiments" / "simplecall_ppo.py"
    arguments = ["train", "file", experiment, "--samples=6", "--storage=runs", "--name=mine"]

    first = command("rllib", *arguments, *SMALL, "--stop=training_iteration=2", cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    assert iterations(first.stdout) == [1, 2] and "tools/image" in first.stdout and "psnry" in first.stdout
    for words in ("nothing", "random", "best fixed", "greedy (oracle)", "held-out images", "trained policy"):
        assert words in first.stdout
    table = json.loads((tmp_path / "runs" / "mine" / "heldout.json").read_text())
    assert len(table["rows"]) == 5 and "pyiqa" in table["note"]
    [trial] = [path for path in (tmp_path / "runs" / "mine").iterdir() if path.is_dir()]
    events = b"".join(path.read_bytes() for path in trial.glob("events.*"))
    assert b"heldout" in events and b"quality/psnry" in events, "curves and pictures are in TensorBoard"

    # Ctrl-C in the middle of a second run; it goes on from there
    environment = {**os.environ, "PYTHONPATH": str(experiment.parents[1]), "COLUMNS": "160", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.rllib", *map(str, arguments), *SMALL, "--stop=training_iteration=12"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("iteration    3 "):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Ray's processes, too
            break
    output += process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "--name mine-2 --resume" in output, output
    reached = max(iterations(output))
    assert reached < 12
    resumed = command("rllib", *arguments, "--resume", "--name=mine-2", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    seen = iterations(resumed.stdout)
    assert reached - 1 <= seen[0] - 1 <= reached + 1 and seen[-1] == 12, "it neither starts again nor skips"

    again = command("rllib", "evaluate", "runs/mine", "--samples=6", cwd=tmp_path)
    assert again.returncode == 0 and "best fixed" in again.stdout, again.stderr
    save_image(tmp_path / "cat.png", photo)
    restored = command("ir-env", "restore", "cat.png", "--policy", "runs/mine", "--out", "out", cwd=tmp_path)
    assert restored.returncode == 0 and load_image(tmp_path / "out" / "cat_restored.png").shape == photo.shape, restored.stderr


def test_bad_experiments_and_checkpoints_are_named(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    result = command("rllib", "train", "file", "mine.py", cwd=tmp_path)
    assert result.returncode == 2 and "defines no `config`" in result.stderr and "Traceback" not in result.stderr
    result = command("rllib", "evaluate", "nowhere", cwd=tmp_path)
    assert result.returncode == 2 and "no such folder" in result.stderr
    result = command("rllib", "train", "file", Path(__file__).parents[2] / "experiments/simplecall_ppo.py", "--resume", cwd=tmp_path)
    assert result.returncode == 2 and "no run to resume" in result.stderr


def test_an_experiment_that_asks_for_too_much_does_not_wait_for_ever(tmp_path):
    experiment = Path(__file__).parents[2] / "experiments" / "simplecall_ppo.py"
    result = command("rllib", "train", "file", experiment, "--set=num_env_runners=5000", cwd=tmp_path)
    assert result.returncode == 2 and "CPUs and there are" in result.stderr


def test_a_training_on_a_pool_of_its_own_and_the_pool_commands(
    tmp_path, experiment=Path(__file__).parents[2] / "experiments/simplecall_ppo.py"
):
    arguments = ["--set=env_config.executor=pool", "--stop", "training_iteration=1", "--samples", 0, "--name", "pooled"]
    result = command("rllib", "train", "file", experiment, *SMALL, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    [line] = (tmp_path / "results" / "pooled").glob("*/result.json")
    counters = json.loads(line.read_text().splitlines()[-1])["pool"]
    assert counters["requests"] > 0 and counters["failures"] == 0 and counters["executions"] <= counters["requests"]
    for action in ("status", "stop"):
        result = command("ir-env", "pool", action, "--name", "nobody", cwd=tmp_path)
        assert result.returncode == 2 and ("ray start --head" in result.stderr or "no pool named 'nobody'" in result.stderr)
