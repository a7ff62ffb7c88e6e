import ast
import doctest
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

import ir_env
from ir_env.env import RestorationEnv
from ir_env.images import save_image
from ir_env.vector_env import RestorationVectorEnv
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.toolbox import Tool, Toolbox, ToolSpec


def play(episodes, seed):
    """Everything but times that a seeded random agent sees."""
    env = gymnasium.make("ir_env/Restoration-v0", max_steps=3)
    env.action_space.seed(seed)
    record = []
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        done, reward = False, 0.0
        while not done:
            record.append((observation["overview"].tobytes(), observation["history"].tolist(), reward, info["metrics"], info["sample"]))
            observation, reward, terminated, truncated, info = env.step(env.action_space.sample(mask=observation["action_mask"]))
            done = terminated or truncated
        record.append((observation["overview"].tobytes(), reward, info["metrics"], terminated))
    return record


def test_the_same_seed_gives_the_same_episodes():
    assert play(12, 5) == play(12, 5) != play(12, 6)


@pytest.mark.slow
def test_a_thousand_random_episodes_are_identical_twice():
    assert play(1000, 1) == play(1000, 1)


def test_one_episode_by_hand():
    env = gymnasium.make("ir_env/Restoration-v0", reward="delta_psnr", metrics=["psnr", "psnry"]).unwrapped
    observation, info = env.reset(seed=0, options={"sample": "flower[8,16,64,64]|haze|5"})
    assert info["sample"] == "flower[8,16,64,64]|haze|5" and info["combo"] == "haze" and info["tool"] == ""
    before = info["metrics"]["psnr"]
    clean, degraded = env.episode.reference.astype(float), observation["overview"].astype(float)
    assert before == pytest.approx(10 * np.log10(255**2 / np.mean((clean - degraded) ** 2)), abs=1e-3)
    index = env.actions.index("dcp.strong")
    observation, reward, terminated, truncated, info = env.step(index)
    assert (terminated, truncated, info["tool"]) == (False, False, "dcp.strong")
    assert reward == pytest.approx(info["metrics"]["psnr"] - before, abs=1e-4) and reward > 1
    assert observation["history"].tolist() == [index + 1, 0, 0, 0, 0, 0] and observation["step"] == [1.0]
    _, reward, terminated, truncated, info = env.step(env.actions.stop)
    assert (reward, terminated, truncated, info["tool"]) == (0.0, True, False, "stop")
    with pytest.raises(IrEnvError, match="has ended"):
        env.step(0)


def test_super_resolution_is_allowed_once_and_on_small_images_only():
    env = RestorationEnv()
    observation, _ = env.reset(seed=1, options={"combo": "noise"})
    enlarging = [i for i, action in enumerate(env.actions) if action.task == "super_resolve"]
    assert not observation["action_mask"][enlarging].any() and observation["action_mask"].sum() == env.actions.n - len(enlarging)
    observation, _ = env.reset(seed=1, options={"combo": "low_resolution"})
    assert observation["action_mask"].all() and env.episode.state.shape == (16, 16, 3)
    observation, reward, *_, info = env.step(env.actions.index("x4.fidelity"))
    assert env.episode.state.shape == (64, 64, 3) and not observation["action_mask"][enlarging].any()
    state = env.episode.state
    _, reward, *_, info = env.step(env.actions.index("x4.edge"))
    assert info["invalid"] and reward == pytest.approx(-0.1) and env.episode.state is state and env.episode.history[-1] == enlarging[-1]


def test_it_truncates_after_max_steps():
    env = RestorationEnv(max_steps=2)
    env.reset(seed=0, options={"combo": "noise"})
    assert env.step(0)[2:4] == (False, False)
    assert env.step(0)[2:4] == (False, True)


def test_own_images(tmp_path, photo):
    path = save_image(tmp_path / "mine.png", photo)
    env = RestorationEnv(low_resolution_below=300)
    _, info = env.reset(seed=0, options={"image": str(path), "combo": "rain"})
    assert info["sample"] == str(path) and env.episode.reference.shape == photo.shape
    plain = RestorationEnv(metrics=["niqe", "piqe"], reward_weights={"niqe": 1.0})
    observation, info = plain.reset(options={"image": photo})
    assert observation["overview"].shape == (64, 64, 3) and set(info["metrics"]) == {"niqe", "piqe"}
    with pytest.raises(IrEnvError, match="reference"):
        env.reset(options={"image": photo})
    with pytest.raises(UnknownNameError, match="reset option"):
        env.reset(options={"imgae": photo})


def test_the_recipe_for_ones_own_photograph_runs_as_it_is_written(tmp_path, monkeypatch, photo):
    monkeypatch.chdir(tmp_path)
    save_image(tmp_path / "photograph.png", photo)
    lines = doctest.DocTestParser().get_examples(RestorationEnv.__doc__)
    names = {"gymnasium": gymnasium}
    for line in lines:
        exec(line.source, names)
    assert len(lines) == 3 and names["info"]["tool"] == "tv.denoise" and names["reward"] != 0
    assert np.isfinite([*names["info"]["metrics"].values()]).all() and names["env"].unwrapped.episode.reference is None


def test_what_is_public_loads_when_it_is_asked_for():
    code = """
import sys, ir_env
print([name for name in ("torch", "cv2", "ray", "ir_env.process") if name in sys.modules])
from ir_env import *
assert issubclass(NothingPlanner, Planner) and compare.__module__ == evaluate.__module__ == "ir_env.evaluation"
print([name for name in sys.modules if name.split(".")[0] in ("policies", "experiments", "ray", "torch", "pyiqa")])
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == ["[]", "[]"]
    assert set(ir_env.__all__) <= set(dir(ir_env))
    with pytest.raises(AttributeError, match="no attribute 'Plannner'"):
        ir_env.Plannner  # noqa: B018


def test_an_own_policy_needs_no_other_package_than_ir_env_and_tool_actors():
    for path in Path(ir_env.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not [name for name in names if name.split(".")[0] in ("policies", "experiments")], path


def test_masks_before_a_reset_are_refused():
    for env in (RestorationEnv(), RestorationVectorEnv(num_envs=1)):
        with pytest.raises(IrEnvError, match="reset"):
            env.action_masks()


class Failing(Tool):
    spec = ToolSpec("failing.tool", "denoise", fingerprint="f")

    def __call__(self, images):
        raise RuntimeError("out of order")


def test_a_failing_tool_ends_its_own_episode_only():
    toolbox = Toolbox([Failing(), *RestorationEnv().process.executor.toolbox])
    env = RestorationVectorEnv(num_envs=3, toolbox=toolbox)
    env.reset(seed=0)
    _, rewards, terminated, _, infos = env.step([0, env.actions.index("nlm.strong"), env.actions.stop])
    assert terminated.tolist() == [True, False, True]
    assert "failing.tool" in infos["error"][0] and "out of order" in infos["error"][0] and not infos["error"][1]
    assert rewards[0] == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"toolbox": "clasical"}, "classical"),
        ({"metrics": ["pnsry"]}, "did you mean 'psn"),
        ({"metrics": []}, "list of metric names"),
        ({"reward": "delta_iq"}, "delta_iqa"),
        ({"reward_weights": {"lpips": 1.0}}, "not in the suite"),
        ({"metrics": ["gmsd"]}, "reward_weights"),
        ({"max_steps": 0}, "max_steps"),
        ({"dataset": {"combos": "rian"}}, "rian"),
        ({"render_mode": "video"}, "render_mode"),
        ({"toolbox": []}, "empty"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(IrEnvError, match=words):
        RestorationEnv(**arguments)


def test_rendering():
    env = RestorationEnv(render_mode="rgb_array")
    env.reset(seed=0, options={"combo": "rain+haze"})
    narrow = env.render()
    env.step(env.actions.index("guided.derain"))
    wide = env.render()
    assert wide.dtype == np.uint8 and wide.ndim == 3 and wide.shape[0] == narrow.shape[0] and wide.shape[1] > narrow.shape[1] + 150
    text = RestorationEnv(render_mode="ansi")
    text.reset(seed=0)
    text.step(text.actions.stop)
    assert "stop" in text.render() and "psnry" in text.render()
    assert RestorationEnv().render() is None
    vector = RestorationVectorEnv(num_envs=2, render_mode="rgb_array")
    vector.reset(seed=0)
    assert len(vector.render()) == 2


def test_a_malformed_answer_runs_nothing_and_counts():
    from ir_env.actions import MALFORMED

    single = RestorationEnv(max_steps=3, malformed_reward=-0.3)
    before, _ = single.reset(seed=0)
    observation, reward, terminated, truncated, info = single.step(MALFORMED)
    assert reward == pytest.approx(-0.3) and info["invalid"] and info["tool"] == "malformed" and not (terminated or truncated)
    assert np.array_equal(observation["overview"], before["overview"]) and observation["step"] == 1 and observation["history"][0] == 0
    assert observation["action_mask"].tolist() == before["action_mask"].tolist()
    vector = RestorationVectorEnv(num_envs=2, max_steps=3, malformed_reward=-0.3)
    vector.reset(seed=0)
    _, rewards, _, _, infos = vector.step([MALFORMED, vector.actions.stop])
    assert rewards.tolist() == pytest.approx([-0.3, 0.0]) and infos["invalid"].tolist() == [True, False]
    assert infos["tool"].tolist() == ["malformed", "stop"]
    with pytest.raises(IrEnvError, match="out of range"):
        single.step(-2)


def test_pictures_name_the_tools_that_ran():
    env = RestorationEnv(render_mode="ansi", metrics=["psnr"], reward="delta_psnr")
    env.reset(seed=0)
    first, second = env.actions.index("tv.denoise"), env.actions.index("guided.derain")
    for action in (first, -1, second):
        env.step(action)
    assert env.episode.applied == [first, second] and len(env.episode.states) == 3
    lines = env.render().splitlines()
    shown = [line.split()[0] for line in lines[1:-1]]
    assert shown == ["start", "tv.denoise", "malformed", "guided.derain"]
    assert lines[2].split()[1:] == lines[3].split()[1:] != lines[4].split()[1:], "a malformed answer changes no score"
