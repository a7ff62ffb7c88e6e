"""The benchmark and pretraining scripts, at a small size."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from experiments import pretrain_encoder
from experiments.measurements import encoder as told_by_encoder
from experiments.measurements import env as bench_env
from experiments.measurements import photographs
from ir_env.images import save_image
from ir_env.view import View
from policies.simplecall.encoders import SmallCNN
from tool_actors.errors import IrEnvError
from tool_actors.tasks import DEGRADATIONS
from tool_actors.threads import limit_threads


def test_the_environment_bench_prints_ratios(tmp_path):
    report = bench_env.main(["--steps", "1", "--rounds", "1", "--json", str(tmp_path / "env.json")])
    assert json.loads((tmp_path / "env.json").read_text()) == report
    assert all(0 < row["ratio"] <= row["worst"] and row["calls / (tool, shape)"] == 1 for row in report["rows"])


def test_the_encoder_is_trained_written_and_carded(tmp_path, photo):
    for index in range(5):
        save_image(tmp_path / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1)[:96, :120])
    (tmp_path / "mine.yaml").write_text("[tv.denoise, shift.brighten]")
    out, work = tmp_path / "cnn.safetensors", tmp_path / "work"
    places = ["--photos", tmp_path / "photos", "--toolbox", tmp_path / "mine.yaml", "--work", work, "--out", out]
    sizes = ["--crop", "64,0", "--states", "24,3", "--heldout", "24,3", "--labels", "1,1", "--epochs", 1, "--batch", 8, "--processes", 1]
    with pytest.raises(IrEnvError, match="as many numbers"):
        pretrain_encoder.main([*map(str, places + sizes), "--states", "24"])
    pretrain_encoder.main([*map(str, places + sizes)])
    limit_threads(1)
    weights, shipped = load_file(out), load_file(SmallCNN.WEIGHTS)
    shapes = [{name: value.shape for name, value in each.items() if not name.startswith("gains.")} for each in (weights, shipped)]
    assert shapes[0] == shapes[1] and weights["gains.weight"].shape == (2, SmallCNN.HEAD)
    assert SmallCNN(out).tools == ("tv.denoise", "shift.brighten")
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["settings"]["states"] == [24, 3] and card["tools"] == ["tv.denoise", "shift.brighten"]
    for size in ("crops of 64 px", "whole photographs"):
        reached = card["held_out"][size]
        assert set(reached["balanced_accuracy"]) >= {"noise", "low_resolution"}
        assert reached["gain_of_best_tool"] >= reached["gain_of_foreseen_tool"]
    assert card["view"] == asdict(View())
    with np.load(next(work.glob("train_0*/*.npz"))) as states:
        assert tuple(states["shapes"].max(0)) == (96, 120), "photographs are whole"
    [kept] = work.glob("train_64*/*.npz")
    with np.load(kept) as states:
        assert states["shapes"].shape == (24, 2) and states["pixels"].size == 3 * states["shapes"].prod(1).sum()
        assert states["gains"].shape == (24, 2) and (states["gains"] > 0).any() and states["present"].sum(1).max() <= 3
        assert np.isnan(states["gains"]).sum() == 0, "of each task there is at least one label, and each has one tool"


def test_examples_show_what_any_view_shows(tmp_path, photo):
    save_image(tmp_path / "a.png", photo)
    settings = {"split": "all", "labels": 1, "states": 5, "seed": 0, "crop": 64, "tools": ["tv.denoise"], "processes": 1}
    first = pretrain_encoder.make_examples(str(tmp_path), view=View(), work=tmp_path / "work", **settings)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    other = pretrain_encoder.make_examples(str(tmp_path), view=View(overview=0, glimpses=1, side=32), work=tmp_path / "work", **settings)
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}, "no image is made again"
    assert set(first.seen) == {"overview", "glimpses", "size"} and set(other.seen) == {"glimpses", "size"}
    rows, rng = np.arange(5), np.random.default_rng(0)
    assert first.show(rows, rng)["glimpses"].shape == (5, 4, 64, 64, 3) and other.show(rows)["glimpses"].shape == (5, 1, 32, 32, 3)
    assert torch.equal(first.show(rows)["glimpses"], first.show(rows)["glimpses"]), "the same every time, to measure with"


def test_examples_are_of_their_settings_alone(tmp_path, photo):
    """What one command made is there for the same command, and for no other."""
    for folder in ("photos", "others"):
        for index in range(2):
            image = np.roll(photo[:80, :80], 40 * index, axis=1)
            save_image(tmp_path / folder / f"{index}.png", image if folder == "photos" else 255 - image)
    settings = {"photos": str(tmp_path / "photos"), "split": "train", "crop": 64, "tools": ["tv.denoise"], "states": 6, "seed": 0}
    settings |= {"labels": 1, "view": View()}

    def examples(work="work", **changes):
        return pretrain_encoder.make_examples(**{**settings, **changes}, processes=1, work=tmp_path / work)

    def same(first, second):
        gains = np.array_equal(first.gains, second.gains, equal_nan=True)
        return gains and all(torch.equal(first.seen[name], second.seen[name]) for name in first.seen)

    first = examples()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    assert same(examples(), first) and files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.npz")}
    for number, change in enumerate(({"seed": 1}, {"states": 12}, {"photos": str(tmp_path / "others")}, {"tools": ["shift.brighten"]})):
        assert same(examples(**change), examples(f"empty{number}", **change)) and not same(examples(**change), first), change


def test_what_an_encoder_tells_by_size(tmp_path, photo):
    for index in range(2):
        save_image(tmp_path / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    words = [
        "--photos",
        tmp_path / "photos",
        "--crop",
        "64,0",
        "--combos",
        "noise,low_resolution",
        "--samples",
        4,
        "--json",
        tmp_path / "t.json",
    ]
    told = told_by_encoder.main([*map(str, words)])
    assert list(told) == ["crops of 64 px", "whole photographs"] and set(told["whole photographs"]) == set(DEGRADATIONS)
    assert told["whole photographs"]["low_resolution"] == {"area": 1.0, "recall": 1.0, "false_alarms": 0.0}
    assert np.isnan(told["whole photographs"]["haze"]["recall"]), "no image has any"
    assert told_by_encoder.area(np.array([3.0, 1.0]), np.array([2.0, 1.0])) == (1 + 1 + 0 + 0.5) / 4


def test_policies_on_whole_photographs(tmp_path, photo, capsys):
    for index in range(4):
        save_image(tmp_path / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    for name in ("noise", "lowlight"):
        save_image(tmp_path / "real" / name / "a.png", photo[:80, :90])
    words = ["--photos", tmp_path / "photos", "--real", tmp_path / "real", "--out", tmp_path / "out"]
    words += ["--samples", 4, "--combos", "noise,haze"]
    words += ["--policy", "denoise=fixed:tv.denoise", "--policy", "clear=fixed:dcp.light", "--pair", "denoise,nothing"]
    photographs.main([*map(str, words)])
    told = json.loads((tmp_path / "out" / "by_degradation.json").read_text())
    assert told["denoise"]["noise"] == {**told["denoise"]["noise"], "images": 2, "recall": 1.0, "false_alarms": 1.0}
    assert told["clear"]["noise"]["recall"] == 0 and told["clear"]["haze"]["recall"] == 1 and told["clear"]["rain"]["recall"] is None
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["policy"] for row in table["rows"]] == ["nothing", "denoise", "clear"] and table["rows"][0]["gain"] == 0
    assert table["differences"][0]["mean"] == pytest.approx(table["rows"][1]["reward"], abs=1e-4)
    real = json.loads((tmp_path / "out" / "real.json").read_text())
    assert real["denoise"]["noise"]["first"] == 1 and real["denoise"]["lowlight"]["any"] == 0
    assert (tmp_path / "out" / "clear_noise.png").is_file()
    before = (tmp_path / "out" / "rows.json").read_text()
    photographs.main([*map(str, words)])
    assert (tmp_path / "out" / "rows.json").read_text() == before, "what is there is read"
    with pytest.raises(IrEnvError, match="rows of other images"):
        photographs.main([*map(str, [*words, "--samples", 3])])
