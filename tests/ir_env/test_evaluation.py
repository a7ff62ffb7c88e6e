import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from ir_env import NothingPlanner, Planner, RestorationProcess, compare, evaluate
from ir_env.datasets import BuiltinPhotos, SynthesisedDataset
from ir_env.evaluation import Row, Table, bootstrap, evaluation_settings, photo_of, save_json, sign_flips, summarise
from ir_env.images import save_image
from tool_actors.errors import IrEnvError, UnknownNameError

CONFIG = {"dataset": {"combos": "haze,noise"}, "toolbox": ["tv.denoise", "dcp.strong"], "metrics": ["psnr"], "reward": "delta_psnr"}


class Tries(Planner):
    """Tries two tools, takes the first, and stops."""

    def plan(self, observation):
        if observation.history:
            return observation.actions.stop
        observation.try_tools([0, 1], ["piqe"])
        return 0


@pytest.fixture(scope="module")
def table():
    return compare(CONFIG, {"mine": Tries(), "nothing": NothingPlanner()}, samples=12, pairs=[("mine", "nothing")])


def test_a_row_holds_the_means_of_its_images(table):
    mine, nothing = table.rows
    assert (mine.tools, mine.executions, mine.calls, mine.images) == (1, 2, 2, 12)
    assert (nothing.tools, nothing.executions, nothing.calls, nothing.reward, nothing.worse) == (0, 0, 1, 0, 0)
    for name in ("reward", "gain", "normalised", "tools"):
        assert getattr(mine, name) == pytest.approx(np.mean(mine.per_image[name]))
    rewards = np.array(mine.per_image["reward"])
    gained = np.array(mine.per_image["psnr"]) - np.array(nothing.per_image["psnr"])
    np.testing.assert_allclose(rewards, gained, atol=1e-4)
    assert mine.worse == np.mean(rewards < -1e-9) and mine.metrics["psnr"] == pytest.approx(np.mean(mine.per_image["psnr"]))
    assert mine.normalised == pytest.approx(np.mean(gained) / np.std(nothing.per_image["psnr"]), rel=1e-4)
    assert mine.interval[0] < mine.reward < mine.interval[1] and nothing.interval == [0, 0]
    assert set(table.photographs) == set(BuiltinPhotos("heldout").names)


def test_the_same_seed_gives_the_same_table_and_progress_is_told(table):
    told = []
    planners = {"mine": Tries(), "nothing": NothingPlanner()}
    again = compare(CONFIG, planners, 12, pairs=[("mine", "nothing")], progress=lambda *each: told.append(each))
    assert again == table
    assert told[0] == ("mine", 0, 12) and told[-1] == ("nothing", 12, 12) and ("mine", 12, 12) in told
    other = compare(CONFIG, planners, 12, seed=1)
    assert other.row("mine").reward != table.row("mine").reward and other.differences == []


def test_differences_are_of_the_same_images(table):
    [difference] = table.differences
    assert difference == table.difference("mine", "noth") and difference.mean == pytest.approx(table.row("mine").reward)
    assert difference.interval[0] < difference.mean < difference.interval[1]
    assert table.difference("mine", "nothing", "tools").mean == 1 and table.difference("mine", "mine").p == 1
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        table.row("mne")
    with pytest.raises(UnknownNameError, match="column"):
        table.difference("mine", "nothing", "psrn")


def test_a_contender_may_be_made_for_the_images():
    process = RestorationProcess(**evaluation_settings(CONFIG))
    fresh = [process.start_image(np.full((48, 48, 3), grey, np.uint8), np.full((48, 48, 3), 2 * grey, np.uint8)) for grey in (30, 60)]

    def search(given, episodes):
        assert given is process and not any(episode.history for episode in episodes)
        planner = Tries()
        planner.name = "found"
        return planner

    told = evaluate(process, {"searched": search}, fresh)
    assert "searched (found) was chosen on these very images" in told.note and told.row("searched").tools == 1
    assert not any(episode.history or episode.executions for episode in fresh)
    with pytest.raises(IrEnvError, match="at least one image"):
        evaluate(process, {"searched": search}, [])


class OwnDataset:
    """As a user may write one."""

    crop_size = 64

    def __init__(self, split="all"):
        self.split = split
        self._inner = SynthesisedDataset(split=split, combos="noise")

    def draw(self, rng):
        return self._inner.draw(rng)

    def load(self, sample):
        return self._inner.load(sample)


class SplitDataset(OwnDataset):
    def heldout(self):
        return OwnDataset("heldout")


def test_a_dataset_is_a_mapping_a_name_a_folder_or_an_object(tmp_path, photo):
    for index in range(3):
        save_image(tmp_path / f"{index}.png", photo[:, 100 * index :][:, :128].copy())
    heldout = set(BuiltinPhotos("heldout").names)
    given = [None, "builtin", str(tmp_path), tmp_path, SplitDataset(), OwnDataset(), {"photos": BuiltinPhotos("train")}]
    tables = [compare({**CONFIG, "dataset": each}, {"nothing": NothingPlanner()}, 4) for each in given]
    photographs = [set(each.photographs) for each in tables]
    assert photographs[0] <= heldout and photographs[1] <= heldout and photographs[4] <= heldout
    assert photographs[2] == photographs[3] and len(photographs[2]) == 1, "one in five is held out, one at least"
    assert "SplitDataset" not in tables[4].note and "OwnDataset, the held-out part" in tables[4].note
    assert ["no held-out part" in each.note for each in tables] == [False] * 5 + [True] * 2
    assert evaluation_settings({"dataset": "builtin"}, "rain")["dataset"] == {"photos": "builtin", "split": "heldout", "combos": "rain"}
    with pytest.raises(IrEnvError, match=r"OwnDataset.*combos='rain'"):
        evaluation_settings({"dataset": OwnDataset()}, "rain")


def test_it_is_saved_without_nan_and_read_back(table, tmp_path):
    table.save(tmp_path / "table.json")
    text = (tmp_path / "table.json").read_text()
    told = json.loads(text, parse_constant=lambda name: pytest.fail(name))
    assert [Row.of(row) for row in told["rows"]] == table.rows and told["differences"][0]["p"] == table.differences[0].p
    assert len(text.splitlines()) < 100, "a list of numbers is one line"
    extra = Row.of({**told["rows"][0], "well_formed": 0.5})
    assert extra.more == {"well_formed": 0.5} and Row.of(extra.as_dict()) == extra
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json({"value": float("nan")}, tmp_path / "nan.json")


def test_scores_that_are_not_defined_are_left_out_and_counted(crop, tmp_path):
    process = RestorationProcess(toolbox=["tv.denoise"], metrics=["psnr", "psnry"], reward="delta_psnr")
    episodes = [process.start_image(crop // (2 + i), crop, f"image {i}") for i in range(3)]
    for episode in episodes:
        process.step([episode], [process.actions.stop])
    episodes[1].scores = [vector * [1, np.nan] for vector in episodes[1].scores]
    row = summarise(process, "mine", episodes, told="more")
    assert row.per_image["psnry"][1] is None and row.metrics["psnry"] == pytest.approx(np.mean([row.per_image["psnry"][i] for i in (0, 2)]))
    table = Table([row], [photo_of(episode.sample) for episode in episodes])
    table.save(tmp_path / "table.json")
    assert "NaN" not in (tmp_path / "table.json").read_text()
    console = Console(width=160, record=True)
    console.print(table.render())
    assert "1 scores are not defined" in " ".join(console.export_text().split())


def test_the_rendered_table_names_its_conventions(table):
    console = Console(width=160, record=True)
    console.print(table.render(more={"formed": lambda row: "[all]"}))
    text = " ".join(console.export_text().split())
    for words in ("12 images of 3 photographs", "too few to trust", "mine less nothing, reward: +", "ir_env 0", "seed 20000", "[all]"):
        assert words in text


def test_seeds_of_one_training_are_compared_by_their_mean(table):
    mean = table.difference(["mine", "nothing"], "nothing")
    alone = table.difference("mine", "nothing")
    assert mean.mean == pytest.approx(alone.mean / 2) and mean.interval == pytest.approx([end / 2 for end in alone.interval])
    assert "the mean of mine, nothing" in str(mean) and table.difference(["mine"], "nothing") == alone


def test_a_narrow_terminal_cuts_no_figure(table):
    console = Console(width=60, record=True)
    table.show(console)
    text = console.export_text()
    assert "…" not in text and "mean reward" in text and f"{table.row('mine').metrics['psnr']:.4g}" in text


def test_one_image_has_no_interval():
    table = compare(CONFIG, {"nothing": NothingPlanner()}, 1)
    assert table.rows[0].interval is None and table.rows[0].normalised is None
    assert "of 1 photograph" in table.render().title


def test_photographs_are_read_off_samples():
    assert photo_of("a/b[8,16,64,64]|rain+haze|3") == "a/b" and photo_of("012|haze|0") == "012"
    assert photo_of("me/photo.png") == "me/photo.png"


def test_the_bootstrap_draws_photographs_and_not_crops():
    rng = np.random.default_rng(0)
    scenes = rng.normal(size=40)
    photographs = np.repeat([f"p{i}" for i in range(40)], 25)
    values = np.repeat(scenes, 25) + rng.normal(scale=0.1, size=1000)
    low, high = bootstrap(values, photographs)
    assert (high - low) / 2 == pytest.approx(1.96 * scenes.std() / np.sqrt(40), rel=0.1)
    crops = bootstrap(values, [str(i) for i in range(1000)])
    assert crops[1] - crops[0] < (high - low) / 4, "crops would look five times as certain as they are"
    assert bootstrap(values, photographs) == [low, high] != bootstrap(values, photographs, seed=1)
    assert bootstrap([1.0, 2.0, None], ["a", "a", "b"]) is None
    # scipy's percentile bootstrap of equally large photographs
    from scipy.stats import bootstrap as theirs

    means = values.reshape(40, 25).mean(1)
    wanted = theirs((means,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(1)).confidence_interval
    assert (low, high) == pytest.approx(tuple(wanted), abs=0.03)


def test_the_bootstrap_weighs_photographs_by_their_images():
    values, photographs = [0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"]
    sums, counts = np.array([0, 3]), np.array([1, 3])
    drawn = [np.bincount(draw, minlength=2) for draw in itertools.product(range(2), repeat=2)]
    means = sorted({float(draw @ sums / (draw @ counts)) for draw in drawn})
    assert bootstrap(values, photographs) == [means[0], means[-1]] == [0, 1]


def test_sign_flips_are_exact_for_few_photographs_and_drawn_for_many():
    from scipy.stats import permutation_test

    assert sign_flips([1.0, 2.0, 3.0], ["a", "b", "c"]) == 2 / 8
    assert sign_flips([1.0, 2.0, 3.0], ["a", "a", "a"]) == 1, "one photograph tells nothing"
    assert sign_flips([0.0, 0.0], ["a", "b"]) == 1
    values = np.random.default_rng(3).normal(0.4, 1, 12)
    for number in (8, 12):
        wanted = permutation_test((values[:number],), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        assert sign_flips(values[:number], list(map(str, range(number)))) == pytest.approx(wanted)
    many = np.random.default_rng(4).normal(0.25, 1, 60)
    wanted = permutation_test((many,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)).pvalue
    assert sign_flips(many, list(map(str, range(60)))) == pytest.approx(wanted, abs=0.01)
