import subprocess
import sys

import numpy as np
import pytest

from ir_env.datasets import (
    BuiltinPhotos,
    CDD11Dataset,
    FolderPhotos,
    MiO100Dataset,
    RealPhotos,
    Sample,
    SynthesisedDataset,
    load_dataset,
)
from ir_env.datasets.base import fixed_samples
from ir_env.degradations import GROUPS
from ir_env.images import save_image
from tool_actors.errors import IrEnvError, UnknownNameError


def test_builtin_photographs_are_split_by_photograph():
    train, heldout = set(BuiltinPhotos("train").names), set(BuiltinPhotos("heldout").names)
    assert not train & heldout and train | heldout == set(BuiltinPhotos("all").names)
    photos = BuiltinPhotos("all")
    for name in photos.names:
        pixels = photos.load(name)
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and not any(side % 4 for side in pixels.shape[:2])
    with pytest.raises(UnknownNameError, match="heldout"):
        BuiltinPhotos("test")


def test_samples_are_recipes_that_read_back():
    dataset = SynthesisedDataset(split="heldout")
    sample = dataset.draw(np.random.default_rng(3))
    assert Sample.parse(sample.id) == sample
    first, again = dataset.load(sample), SynthesisedDataset(split="all").load(Sample.parse(sample.id))
    assert np.array_equal(first.degraded, again.degraded) and np.array_equal(first.reference, again.reference)
    assert Sample.parse("a b/c.png|rain|4") == Sample("a b/c.png", ("rain",), None, 4)
    with pytest.raises(IrEnvError, match="write photo"):
        Sample.parse("chelsea")


def test_the_same_sample_in_another_process():
    code = (
        "import hashlib; from ir_env.datasets import *; "
        "p = SynthesisedDataset().load(Sample.parse('flower[8,16,64,64]|rain+haze+noise|5')); "
        "print(hashlib.sha256(p.degraded.tobytes()).hexdigest())"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(outputs) == 1 and len(outputs.pop().strip()) == 64


def test_even_samples_cover_combinations_and_photographs():
    dataset = SynthesisedDataset(split="heldout", combos="A,B,C")
    samples = fixed_samples(dataset, 48, 1)
    assert {sample.combo for sample in samples} == set(GROUPS["A"] + GROUPS["B"] + GROUPS["C"])
    assert len({(sample.photo, sample.combo) for sample in samples}) == 48
    assert samples == fixed_samples(dataset, 48, 1) != fixed_samples(dataset, 48, 2)


@pytest.fixture
def folder(tmp_path, photo):
    for index in range(12):
        save_image(tmp_path / "in" / f"{index:03}.png", np.roll(photo[:80, :96], index, axis=1))
    return tmp_path / "in"


def test_a_folder_is_split_by_name(folder):
    train, heldout = FolderPhotos(folder, "train"), FolderPhotos(folder, "heldout")
    assert len(train) + len(heldout) == 12 and not set(train.names) & set(heldout.names)
    dataset = load_dataset({"photos": str(folder), "split": "train", "crop_size": 32, "combos": ["noise"]})
    assert dataset.load(dataset.draw(np.random.default_rng(0))).degraded.shape == (32, 32, 3)


def test_whole_photographs(folder):
    dataset = SynthesisedDataset(folder, crop_size=None, combos="low_resolution")
    pair = dataset.load(dataset.draw(np.random.default_rng(0)))
    assert pair.reference.shape == (80, 96, 3) and pair.degraded.shape == (20, 24, 3)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"photos": "nowhere"}, "no such folder"),
        ({"crop_size": 30}, "multiple of 4"),
        ({"crop_size": 4096}, "smaller than crop_size"),
        ({"cropsize": 64}, "cropsize"),
        ({"split": "test"}, "unknown split"),
    ],
)
def test_bad_datasets_are_refused(spec, words):
    with pytest.raises(IrEnvError, match=words):
        load_dataset(spec).draw(np.random.default_rng(0))


def test_a_crop_outside_the_photograph_is_refused():
    with pytest.raises(IrEnvError, match="outside"):
        SynthesisedDataset().load(Sample.parse("chelsea[280,0,64,64]|rain|0"))


@pytest.fixture
def mio100(tmp_path, crop):
    names = {"motion_blur": "motion blur", "low_resolution": "low resolution", "low_light": "dark", "defocus_blur": "defocus blur"}
    names["jpeg"] = "jpeg compression artifact"
    for stem in ("001", "002", "003", "010", "011", "100"):
        save_image(tmp_path / "HQ" / f"{stem}.png", crop)
        for combo in GROUPS["A"] + GROUPS["B"] + GROUPS["C"]:
            folder = tmp_path / "LQ" / f"d{len(combo)}" / "+".join(names.get(part, part) for part in combo)
            save_image(folder / f"{stem}.png", crop[::4, ::4] if "low_resolution" in combo else crop // 2)
    return tmp_path


def test_mio100_split_leaves_out_the_explored_images_of_group_a(mio100):
    counts = {group: len(MiO100Dataset(mio100, group)) for group in "ABC"}
    assert counts == {"A": 3 * 8, "B": 6 * 4, "C": 6 * 4}, "stems ending in 1 or 2 are not in A"
    dataset = load_dataset({"mio100": str(mio100), "groups": "C", "crop_size": 32})
    pair = dataset.load(dataset.draw(np.random.default_rng(0)))
    assert pair.reference.shape == (32, 32, 3)
    small = dataset.load(Sample("003", GROUPS["C"][0], (16, 32, 32, 32)))
    assert small.degraded.shape == (8, 8, 3)
    assert np.array_equal(small.degraded, small.reference[::4, ::4])
    with pytest.raises(UnknownNameError):
        MiO100Dataset(mio100, "D")


@pytest.mark.parametrize("combos", ["noise", "noise,haze", "A,B,C"])
def test_fixed_samples_go_through_every_pair_of_photograph_and_combination(combos):
    dataset = SynthesisedDataset(split="heldout", combos=combos)
    entries = dataset.combos.entries
    samples = fixed_samples(dataset, len(entries) * 3, 0)
    assert {(sample.photo, sample.combo) for sample in samples} == {(name, entry) for name in dataset.photos.names for entry in entries}


def test_a_fixed_number_of_images_is_drawn_from_again_and_again():
    dataset = load_dataset({"photos": "builtin", "crop_size": 32, "combos": "A", "images": 12, "seed": 3})
    rng = np.random.default_rng(0)
    drawn = [dataset.draw(rng) for _ in range(200)]
    assert len(set(drawn)) == 12 and len({sample.combo for sample in drawn}) == 8
    again = load_dataset({"crop_size": 32, "combos": "A", "images": 12, "seed": 3})
    assert set(drawn) == {again.draw(rng) for _ in range(200)}
    assert dataset.load(drawn[0]) is dataset.load(drawn[0]), "made once"
    fresh = load_dataset({"photos": "builtin", "crop_size": 32, "combos": "A", "seed": 3})
    assert np.array_equal(fresh.load(drawn[0]).degraded, dataset.load(drawn[0]).degraded)
    assert len({fresh.draw(rng) for _ in range(200)}) == 200
    with pytest.raises(IrEnvError, match="images must be at least 1"):
        load_dataset({"images": 0})


def test_cdd11_pairs_images_by_name(tmp_path, crop):
    for folder in ("clear", "low", "low_haze_snow"):
        for name in ("00001", "00002"):
            save_image(tmp_path / folder / f"{name}.png", crop if folder == "clear" else crop // 2)
    save_image(tmp_path / "low" / "other.png", crop)
    dataset = load_dataset({"cdd11": tmp_path})
    assert isinstance(dataset, CDD11Dataset) and len(dataset) == 4
    assert {sample.combo for sample in dataset.samples} == {("low_light",), ("low_light", "haze", "snow")}
    pair = dataset.load(dataset.draw(np.random.default_rng(0)))
    assert np.array_equal(pair.reference, crop) and np.array_equal(pair.degraded, crop // 2)
    assert len(CDD11Dataset(tmp_path, "low")) == 2
    with pytest.raises(UnknownNameError, match="low_haze"):
        CDD11Dataset(tmp_path, "low_haze")
    save_image(tmp_path / "dark" / "00001.png", crop)
    with pytest.raises(IrEnvError, match="'dark' is no degradation of CDD-11"):
        CDD11Dataset(tmp_path)


def test_real_photographs_have_no_reference(tmp_path, crop):
    for name in ("a.png", "a.jpg", "deep/b.png"):
        save_image(tmp_path / name, crop)
    dataset = load_dataset({"real": tmp_path})
    assert isinstance(dataset, RealPhotos) and [sample.photo for sample in dataset.samples] == ["a.jpg", "a.png", "deep/b"]
    pair = dataset.load(dataset.samples[1])
    assert pair.reference is None and np.array_equal(pair.degraded, crop)
    save_image(tmp_path / "JPEGImages" / "c.png", crop)
    assert [sample.photo for sample in RealPhotos(tmp_path).samples] == ["c"], "RTTS keeps its photographs there"


def test_pairs_of_two_folders(tmp_path, crop):
    for folder, names in {"mild_in": "12", "mild_gt": "23", "severe_in": "1", "severe_gt": "1"}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            save_image(tmp_path / folder / f"{name}.png", 255 - crop if folder.endswith("_gt") else crop)
    dataset = load_dataset({"pairs": tmp_path})
    assert [sample.photo for sample in dataset.samples] == ["mild/2", "severe/1"], "what has no partner is left out"
    pair = dataset.load(dataset.samples[0])
    assert (pair.degraded == crop).all() and (pair.reference == 255 - crop).all()
    assert [sample.photo for sample in load_dataset({"pairs": tmp_path, "name": "severe"}).samples] == ["1"]
    with pytest.raises(UnknownNameError, match="did you mean"):
        dataset.load(Sample("mild/1", ()))
    with pytest.raises(IrEnvError, match="put degraded images into NAME_in"):
        load_dataset({"pairs": tmp_path / "mild_in"})
    (tmp_path / "severe_gt" / "1.png").unlink()
    save_image(tmp_path / "severe_gt" / "2.png", crop)
    with pytest.raises(IrEnvError, match="no image of severe_in"):
        load_dataset({"pairs": tmp_path, "name": "severe"})
