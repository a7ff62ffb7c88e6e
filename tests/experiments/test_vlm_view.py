"""What a vision-language policy is shown in sampling, in learning and in evaluation is one and the same."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image
from ray.rllib.core.columns import Columns

from experiments.tir_agent.demos import features
from experiments.tir_agent.sft import Collator, replay
from ir_env.planner import observation_of
from ir_env.view import View, reduced
from policies.vlm.planner import PolicySettings
from policies.vlm.rl_module import VLMRLModule

TOOLS = ["tv.denoise", "dcp.strong"]
ACTIONS = [["denoise", "tv.denoise"], ["dehaze", "dcp.strong"]]
DEHAZE = 1
VIEWS = {
    "nano's sheet": View(),
    "current": View(overview=0, glimpses=0, whole=128),
    "all": View(overview=0, glimpses=0, whole=128, images="all"),
}


class Recorder:
    """A processor that notes the images it is given."""

    def __init__(self, processor):
        self.processor, self.noted = processor, []

    def __call__(self, images, **more):
        self.noted += [[np.asarray(image) for image in chat] for chat in images]
        return self.processor(images=images, **more)

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def take(self):
        noted, self.noted = self.noted, []
        return noted


@pytest.fixture(scope="module")
def demos(photo, tmp_path_factory):
    """Demonstrations of one photograph."""
    folder = tmp_path_factory.mktemp("demos")
    row = {"sample": "photo", "combo": "haze", "degraded": Image.fromarray(photo), "clean": Image.fromarray(photo)}
    row |= {"tasks": ["dehaze"], "tools": ["dcp.strong"], "gain": 0.0, "executions": 1}
    DatasetDict({"train": Dataset.from_list([row], features=features())}).save_to_disk(folder / "data")
    (folder / "settings.json").write_text(json.dumps({"toolbox": TOOLS}))
    return folder


@pytest.mark.parametrize("name", VIEWS)
def test_the_processor_is_given_the_same_pixels_everywhere(photo, demos, name):
    view = VIEWS[name]
    env = gymnasium.make("ir_env/Restoration-v0", toolbox=TOOLS, view=view, metrics=["piqe"], max_steps=3).unwrapped
    assert photo.shape[0] != photo.shape[1]
    seen, observations = [env.reset(options={"image": photo})[0]], [observation_of(env.process, env.episode)]
    seen.append(env.step(DEHAZE)[0])
    observations.append(observation_of(env.process, env.episode))
    states = [state.as_uint8() for state in env.episode.states]

    settings = {"model": "nano", "actions": ACTIONS, "max_tokens": 2}
    module = VLMRLModule(observation_space=env.observation_space, action_space=env.action_space, model_config=settings)
    recorder = module.vlm.processor = Recorder(module.vlm.processor)
    batch = {Columns.OBS: {key: torch.from_numpy(np.stack([each[key] for each in seen])) for key in seen[0]}}
    answers = module.forward_exploration(batch)
    sampled = recorder.take()
    module.score_actions({**batch, **answers})
    scored = recorder.take()
    module.planner("policy", {}).plan_batch(observations)
    planned = recorder.take()
    policy = replace(PolicySettings.of("nano", view), toolbox=TOOLS)
    examples = replay({"demos": str(demos), "policy": policy, "demonstrations": [(0, (("dehaze", "dcp.strong"),))]})
    Collator(module.vlm, module.prompter)(examples)
    taught = recorder.take()

    counts = {"nano's sheet": [1, 1], "current": [1, 1], "all": [1, 2]}[name]
    for where in (sampled, scored, planned, taught):
        assert list(map(len, where)) == counts
        for shown, expected in zip(where, sampled, strict=True):
            assert all(np.array_equal(picture, other) for picture, other in zip(shown, expected, strict=True))
    last = sampled[1]
    if view.whole:
        wanted = states if name == "all" else states[-1:]
        assert all(np.array_equal(picture, reduced(image, 128)) for picture, image in zip(last, wanted, strict=True))
        assert last[0].shape == (86, 128, 3), "whole, and without the padding of the observation"
    else:
        assert last[0].shape == (64, 352, 3) and not np.array_equal(last[0], sampled[0][0])
        assert np.array_equal(last[0][:, :64], view.look(states)["overview"])
