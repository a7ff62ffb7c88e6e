"""The benchmark and pretraining scripts, at a small size."""

import json

import numpy as np
from safetensors.numpy import load_file

from experiments import pretrain_encoder
from experiments.measurements import env as bench_env
from ir_env.images import save_image
from policies.simplecall.encoders import SmallCNN
from tool_actors.threads import limit_threads


def test_the_environment_bench_prints_ratios(tmp_path):
    report = bench_env.main(["--steps", "1", "--rounds", "1", "--json", str(tmp_path / "env.json")])
    assert json.loads((tmp_path / "env.json").read_text()) == report
    assert all(0 < row["ratio"] <= row["worst"] and row["calls / (tool, shape)"] == 1 for row in report["rows"])


def test_the_encoder_is_trained_written_and_carded(tmp_path, photo):
    for index in range(5):
        save_image(tmp_path / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    (tmp_path / "mine.yaml").write_text("[tv.denoise, shift.brighten]")
    out, work = tmp_path / "cnn.safetensors", tmp_path / "work"
    places = ["--photos", tmp_path / "photos", "--toolbox", tmp_path / "mine.yaml", "--work", work, "--out", out]
    sizes = ["--states", 24, "--heldout", 24, "--epochs", 1, "--batch", 8, "--processes", 1]
    pretrain_encoder.main([*map(str, places + sizes)])
    limit_threads(1)
    weights, shipped = load_file(out), load_file(SmallCNN.WEIGHTS)
    shapes = [{name: value.shape for name, value in each.items() if not name.startswith("gains.")} for each in (weights, shipped)]
    assert shapes[0] == shapes[1] and weights["gains.weight"].shape == (2, SmallCNN.HEAD)
    assert SmallCNN(out).tools == ("tv.denoise", "shift.brighten")
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["settings"]["states"] == 24 and set(card["held_out"]["balanced_accuracy"]) >= {"noise", "low_resolution"}
    assert card["tools"] == ["tv.denoise", "shift.brighten"]
    assert card["held_out"]["gain_of_best_tool"] >= card["held_out"]["gain_of_foreseen_tool"]
    [kept] = work.glob("train_*/*.npz")
    with np.load(kept) as states:
        assert states["images"].shape == (24, 64, 64, 3) and states["gains"].shape == (24, 2)
        assert states["present"].sum(1).max() <= 3 and (states["gains"] > 0).any()


def test_examples_are_of_their_settings_alone(tmp_path, photo):
    """What one command made is there for the same command, and for no other."""
    for folder in ("photos", "others"):
        for index in range(2):
            image = np.roll(photo[:80, :80], 40 * index, axis=1)
            save_image(tmp_path / folder / f"{index}.png", image if folder == "photos" else 255 - image)
    settings = {"photos": str(tmp_path / "photos"), "split": "train", "size": 64, "tools": ["tv.denoise"], "states": 6, "seed": 0}

    def examples(work="work", **changes):
        return pretrain_encoder.make_examples(**{**settings, **changes}, processes=1, work=tmp_path / work)

    def same(first, second):
        return all(np.array_equal(one, two, equal_nan=True) for one, two in zip(first, second, strict=True))

    first = examples()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    assert same(examples(), first) and files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    for number, change in enumerate(({"seed": 1}, {"states": 12}, {"photos": str(tmp_path / "others")}, {"tools": ["shift.brighten"]})):
        assert same(examples(**change), examples(f"empty{number}", **change)) and not same(examples(**change), first), change
