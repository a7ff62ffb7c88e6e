"""`ir-env bench` and `ir-env report`, on tiny crops with classical tools."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet
import pytest

from experiments.benchmark import bench as runner
from experiments.benchmark.learning_curves import read_runs
from experiments.benchmark.measure import Entry, metrics_for, policy_at, settle_metrics
from experiments.benchmark.results import load_results
from experiments.benchmark.sets import (
    OUT_OF_DOMAIN,
    TestSet,
    UnseenError,
    check_unseen,
    reordered_share,
    seen_share,
    spread,
    synthesised,
    trained_combos,
    without_seen,
)
from experiments.benchmark.statistics import Resampler, completed, differences, holm, summarise
from experiments.benchmark.tables import against_block, blocks_of, regret_block, to_latex, to_markdown
from experiments.benchmark.tool_use import effects, lengths, orders, task_counts
from ir_env import NothingPlanner
from ir_env.datasets import Sample, SynthesisedDataset
from ir_env.degradations import GROUPS
from ir_env.degradations.combos import parse_combos
from ir_env.evaluation import bootstrap, sign_flips, start_heldout
from ir_env.images import save_image
from ir_env.process import RestorationProcess
from policies.planners import FixedPlan
from tool_actors.tasks import TASK_OF

MINE = """
from ir_env import Planner


class Mine(Planner):
    name = "mine"

    def plan(self, observation):
        return observation.actions.stop if len(observation.history) > 1 else observation.actions.index("tv.denoise")


class Seen(Mine):
    trained_combos = ["A", "noise+rain"]


class Bad(Planner):
    def plan(self, observation):
        raise ValueError("no idea")
"""
SETS = [{"name": "A", "has_reference": True}, {"name": "real", "has_reference": False}]


def row(policy, sample, before, after, quality, tools=(), tasks=(), test="A", **more):
    told = {"policy": policy, "set": test, "sample": sample, "photograph": sample, "combination": "rain+haze"}
    told |= {"before": {"psnr": before}, "after": {"psnr": after}, "quality": quality, "tools": list(tools), "tasks": list(tasks)}
    return {**told, "executions": len(tools), "calls": len(tools) + 1, "seconds": 0.5, "error": "", **more}


# -- statistics ----------------------------------------------------------------------------------------------------------------------


def test_gain_regret_and_normalised_by_hand():
    rows = [
        row("a", "x", 20.0, 24.0, [1.0, 2.0, 1.5], ["p", "q"], ["denoise", "derain"]),
        row("a", "y", 24.0, 23.0, [2.0, 1.0], ["p"], ["denoise"]),
        row("b", "x", 20.0, 20.0, [1.0]),
        row("b", "y", 24.0, 26.0, [2.0, 2.25], ["q"], ["derain"]),
    ]
    whole = completed(rows)
    assert [each["gain"] for each in whole] == [0.5, -1.0, 0.0, 0.25]
    assert [each["regret"] for each in whole] == [0.0, 1.25, 0.5, 0.0]
    assert [each["worse"] for each in whole] == [0, 1, 0, 0]
    # the degraded images have 20 and 24 dB: a spread of 2
    assert [each["normalised"] for each in whole] == [2.0, -0.5, 0.0, 1.0]
    assert whole[0]["step_gains"] == [1.0, -0.5] and whole[2]["step_gains"] == []
    told = summarise(whole, SETS[:1], ["psnr"])
    assert told["overall"]["all"]["a"]["means"] == {
        **{"psnr": 23.5, "gain": -0.25, "normalised": 0.75, "regret": 0.625, "worse": 0.5},
        **{"tools": 1.5, "executions": 1.5, "calls": 2.5, "seconds": 0.5},
    }
    assert told["degradation"]["rain"] == told["combination"]["rain+haze"] == told["set"]["A"] == told["overall"]["all"]
    gain = next(each for each in differences(whole, SETS[:1], ["psnr"]) if each["column"] == "gain")
    # of the two photographs' differences, .5 and -1.25, the sum is as large in all four flips but those to 1.75 and -1.75: all are as large
    assert gain["mean"] == -0.375 and gain["p"] == 1.0 and gain["p_holm"] == 1.0 and gain["interval"] == [-1.25, 0.5]


def test_regret_by_set_and_policies_set_against_one():
    runs = [row("cheap", "x", 20.0, 24.0, [1.0, 2.0], ["p"]), row("cheap", "y", 20.0, 24.0, [1.0, 3.0], ["p"], test="B")]
    runs += [row("dear", "x", 20.0, 22.0, [1.0, 1.5], executions=4), row("dear", "y", 20.0, 23.0, [1.0, 2.0], executions=4, test="B")]
    sets = [{"name": name, "has_reference": True} for name in "AB"]
    whole = completed(runs)
    rows = summarise(whole, sets, ["psnr"])
    block = regret_block(rows)
    assert block.heads == ("policy", "A", "B", "all")
    assert block.rows == (("cheap", "0.00", "0.00", "0.00"), ("dear", "0.50", "1.00", "0.75")) and block.bold == {(0, 1), (0, 2), (0, 3)}
    told = {"rows": rows, "differences": differences(whole, sets, ["psnr"])}
    # all degraded images have 20 dB, so nothing is normalised
    assert against_block(told, ["dear"]).rows == (("cheap", "dear", "+0.00 [+0.00, +0.00]", "1", "+0.75 [+0.50, +1.00]", "25%"),)
    [back] = against_block(told, ["cheap"]).rows
    assert back[4:] == ("-0.75 [-1.00, -0.50]", "400%"), "whichever comes first in the table"


def test_sets_without_clean_images_stay_out_of_the_means_overall():
    whole = completed([row("a", "x", 20.0, 24.0, [1.0, 2.0]), row("a", "z", 30.0, 10.0, [1.0, 0.0], test="real", combination="")])
    told = summarise(whole, SETS, ["psnr"])
    assert told["overall"]["all"]["a"]["means"]["gain"] == 1.0 and told["set"]["real"]["a"]["means"]["gain"] == -1.0
    assert list(told["combination"]) == ["rain+haze"]


@pytest.mark.parametrize("photographs", [["a", "b", "b", "c"], [f"{at % 17}" for at in range(40)]])
def test_many_columns_at_once_are_what_one_is(photographs):
    values = np.random.default_rng(1).normal(0.3, 1, (len(photographs), 3))
    values[1, 2] = np.nan
    resampler = Resampler(photographs)
    for column, interval, p in zip(values.T, resampler.intervals(values), resampler.p(values), strict=True):
        assert interval == pytest.approx(bootstrap(column, photographs)) and p == pytest.approx(sign_flips(column, photographs))
    assert Resampler(["a", "a"]).intervals(np.ones((2, 1))) == [None]


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_tool_use_by_hand():
    rows = completed(
        [
            row("best", "x", 10.0, 20.0, [0.0, 2.0], ["p"], ["derain"]),
            row("best", "y", 10.0, 20.0, [0.0, 2.0], ["p", "q"], ["denoise", "derain"]),
            row("other", "x", 10.0, 16.0, [0.0, 1.0], ["q", "p"], ["denoise", "derain"]),
            row("other", "y", 10.0, 24.0, [0.0, 1.0], ["p", "q"], ["derain", "denoise"]),
        ]
    )
    assert task_counts(rows) == {"best": {"derain": 1.0, "denoise": 0.5}, "other": {"derain": 1.0, "denoise": 1.0}}
    assert lengths(rows)["best"] == {"0": 0.0, "1": 0.5, "2": 0.5}
    spread_of_all = np.std([20, 20, 16, 24])
    assert effects(rows, "best", ["psnr"]) == {"denoise": {"cases": 1, "psnr": pytest.approx(-4 / spread_of_all)}}
    assert effects(rows, "other", ["psnr"], fewer=True) == {"denoise": {"cases": 1, "psnr": pytest.approx(4 / spread_of_all)}}
    assert orders(rows) == {("denoise", "derain"): {"best": (1.0, 1), "other": (0.5, 2)}}


# -- sets ----------------------------------------------------------------------------------------------------------------------------


def test_out_of_domain_sets_are_of_no_group_and_no_named_training_draws_them():
    groups = {frozenset(combo) for group in "ABC" for combo in GROUPS[group]}
    assert [len(OUT_OF_DOMAIN[name]) for name in ("D2", "D35")] == [12, 16]
    assert {len(combo) for combo in OUT_OF_DOMAIN["D2"]} == {2} and {len(combo) for combo in OUT_OF_DOMAIN["D35"]} == {3, 4, 5}
    combos = {combo for own in OUT_OF_DOMAIN.values() for combo in own}
    assert not groups & set(map(frozenset, combos))
    for spec in ("random:1:1:1", "opera:1:1:1", "A,B,C,single"):
        assert not combos & set(parse_combos(spec).entries), spec
    dataset = SynthesisedDataset(crop_size=64, combos=combos)
    for combo in combos:
        side = 16 if "low_resolution" in combo else 64
        assert dataset.load(Sample("chelsea", combo, (0, 0, 64, 64))).degraded.shape == (side, side, 3)


def test_what_a_training_saw_is_not_unseen():
    planner = NothingPlanner()
    assert trained_combos(planner) == set(), "it was not trained"
    planner.env_config = {"dataset": {"photos": "builtin", "combos": "A,jpeg+rain"}}
    seen = trained_combos(planner)
    assert ("jpeg", "rain") in seen and len(seen) == 9
    test = TestSet("D2", {}, unseen=OUT_OF_DOMAIN["D2"])
    check_unseen([test], {"nothing": set(), "groups": set(GROUPS["A"]), "another order": {("rain", "jpeg")}})
    with pytest.raises(UnseenError, match=r"D2 is not unseen: the training of 'mine' saw jpeg\+rain\. Leave out.*--seen drop"):
        check_unseen([test], {"mine": seen})
    assert seen_share(test, seen) == 1 / 12 and seen_share(test, None) is None
    assert reordered_share(test, {("rain", "jpeg"), ("rain", "noise"), ("noise", "rain")}) == 1 / 12 and reordered_share(test, None) is None
    left = without_seen(["A", "D2"], {"mine": seen, "unknown": None})
    assert list(left) == ["D2"] and len(left["D2"]) == 11 and ("jpeg", "rain") not in left["D2"]
    planner.env_config = {"dataset": {"photos": "builtin", "combos": OUT_OF_DOMAIN["D2"]}}
    with pytest.raises(UnseenError, match="saw every combination of D2"):
        without_seen(["D2"], {"mine": trained_combos(planner)})
    planner.env_config, planner.trained_combos = {}, None
    assert trained_combos(planner) is None


@pytest.mark.parametrize("name", ["simplecall", "tir_agent", "mair", "agenticir", "all_in_one"])
def test_the_shipped_policies_say_what_they_learned_from_and_it_is_not_the_out_of_domain_sets(name):
    seen = trained_combos(policy_at(name))
    assert {("rain", "haze"), ("haze",)} <= seen and max(map(len, seen)) == 3
    sets = [TestSet(name, {}, unseen=combos) for name, combos in OUT_OF_DOMAIN.items()]
    check_unseen(sets, {name: seen})
    # of D35 six combinations of three; the all-in-one network learned from few combinations
    told = [reordered_share(test, seen) for test in sets]
    assert told == ([0, 0] if name == "all_in_one" else [1, 6 / 16])


def test_images_are_those_of_the_other_tables(tmp_path, photo):
    for index in range(3):
        save_image(tmp_path / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    sets = synthesised(["A", "C"], str(tmp_path), 64, 9, seed=5)
    process = RestorationProcess({"photos": str(tmp_path), "crop_size": 64, "combos": "A,C"}, ["tv.denoise"], ["psnr"])
    theirs = {episode.sample for episode in start_heldout(process, 9, 5)}
    assert {sample.id for test in sets for sample in test.samples} == theirs
    assert all(sample.combo in GROUPS[test.name] for test in sets for sample in test.samples)


def test_ready_images_are_spread_over_the_combinations():
    samples = [Sample(f"{at}", combo) for combo in (("rain",), ("haze",), ("noise",)) for at in range(5)]
    chosen = spread(samples, 6, 0)
    assert sorted(sample.combo for sample in chosen) == [("haze",)] * 2 + [("noise",)] * 2 + [("rain",)] * 2
    assert chosen == spread(samples, 6, 0) and spread(samples, 3, 0) == chosen[:3] and spread(samples, 0, 0) == samples


# -- the commands --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(tmp_path_factory, command, photo):
    folder = tmp_path_factory.mktemp("bench")
    for index in range(3):
        save_image(folder / "photos" / f"{index}.png", np.roll(photo, 40 * index, axis=1)[:128, :128])
        save_image(folder / "rtts" / "JPEGImages" / f"{index}.png", np.roll(photo, 30 * index, axis=1)[:64, :80])
    (folder / "mine.py").write_text(MINE)
    words = ["bench", "--policy", "nothing", "--policy", "a|b <i>&_=fixed:tv.denoise", "--policy", "mine=mine.py:Mine@classical"]
    words += ["--photos", "photos", "--crop", 64, "--sets", "haze+noise,D2", "--samples", 10, "--real", "rtts"]
    words += ["--metrics", "psnr,psnry,piqe", "--out", "out", "--gallery", 3]
    said = command("ir-env", *words, cwd=folder)
    assert said.returncode == 0, said.stdout + said.stderr
    return folder, words, said


def test_all_results_agree(ran):
    folder, _, said = ran
    results, rows = load_results(folder / "out")
    assert list(results["policies"]) == ["nothing", "a|b <i>&_", "mine"] and "mine" in said.stdout
    assert [(each["name"], each["images"]) for each in results["sets"]] == [("haze+noise", 1), ("D2", 9), ("rtts", 3)]
    assert len(rows) == 3 * 13 and results["policies"]["mine"]["tools"].keys() >= {"tv.denoise", "dcp.light"}
    assert results["versions"]["torch"] and results["machine"]["cores"] and results["image_seed"] == 20_000
    overall = results["rows"]["overall"]["all"]
    table = pyarrow.parquet.read_table(folder / "out" / "results.parquet").to_pylist()
    for name, told in overall.items():
        own = [each for each in table if each["policy"] == name and each["set"] != "rtts"]
        assert told["images"] == len(own) == 10 and told["means"]["psnr"] == pytest.approx(np.mean([each["psnr"] for each in own]))
        assert told["means"]["regret"] == pytest.approx(np.mean([each["regret"] for each in own]))
    assert overall["mine"]["means"]["tools"] == 2 and overall["nothing"]["means"]["gain"] == 0
    assert set(results["rows"]["set"]["rtts"]["mine"]["means"]) & {"psnr", "psnry", "piqe"} == {"piqe"}
    [difference] = [
        each for each in results["differences"] if each["column"] == "gain" and each["second"] == "mine" and each["first"] == "nothing"
    ]
    assert difference["mean"] == pytest.approx(-overall["mine"]["means"]["gain"])

    [block, *_] = blocks_of(results)
    markdown, latex = (folder / "out" / "table.md").read_text(), (folder / "out" / "table.tex").read_text()
    assert to_markdown(blocks_of(results)) in markdown.replace("\r", "") or markdown.startswith(to_markdown([block]).rstrip())
    for cells in block.rows[::2]:
        [first, *_] = [line for line in markdown.splitlines() if line.startswith(f"| {cells[0]} |")]
        assert [cell.strip(" *") for cell in first.split("|")[1:-1]] == list(cells)
        [line, *_] = [line for line in latex.splitlines() if line.startswith(f"{cells[0]} &")]
        plain = re.sub(r"\\textbf\{(.*?)\}(?= &| \\)", r"\1", line.removesuffix(r" \\{}"))
        assert plain.replace(r"\%", "%").split(" & ") == list(cells)
    assert r"| a\|b <i>&\_ |" in markdown and r"a|b <i>\&\_ &" in latex
    assert to_latex([block]).count(r"\begin{tabular}") == 1


def test_only_what_is_missing_is_measured(ran, command, monkeypatch):
    folder, words, _ = ran
    before, _ = load_results(folder / "out")
    done, work = [], runner.work
    monkeypatch.setattr(runner, "work", lambda job: done.append(job) or work(job))
    assert command("ir-env", *words, cwd=folder).returncode == 0 and not done
    [gone] = (folder / "out" / "rows").glob("mine-rtts-*/*[0-9a-f].json")
    chunk = next(path for path in gone.parent.iterdir() if path.name != "settings.json")
    chunk.unlink()
    shutil.rmtree(next((folder / "out" / "gallery").glob("nothing-D2-*")))
    said = command("ir-env", *words, cwd=folder)
    assert said.returncode == 0 and [(job.entry.name, job.for_gallery) for job in done] == [("nothing", True), ("mine", False)]
    after, _ = load_results(folder / "out")

    def timeless(told):
        return json.loads(json.dumps(told), object_hook=lambda part: {key: value for key, value in part.items() if key != "seconds"})

    assert timeless(after["rows"]) == timeless(before["rows"])
    # code of one's own that changed is another policy
    (folder / "mine.py").write_text(MINE.replace("> 1", "> 2"))
    done.clear()
    command("ir-env", *words, cwd=folder)
    assert {job.entry.name for job in done} == {"mine"}
    assert load_results(folder / "out")[0]["rows"]["overall"]["all"]["mine"]["means"]["tools"] == 3


def test_what_goes_wrong_with_one_policy_leaves_the_others(ran, command, tmp_path):
    words = ["--photos", "photos", "--crop", 64, "--sets", "haze", "--samples", 2, "--metrics", "psnr,piqe", "--gallery", 0]
    policies = ["--policy", "nothing", "--policy", "bad=mine.py:Bad"]
    said = command("ir-env", "bench", *policies, *words, "--out", tmp_path / "out", cwd=ran[0])
    assert said.returncode == 2 and "bad, 0.png" in said.stderr and "ValueError: no idea" in said.stderr and "is kept" in said.stderr
    assert list(load_results(tmp_path / "out")[0]["policies"]) == ["nothing"]


def test_a_model_that_does_not_answer_has_no_results(ran, command, tmp_path):
    words = ["--photos", "photos", "--crop", 64, "--sets", "haze", "--samples", 1, "--metrics", "psnr,piqe", "--gallery", 0]
    words += ["--policy", "nothing", "--policy", "model=agenticir:http://127.0.0.1:9/v1#MODEL", "--out", tmp_path / "out"]
    said = command("ir-env", "bench", *words, cwd=ran[0])
    assert said.returncode == 2 and "model, 0.png" in said.stderr and "answers of 'MODEL' did not come" in said.stderr
    assert list(load_results(tmp_path / "out")[0]["policies"]) == ["nothing"] and not list((tmp_path / "out").glob("rows/model-*/*h.json"))


def test_perception_by_labels_cannot_err(ran, command, tmp_path):
    words = ["--photos", "photos", "--crop", 64, "--sets", "haze,noise", "--samples", 4, "--metrics", "psnr,piqe", "--gallery", 0]
    said = command("ir-env", "bench", *words, "--policy", "mair:labels@classical", "--out", tmp_path / "out", cwd=ran[0])
    assert said.returncode == 0, said.stderr
    told, rows = load_results(tmp_path / "out")
    assert told["policies"]["mair:labels"]["needs_reference"]
    assert all(set(each["tasks"]) <= {TASK_OF[each["combination"]]} for each in rows) and any(each["tasks"] for each in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "nothing"], "two policies are named nothing"),
        (["--policy", "=nothing"], "write NAME=POLICY"),
        (["--policy", "seen=mine.py:Seen"], "the training of 'seen' saw noise+rain"),
        (["--against", "mime"], "did you mean 'mine'"),
        (["--policy", "x=mine.py:Nobody"], "no ir_env.Planner"),
        (["--policy", "x=absent.py:Mine"], "cannot be imported"),
        (["--metrics", "psnr,pique"], "did you mean 'piqe'"),
        (["--cdd11", "rtts"], "no such folder"),
        (["--processes", "0"], "at least 1"),
        (["--policy", "labels=restore_agent:labels"], "take q_agent:labels"),
        (["--policy", "model=agenticir:MODEL"], "URL#MODEL"),
        (["--sets", "A,C,B", "--samples", 8], "8 images leave none for C, B"),
    ],
)
def test_bad_input_is_named(ran, command, more, message):
    folder, words, _ = ran
    said = command("ir-env", *words, *more, cwd=folder)
    assert said.returncode == 2 and message in said.stderr, said.stderr


def test_metrics_suit_what_there_is():
    assert settle_metrics("offline")[0] == ("psnr", "psnry", "ssim_ycbcr", "piqe") and "lpips" in settle_metrics("paper")[0]
    assert metrics_for(["psnr", "maniqa"], True) == ("psnr", "maniqa")
    assert metrics_for(["psnr", "maniqa"], False) == ("maniqa", "niqe", "piqe") and metrics_for(["psnr", "piqe"], False) == ("piqe",)
    assert Entry.parse("x=fixed:a+b@c.yaml") == Entry("x", "fixed:a+b", "c.yaml") and Entry.parse("mair") == Entry("mair", "mair")
    assert isinstance(policy_at("fixed:tv.denoise"), FixedPlan)


# -- the report ----------------------------------------------------------------------------------------------------------------------


class WellFormed(HTMLParser):
    """Every element is closed where it should be; addresses are collected."""

    VOID = {"meta", "link", "img", "input", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses, self.ids = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.addresses += [told[name] for name in ("src", "href") if told.get(name)]
        self.ids += [told["id"]] if "id" in told else []
        # closed by itself, as in SVG, or never
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


@pytest.fixture(scope="module")
def report(ran, command):
    folder, *_ = ran
    trial = folder / "training" / "trial"
    trial.mkdir(parents=True)
    lines = [{"training_iteration": at, "env_runners": {"episode_return_mean": at / 2}} for at in (1, 2, 2, 3)]
    (trial / "result.json").write_text("\n".join([*map(json.dumps, lines), '{"training_iter']))
    said = command("ir-env", "report", "out", "--curves", "training", cwd=folder)
    assert said.returncode == 0, said.stderr
    assert read_runs([folder / "training"]) == {"mean return": {"training": [(1, 0.5), (2, 1.0), (3, 1.5)]}}
    return folder / "out" / "report.html"


def test_the_report_stands_alone(report):
    text = report.read_text()
    parsed = WellFormed(text)
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses) and not re.search(r"(?<!data:)https?://", text)
    assert len(set(parsed.ids)) == len(parsed.ids) and {address[1:] for address in parsed.addresses if address[0] == "#"} <= set(parsed.ids)
    assert "a|b &lt;i&gt;&amp;_" in text and "<i>" not in text.partition('<script type="application/json"')[0]
    for word in ('name="viewport"', "prefers-color-scheme: dark", "clip-path", 'type="range"', "Learning curves", "default-src 'none'"):
        assert word in text
    gallery = json.loads(re.search(r'id="gallery-data">(.*?)</script>', text, re.DOTALL)[1])
    assert gallery["policy"] in ("nothing", "a|b <i>&_", "mine")
    assert len(gallery["images"]) == 3 and all(picture.startswith("data:image/webp;base64,") for picture in gallery["pictures"])
    for image in gallery["images"]:
        assert [each["policy"] for each in image["trajectories"]] == ["nothing", "a|b <i>&_", "mine"]
        assert [step["tool"] for step in image["trajectories"][1]["steps"]] == ["", "tv.denoise"]
    assert [image["clean"] is None for image in gallery["images"]] == [False, False, True]


def test_its_script_is_javascript(report):
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    from experiments.benchmark.page import HERE

    assert subprocess.run(["node", "--check", HERE / "page.js"], capture_output=True).returncode == 0


def test_a_browser_shows_it_without_complaint(report, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no browser is installed")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={tmp_path}", "--dump-dom"]
    shown = subprocess.run([browser, *options, f"file://{report}"], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in shown.stderr, shown.stderr
    assert re.search(r"step (\d) of \1: tv.denoise", shown.stdout), "the gallery runs"


def test_a_folder_without_results_is_named(command, tmp_path):
    said = command("ir-env", "report", ".", cwd=tmp_path)
    assert said.returncode == 2 and "holds no results" in said.stderr


def test_other_weights_of_the_project_are_another_version_of_its_policies(monkeypatch, tmp_path):
    from experiments.benchmark import measure

    before = {name: measure.version_of(name) for name in ("nothing", "mair", "simplecall", "tir_agent")}
    (tmp_path / "other.safetensors").write_bytes(b"other")
    monkeypatch.setattr(measure, "shipped_weights", lambda: [tmp_path / "other.safetensors"])
    measure._shipped.cache_clear()
    try:
        assert {name for name, version in before.items() if measure.version_of(name) != version} == {"mair", "simplecall", "tir_agent"}
    finally:
        measure._shipped.cache_clear()
