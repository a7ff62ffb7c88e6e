import argparse
import json
from dataclasses import replace

import numpy as np
import pytest

from experiments import train_tools
from experiments.train_tools import RECIPES, Recipe, make_batch, train
from ir_env.datasets import FolderPhotos
from ir_env.degradations import degrade
from ir_env.degradations.combos import parse_combos
from ir_env.images import save_image
from tool_actors.embedded import embedded_tools, load_embedded
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.tasks import ALL_IN_ONE, TASKS
from tool_actors.threads import limit_threads


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(6):
        save_image(folder / f"{index}.png", np.roll(photo[:160, :160], 40 * index, axis=1))
    return str(folder)


SMALL = Recipe(
    "tiny.noise", "denoise", "noise", {"noise": {"kind": "gaussian", "sigma": 40}}, arguments={"width": 8, "blocks": 1}, patch=32, batch=4
)


def _train(photos, steps, out, work, precision="fp32", seed=0, recipe=SMALL):
    options = argparse.Namespace(steps=steps, seed=seed, out=out, work=work, precision=precision)
    learn, heldout = (FolderPhotos(photos, split) for split in ("train", "heldout"))
    return train(recipe, ("some photographs", learn), {"held out": heldout}, options)


@pytest.fixture(scope="module")
def learned(photos, tmp_path_factory):
    """(folder of the tool, its card)"""
    folder = tmp_path_factory.mktemp("learned")
    return folder, _train(photos, 200, folder, folder / "work")


def test_bfloat16_learns_as_well(learned, photos, tmp_path):
    full, half = learned[1], _train(photos, 200, tmp_path, tmp_path / "work", "bf16")
    assert not full["bfloat16"] and half["bfloat16"]
    assert half["gain_db"]["held out"] == pytest.approx(full["gain_db"]["held out"], abs=0.5)


def test_every_task_has_a_recipe_and_every_recipe_a_network_of_the_right_size(photos):
    assert {recipe.task for recipe in RECIPES.values()} == {*TASKS, ALL_IN_ONE}
    source, rng = FolderPhotos(photos), np.random.default_rng(0)
    for recipe in RECIPES.values():
        network = train_tools.NETWORKS[recipe.network](**recipe.arguments)
        most = 350 if recipe.task == ALL_IN_ONE else 300
        size = 2 * sum(value.numel() for value in network.parameters())
        assert size <= most * 1024, f"{recipe.name} fits into {most} KiB in half precision"
        degraded, clean = make_batch(recipe, source, rng, 2, 64, "cpu")
        assert network(degraded).shape == clean.shape == (2, 3, 64, 64)


def test_a_tool_learns_is_written_and_loads(learned, photos):
    folder, card = learned
    assert card["gain_db"]["held out"] > 0 and card["steps"] == 200 and card["kib"] < 20
    [tool] = embedded_tools(folder)
    assert tool.spec.name == "tiny.noise" and tool.spec.task == "denoise" and tool.spec.differentiable
    gain = train_tools.gain(SMALL, tool.module, FolderPhotos(photos, "heldout"))
    assert gain == pytest.approx(card["gain_db"]["held out"], abs=1e-3), "the card states what the file does"


def test_several_combinations_are_drawn_in_turn(photos, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        train_tools, "degrade", lambda crop, combo, *rest, **more: drawn.append(combo) or degrade(crop, combo, *rest, **more)
    )
    make_batch(replace(SMALL, combo="noise,rain+haze", severity={}), FolderPhotos(photos), np.random.default_rng(0), 16, 32, "cpu")
    assert set(drawn) == {("noise",), ("rain", "haze")}
    learned_from = parse_combos(RECIPES["allinone.small"].combo).entries
    assert not any("low_resolution" in combo for combo in learned_from) and {len(combo) for combo in learned_from} == {1, 2, 3}


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


@pytest.mark.parametrize("change", ["nothing", "seed", "steps", "recipe", "photographs"])
def test_what_is_kept_is_of_the_same_settings_alone(change, photos, tmp_path):
    """The same command finds its work done; another one begins anew, and makes what it makes in an empty folder."""
    settings = {"photos": photos, "steps": 2, "seed": 0, "recipe": SMALL}
    _train(**settings, out=tmp_path / "first", work=tmp_path / "work")
    others = tmp_path / "others"
    for path in FolderPhotos(photos).names:
        save_image(others / path, 255 - FolderPhotos(photos).load(path))
    other_recipe = replace(SMALL, severity={"noise": {"kind": "gaussian", "sigma": 10}})
    changes = {"seed": {"seed": 1}, "steps": {"steps": 3}, "recipe": {"recipe": other_recipe}, "photographs": {"photos": str(others)}}
    settings |= changes.get(change, {})
    for out, work in (("shared", "work"), ("alone", "empty")):
        _train(**settings, out=tmp_path / out, work=tmp_path / work)
    first, shared, alone = (load_embedded(tmp_path / out, "tiny.noise").spec.fingerprint for out in ("first", "shared", "alone"))
    assert shared == alone and (shared == first) == (change == "nothing")


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
