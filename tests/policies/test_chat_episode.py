"""Episodes for those who call tools by name: the environment's own, as a chat, and as SkyRL takes them."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import gymnasium
import numpy as np
import pytest

import ir_env  # noqa: F401
from ir_env.process import RestorationProcess
from ir_env.tool_episode import ToolEpisode
from policies.integrations.chat_episode import ChatEpisode
from tool_actors.errors import IrEnvError

PROCESS = {"dataset": {"combos": "A"}, "metrics": ["psnr", "piqe"], "reward_weights": {"psnr": 1.0}, "max_steps": 3}
CALLS = ("noise.gaussian25", "no.such.tool", "rain.light")


def test_it_is_the_environments_episode():
    env, episode = gymnasium.make("ir_env/Restoration-v0", **PROCESS), ToolEpisode(RestorationProcess(**PROCESS))
    for seed in (5, None):
        _, info = env.reset(seed=seed)
        episode.reset(seed=seed)
        assert episode.info == info
        for call in CALLS:
            index = -1 if call == "no.such.tool" else env.unwrapped.actions.index(call)
            _, reward, terminated, truncated, info = env.unwrapped.step(index)
            outcome = episode.call(call)
            told, theirs = episode.info, dict(info)
            del told["tool_seconds"], theirs["tool_seconds"]
            assert (outcome.reward, outcome.terminated, outcome.truncated, told) == (reward, terminated, truncated, theirs)
            assert np.array_equal(episode.image, env.unwrapped.episode.state.as_uint8())
        assert episode.done and episode.invalid_share == pytest.approx(1 / 3)
    assert episode.rewards == pytest.approx({"psnr": info["metrics"]["psnr"], "piqe": -info["metrics"]["piqe"]})


def test_a_tool_is_called_for_its_own_task():
    episode = ToolEpisode(RestorationProcess(**PROCESS))
    with pytest.raises(IrEnvError, match="reset"):
        episode.call("stop")
    episode.reset(seed=0)
    assert episode.call("noise.gaussian25", "derain").tool == "malformed" and episode.call("noise.gaussian25", "denoise").tool
    assert episode.call("stop").terminated and episode.invalid_share == pytest.approx(1 / 3)


def test_episodes_of_one_process_in_many_threads():
    process, lock = RestorationProcess(**PROCESS), threading.Lock()

    def play(seed: int) -> float:
        episode = ToolEpisode(process, lock)
        episode.reset(seed=seed)
        while not episode.done:
            episode.call("noise.gaussian25")
        return episode.episode.total_reward

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(play, [0, 1, 2, 0, 1, 2]))
    assert together == [play(seed) for seed in (0, 1, 2)] * 2


def test_the_chat_shows_the_current_image_and_the_calls():
    chat = ChatEpisode.make(PROCESS)
    chat.reset(seed=0)
    system, user = chat.opening()
    assert "noise.gaussian25" in system["content"][0]["text"] and user["content"][1] == chat.turn()[1]
    before = chat.turn()[0]["image"]
    assert np.array_equal(before, chat.image)
    call = {"name": "denoise", "arguments": {"tool": "noise.gaussian25"}}
    assert chat.answer(f"<tool_call>{json.dumps(call)}</tool_call>").tool == "noise.gaussian25"
    picture, words = chat.turn()
    assert np.array_equal(picture["image"], chat.image) and "denoise noise.gaussian25" in words["text"]
    assert chat.answer("I would rather not.").tool == "malformed"
    assert ChatEpisode.make(PROCESS).process is chat.process, "equal settings share tools"
    with pytest.raises(IrEnvError, match="images at 'current'"):
        ChatEpisode.make(PROCESS, view={"overview": 0, "glimpses": 0, "whole": 64, "images": "all"})


def test_skyrl():
    pytest.importorskip("skyrl_gym")
    from policies.integrations.skyrl_env import RestorationTextEnv

    env = RestorationTextEnv({"process": PROCESS}, {"seed": 7})
    messages, info = env.init([{"role": "user", "content": "Restore."}])
    assert messages[-1]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,") and info["tool"] == ""
    step = env.step('<tool_call>{"name": "denoise", "arguments": {"tool": "noise.gaussian25"}}</tool_call>')
    assert not step["done"] and step["metadata"]["tool"] == "noise.gaussian25" and step["observations"][0]["role"] == "user"
    end = env.step('<tool_call>{"name": "stop", "arguments": {}}</tool_call>')
    episode = ToolEpisode(RestorationProcess(**PROCESS))
    episode.reset(seed=7)
    assert [step["reward"], end["reward"]] == [episode.call("noise.gaussian25").reward, episode.call("stop").reward]
    assert end["done"] and end["observations"] == [] and env.get_metrics()["turns"] == 2
