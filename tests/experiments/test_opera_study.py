"""OPERA's exhaustive study: its definitions on rankings made by hand, and all of it at a small size."""

import json
import shutil

import numpy as np
import pytest

from experiments.opera import exhaustive_study
from experiments.opera.plan_statistics import STATISTICS, all_plans, by_chance, deduplicated, findings, high_performing, rank
from experiments.opera.study_report import summarise
from experiments.resumable import load_rows
from ir_env.datasets import Sample, SynthesisedDataset
from ir_env.images import save_image
from ir_env.metrics import MetricSuite
from tool_actors.errors import IrEnvError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.toolboxes import load_toolbox

TOOLS = {"haze": "dcp.light", "noise": "tv.denoise", "rain": "guided.derain"}
METRICS = ["psnr", "ssim_ycbcr", "gmsd", "niqe", "piqe"]
FULL_REFERENCE = np.array([True, True, True, False, False])


def test_four_tools_make_340_plans():
    plans = all_plans("abcd")
    assert len(plans) == len(set(plans)) == 340 and plans[0] == ("a",) and plans[-1] == ("d",) * 4
    assert all_plans("ab", 2) == [("a",), ("b",), ("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")]


def test_the_best_ranks_first_equals_share_and_what_has_no_value_is_last():
    values = np.array([[3, 3], [1, 1], [3, 3], [np.nan, 2], [np.nan, 7]])
    assert rank(values, np.array([1, -1])).T.tolist() == [[1.5, 3, 1.5, 4.5, 4.5], [3.5, 1, 3.5, 2, 5]]


def test_high_performing_is_good_by_three_metrics_of_both_kinds():
    ranks = np.full((20, 5), 9.0)
    ranks[0, :3] = 1  # by all full-reference metrics, and no other
    ranks[1, [0, 1, 4]] = 2
    ranks[2, [2, 3, 4]] = [1.5, 1, 2]
    ranks[3, [0, 3]] = 1  # by two
    ranks[4, [0, 2, 4]] = [2, 2, 2.5]  # equal ones share a rank behind the top tenth
    ranks[5, 3:] = 1
    assert np.flatnonzero(high_performing(ranks, FULL_REFERENCE)).tolist() == [1, 2]
    assert np.flatnonzero(high_performing(ranks, FULL_REFERENCE, at_least=2)).tolist() == [1, 2, 3]
    assert np.flatnonzero(high_performing(ranks, FULL_REFERENCE, top=0.15)).tolist() == [1, 2, 4]


def test_the_top_tenth_of_340_is_34():
    ranks = np.arange(1.0, 341)[:, None].repeat(5, axis=1)
    assert high_performing(ranks, FULL_REFERENCE).tolist() == [True] * 34 + [False] * 306


def test_findings_on_ranks_made_by_hand():
    plans = all_plans("ab", 2)
    #                 a  b  aa ab ba bb
    ranks = np.array([[4, 6, 1, 2, 3, 5], [4, 6, 1, 3, 2, 5]], float).T
    chosen = np.array([False, False, True, True, False, True])
    assert findings(plans, ["a", "elsewhere"], ranks, chosen) == {
        "high_performing": [3],
        "out_of_scope": [0, 1, 1],
        "out_of_scope_wins": [0],
        "best_out_of_scope": [2.5],
        "best_matched": [1],
        "best_gap": [-1.5],
        "duplicates": [1, 0, 1],
        "rank_with_duplicates": [1, 5],
        "rank_deduplicated": [4, 6],
        "deduplication_loss": [3, 1],
    }
    other = findings(plans, ["b"], ranks, chosen)
    assert other["out_of_scope"] == [1, 1, 0] and other["out_of_scope_wins"] == [1] and other["best_gap"] == [4]
    equal = findings(plans, ["a"], np.ones((6, 2)), ~chosen)
    assert equal["out_of_scope_wins"] == [0] and equal["duplicates"] == [0, 0, 0] and equal["rank_deduplicated"] == []
    assert list(other) == list(STATISTICS)


def test_a_plan_keeps_each_tool_where_it_first_comes():
    assert deduplicated(("a", "b", "a", "c")) == ("a", "b", "c")


def test_by_chance_are_the_shares_of_all_plans():
    # of two degradations two tools make 2 + 4 + 8 + 16 plans, of three 3 + 9 + 27 + 81; 4 + 12 + 24 + 24 plans repeat none
    told = by_chance(all_plans("abcd"), ["ab", "abc"])
    wide = (310 / 340 + 220 / 340) / 2
    assert told == pytest.approx({"out_of_scope": wide, "out_of_scope_wins": wide, "duplicates": 276 / 340})


def test_shares_are_of_the_plans_of_all_images():
    empty = {name: [] for name in STATISTICS}
    images = [{"findings": {**empty, "duplicates": [1.0]}}, {"findings": {**empty, "duplicates": [0.0, 0.0, 1.0]}}]
    told = summarise(images, ["a", "b"])
    assert told["duplicates"]["mean"] == 0.5 and told["duplicates"]["paper"] == 0.776
    assert told["duplicates"]["interval"] == pytest.approx([1 / 3, 1])
    assert told["rank_deduplicated"]["mean"] is None and told["rank_deduplicated"]["interval"] is None


@pytest.fixture(scope="module")
def study(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("study")
    for index in range(2):
        save_image(folder / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    words = ["--photos", folder / "photos", "--out", folder / "out", "--images", 1, "--combos", "haze,noise", "--longest", 2]
    words += ["--tools", ",".join(f"{name}={tool}" for name, tool in TOOLS.items()), "--processes", 1]
    words = [*map(str, words)]
    exhaustive_study.main(words)
    return folder, words


def test_a_tool_runs_once_for_each_plan(study):
    folder, _ = study
    told = json.loads((folder / "out" / "study.json").read_text())
    assert told["plans"] == 12 and told["executions_per_image"] == [12]
    assert list(told["by_combination"]) == ["haze", "noise"] and (folder / "out" / "study.png").stat().st_size > 10_000
    # one plan in ten: the best by a metric, unless two share that
    assert set(told["statistics"]) == set(STATISTICS) and 0 <= told["statistics"]["high_performing"]["mean"] <= 1


def test_the_values_are_those_of_each_plan_run_by_itself(study):
    folder, _ = study
    executor, suite = LocalExecutor(load_toolbox(list(TOOLS.values()))), MetricSuite(METRICS)
    for row in load_rows(folder / "out" / "images"):
        pair = SynthesisedDataset(folder / "photos", crop_size=192).load(Sample.parse(row["sample"]))
        assert pair.reference.shape == (192, 192, 3) and len(row["values"]) == 12
        for plan, values in list(zip(all_plans(list(TOOLS), 2), row["values"], strict=True))[::4]:
            state = ImageState.from_pixels(pair.degraded)
            for name in plan:
                state = executor.run([Request(state, TOOLS[name])])[0].state
            assert values == pytest.approx(suite.score([state.pixels], [pair.reference])[0], rel=1e-4), plan


def test_an_interrupted_study_goes_on_where_it_stopped(study, monkeypatch):
    folder, words = study
    before = (folder / "out" / "study.json").read_text()
    shutil.rmtree(folder / "out" / "images" / "000001")
    measured, measure = [], exhaustive_study.measure
    monkeypatch.setattr(exhaustive_study, "measure", lambda job: measured.append(job["sample"]) or measure(job))
    exhaustive_study.main(words)
    again, first = json.loads((folder / "out" / "study.json").read_text()), json.loads(before)
    assert measured == [first["images"][1]["sample"]] and again["statistics"] == first["statistics"]
    with pytest.raises(IrEnvError, match="longest was 2"):
        exhaustive_study.main([*words, "--longest", "1"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tools", "haze"], "'haze' names no tool"),
        (["--tools", "haze=dcp.light,haze=dcp.strong"], "names a degradation twice"),
        (["--tools", "haze=dcp.light,noise=dcp.lihgt"], "dcp.lihgt"),
        (["--combos", "haze+jpeg"], "names no tool for jpeg"),
        (["--combos", "haze+noise+rain"], "no tool of --tools is out of its scope"),
        (["--metrics", "psnr,gmsd"], "full-reference and no-reference"),
        (["--images", "3"], "holds 2 photographs"),
    ],
)
def test_what_cannot_be_answered_is_said_before_anything_is_run(study, tmp_path, more, message):
    with pytest.raises(IrEnvError, match=message):
        exhaustive_study.main([*study[1], "--out", str(tmp_path / "out"), *more])
    assert not (tmp_path / "out").exists()


def test_the_photographs_are_the_same_in_all_combinations(study):
    dataset = SynthesisedDataset("builtin", crop_size=192, combos=exhaustive_study.COMBOS)
    samples = exhaustive_study.draw_samples(dataset, 4, seed=0)
    assert len(samples) == len(set(samples)) == 4 * 8 and len({sample.photo for sample in samples}) == 4
    assert len({(sample.photo, sample.box) for sample in samples}) == 4
    assert exhaustive_study.draw_samples(dataset, 4, seed=0) == samples != exhaustive_study.draw_samples(dataset, 4, seed=1)
