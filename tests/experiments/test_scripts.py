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
    report = bench_env.main(["--steps", "3", "--rounds", "2", "--json", str(tmp_path / "env.json")])
    assert json.loads((tmp_path / "env.json").read_text()) == report
    assert all(0.3 < row["ratio"] < 3 and row["calls / (tool, shape)"] == 1 for row in report["rows"])


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
