"""TRL's environments on our episodes."""

import importlib.util

import numpy as np
import pytest
from transformers.utils import get_json_schema

from ir_env.process import RestorationProcess
from ir_env.tool_episode import ToolEpisode
from policies.integrations.trl_environment import ENDED, make_environment, metric_reward, rows
from policies.vlm.prompts import Prompter
from tool_actors.errors import UnknownNameError

PROCESS = {"dataset": {"combos": "A"}, "metrics": ["psnr", "piqe"], "reward": "delta_psnr", "max_steps": 3}


def test_a_rollout_is_the_environments_episode():
    environment, episode = make_environment(PROCESS)(), ToolEpisode(RestorationProcess(**PROCESS))
    picture, words = environment.reset(seed=5, prompt="of the row")
    episode.reset(seed=5)
    assert np.array_equal(np.array(picture["image"]), episode.image) and "none" in words["text"]
    picture, words = environment.derain("rain.light")
    episode.call("rain.light")
    assert np.array_equal(np.array(picture["image"]), episode.image) and "rain.light" in words["text"]
    assert environment.denoise("rain.light")[0]["image"].size == picture["image"].size, "a tool of another task changes nothing"
    episode.call("rain.light", "denoise")
    assert environment.stop() == ENDED and environment.denoise("tv.denoise") == ENDED
    episode.call("stop")
    assert environment.get_reward() == episode.episode.total_reward
    assert metric_reward("piqe")([environment]) == [episode.rewards["piqe"]]
    with pytest.raises(UnknownNameError, match="'psnr'"):
        metric_reward("psnrr")([environment])


def test_tools_tell_the_model_what_they_take():
    environment = make_environment({**PROCESS, "toolbox": ["tv.denoise", "nlm.strong", "dcp.strong"]})()
    told = get_json_schema(environment.denoise)["function"]
    assert told["name"] == "denoise" and told["parameters"]["properties"]["tool"]["enum"] == ["tv.denoise", "nlm.strong"]
    assert not hasattr(environment, "derain") and get_json_schema(environment.stop)["function"]["parameters"]["properties"] == {}


def test_the_rollouts_of_a_row_begin_alike():
    factory = make_environment(PROCESS)
    first, second = (factory() for _ in range(2))
    [row] = rows(1, Prompter(first._chat.actions), first=9)
    assert [each.reset(**row)[0]["image"].tobytes() for each in (first, second)] == [np.array(first._chat.image).tobytes()] * 2


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="extra trl")
def test_the_nano_policy_goes_on_learning_in_trl():
    from experiments.engines.trl_nano import main

    [entry] = main(["--steps", "1"])
    assert entry["tools/call_frequency"] > 0.5 and entry["tools/failure_frequency"] == 0 and entry["grad_norm"] > 0
