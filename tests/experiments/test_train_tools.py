import argparse
import json

import numpy as np
import pytest

from experiments import train_tools
from experiments.train_tools import RECIPES, Recipe, make_batch, train
from ir_env.datasets import FolderPhotos
from ir_env.images import save_image
from tool_actors.embedded import embedded_tools, load_embedded
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import TASKS
from tool_actors.threads import limit_threads


@pytest.fixture
def photos(tmp_path, photo):
    for index in range(6):
        save_image(tmp_path / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    return str(tmp_path / "photos")


SMALL = Recipe(
    "tiny.noise", "denoise", "noise", {"noise": {"kind": "gaussian", "sigma": 40}}, arguments={"width": 8, "blocks": 1}, patch=32, batch=4
)


def _train(photos, steps, out, work, precision="fp32"):
    options = argparse.Namespace(steps=steps, seed=0, out=out, work=work, precision=precision)
    learn, heldout = (FolderPhotos(photos, split) for split in ("train", "heldout"))
    return train(SMALL, ("some photographs", learn), {"held out": heldout}, options)


def test_bfloat16_learns_as_well(photos, tmp_path):
    full, half = (_train(photos, 200, tmp_path / name, tmp_path / f"{name}.work", name) for name in ("fp32", "bf16"))
    assert not full["bfloat16"] and half["bfloat16"]
    assert half["gain_db"]["held out"] == pytest.approx(full["gain_db"]["held out"], abs=0.5)


def test_every_task_has_a_recipe_and_every_recipe_a_network_of_the_right_size(photos):
    assert {recipe.task for recipe in RECIPES.values()} == set(TASKS)
    source, rng = FolderPhotos(photos), np.random.default_rng(0)
    for recipe in RECIPES.values():
        network = train_tools.NETWORKS[recipe.network](**recipe.arguments)
        assert 2 * sum(value.numel() for value in network.parameters()) <= 300 * 1024, f"{recipe.name} fits into 300 KiB in half precision"
        degraded, clean = make_batch(recipe, source, rng, 2, 64, "cpu")
        assert network(degraded).shape == clean.shape == (2, 3, 64, 64)


def test_a_tool_learns_is_written_and_loads(photos, tmp_path):
    card = _train(photos, 200, tmp_path / "out", tmp_path / "work")
    assert card["gain_db"]["held out"] > 0 and card["steps"] == 200 and card["kib"] < 20
    [tool] = embedded_tools(tmp_path / "out")
    assert tool.spec.name == "tiny.noise" and tool.spec.task == "denoise" and tool.spec.differentiable
    gain = train_tools.gain(SMALL, tool.module, FolderPhotos(photos, "heldout"))
    assert gain == pytest.approx(card["gain_db"]["held out"], abs=1e-3), "the card states what the file does"


def test_an_interrupted_training_goes_on_to_the_same_weights(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_tools, "KEEP_EVERY", 3)
    _train(photos, 8, tmp_path / "whole", tmp_path / "work1")
    calls, original = [], train_tools.make_batch

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train_tools, "make_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _train(photos, 8, tmp_path / "cut", tmp_path / "work2")
    monkeypatch.setattr(train_tools, "make_batch", original)
    _train(photos, 8, tmp_path / "cut", tmp_path / "work2")
    whole, resumed = (load_embedded(tmp_path / folder, "tiny.noise") for folder in ("whole", "cut"))
    assert whole.spec.fingerprint == resumed.spec.fingerprint


def test_the_command_takes_a_recipe_of_your_own(photos, tmp_path, capsys):
    own = {"name": "mine.haze", "task": "dehaze", "combo": "haze", "network": "curve", "arguments": {"width": 8, "blocks": 1}, "patch": 32}
    (tmp_path / "mine.json").write_text(json.dumps(own))
    arguments = [
        "--photos",
        photos,
        "--recipe",
        tmp_path / "mine.json",
        "--steps",
        2,
        "--out",
        tmp_path / "out",
        "--work",
        tmp_path / "work",
    ]
    assert train_tools.main([*map(str, arguments), "--threads", "1"]) == 0
    limit_threads(1)
    assert "mine.haze" in capsys.readouterr().out and (tmp_path / "out" / "mine.haze.safetensors").is_file()
    (tmp_path / "bad.json").write_text('{"nam": "x"}')
    with pytest.raises(IrEnvError, match=r"bad\.json: not a recipe"):
        train_tools.main(["--photos", photos, "--recipe", str(tmp_path / "bad.json")])
    with pytest.raises(UnknownNameError, match=r"did you mean 'rain\.heavy'"):
        train_tools.main(["--photos", photos, "rain.heavi"])
    with pytest.raises(IrEnvError, match="--photos"):
        train_tools.main(["rain.heavy"])
