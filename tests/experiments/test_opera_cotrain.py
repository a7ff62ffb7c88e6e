import json

import numpy as np
import pytest
import torch

from experiments.opera import chain_memory, cotrain, interpolate, soup, tool_behaviour
from experiments.opera.crops import PlannedCrops, single_part
from experiments.opera.executed import compare_by_group
from experiments.opera.plans import Planned, make_plans, split_by_photograph
from ir_env.datasets import Pair, Sample, load_photos
from ir_env.images import save_image
from ir_env.process import RestorationProcess
from policies.planners import FixedPlan
from tool_actors import losses
from tool_actors.cotraining import Part
from tool_actors.errors import IrEnvError
from tool_actors.threads import limit_threads
from tool_actors.toolbox import Tool, ToolSpec
from tool_actors.toolboxes import load_toolbox


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(4):
        save_image(folder / f"{index}.png", np.roll(photo[:96, :96], 24 * index, axis=1))
    return str(folder)


@pytest.fixture
def offline(monkeypatch):
    """Without attempts to download, which take seconds."""

    def unreachable(device):
        raise OSError("no network")

    monkeypatch.setattr(losses, "_LOADERS", {name: load if name == "l1" else unreachable for name, load in losses._LOADERS.items()})


def _arguments(photos, out, *more):
    given = {"--photos": photos, "--heldout": photos, "--out": out, "--policy": "fixed:noise.gaussian25+jpeg.quality25"}
    given |= {"--toolbox": "learned", "--combos": "noise+jpeg,rain+haze", "--images": 8, "--planned-crop": 64, "--crop": 32}
    given |= {"--epochs": 2, "--batch": 4, "--samples": 4, "--lr": 1e-3}
    return [str(each) for pair in given.items() for each in pair] + list(more)


@pytest.fixture(scope="module")
def learned(photos, tmp_path_factory):
    """The folder of a tiny training, and what it printed."""
    patch = pytest.MonkeyPatch()
    patch.setattr(losses, "_LOADERS", {"l1": losses._LOADERS["l1"], **{name: _unreachable for name in losses.TARGETS if name != "l1"}})
    out = tmp_path_factory.mktemp("cotrained")
    assert cotrain.main(_arguments(photos, out)) == 0
    patch.undo()
    return out


def _unreachable(device):
    raise OSError("no network")


def test_the_command_makes_a_toolbox_and_a_table(learned):
    old, new = load_toolbox("learned"), load_toolbox(learned / "toolbox" / "toolbox.yaml")
    assert new.names == old.names
    changed = {one.spec.name for one, other in zip(old, new, strict=True) if one.spec.fingerprint != other.spec.fingerprint}
    assert {"noise.gaussian25", "jpeg.quality25"} <= changed
    table = json.loads((learned / "table.json").read_text())
    assert table["groups"]["all"]["images"] == 4 and set(table["groups"]) == {"A", "all"}
    cell = table["groups"]["all"]["psnr"]
    assert cell["difference"] == pytest.approx(cell["after"] - cell["before"]) and cell["difference"] != 0
    assert [row["epoch"] for row in json.loads((learned / "history.json").read_text())] == [0, 1, 2]


def test_plans_are_kept_and_the_same_command_goes_on(learned, photos, tmp_path, offline, monkeypatch, capsys):
    """Cut off after the first epoch, it makes no plan anew, and ends with the same weights."""
    saves, save = [], cotrain._save

    def interrupted(path, state):
        save(path, state)
        saves.append(path.name)
        if saves[-1] == "state.pt":
            raise KeyboardInterrupt

    monkeypatch.setattr(cotrain, "_save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cotrain.main(_arguments(photos, tmp_path))
    monkeypatch.setattr(cotrain, "_save", save)
    plans = (tmp_path / "plans.json").stat().st_mtime_ns
    monkeypatch.setattr(cotrain, "evaluate", lambda *arguments: None)
    assert cotrain.main(_arguments(photos, tmp_path)) == 0
    assert (tmp_path / "plans.json").stat().st_mtime_ns == plans
    whole, resumed = (load_toolbox(folder / "toolbox" / "toolbox.yaml") for folder in (learned, tmp_path))
    assert [tool.spec.fingerprint for tool in whole] == [tool.spec.fingerprint for tool in resumed]
    with pytest.raises(IrEnvError, match="batch was 4"):
        cotrain.main(_arguments(photos, tmp_path, "--batch", "2"))
    limit_threads(1)


def test_terms_have_the_papers_weight_unless_told(photos, tmp_path):
    assert cotrain._terms("l1, musiq=0.02") == {"l1": losses.TARGETS["l1"], "musiq": 0.02}
    for words, message in (("l1=much", "a weight is a number"), ("l1,psnr", "unknown term of the loss 'psnr'")):
        with pytest.raises(IrEnvError, match=message):
            cotrain.main(_arguments(photos, tmp_path, "--terms", words))


def test_plans_are_what_the_policy_applies(photos, tmp_path):
    process = RestorationProcess({"photos": photos, "crop_size": 64, "combos": "noise"}, "learned", metrics=["psnr"])
    policy = FixedPlan(["noise.gaussian25", "haze.thin"])
    planned = make_plans(process, policy, 3, 0, tmp_path / "plans.json")
    assert [each.tools for each in planned] == [("noise.gaussian25", "haze.thin")] * 3
    assert make_plans(process, policy, 3, 0, tmp_path / "plans.json") == planned
    with pytest.raises(IrEnvError, match="other images"):
        make_plans(process, policy, 3, 1, tmp_path / "plans.json")


def test_photographs_to_validate_on_are_others():
    planned = [Planned(Sample(f"{index % 5}.png", ("noise",), None, index), ("x",)) for index in range(20)]
    learn, validate = split_by_photograph(planned)
    assert len(validate) == 4 and not {each.sample.photo for each in learn} & {each.sample.photo for each in validate}


class Ramps:
    """A dataset whose degraded images are the clean ones, or every fourth pixel of them."""

    crop_size = 64

    def load(self, sample):
        y, x = np.mgrid[:64, :64]
        clean = np.stack([y, x, y + x], axis=-1).astype(np.uint8)
        return Pair(clean[::4, ::4] if "low_resolution" in sample.combo else clean, clean)


@pytest.mark.parametrize("combo", ["noise", "low_resolution"])
def test_crops_of_degraded_and_clean_lie_at_one_place(combo):
    planned = [Planned(Sample(f"{index}.png", (combo,)), ("a", "b")) for index in range(4)]
    crops = PlannedCrops(Ramps(), planned, load_toolbox(["haze.thin"]), 32)
    seen = set()
    for seed in range(8):
        part = crops.part([0, 1, 2, 3], np.random.default_rng(seed))
        ratio = 4 if combo == "low_resolution" else 1
        assert part.plan == ("a", "b") and part.clean.shape == (4, 3, 32, 32) and part.degraded.shape[-1] == 32 // ratio
        flipped = part.clean[:, 1, 0, 0] > part.clean[:, 1, 0, -1]
        clean = torch.where(flipped[:, None, None, None], part.clean.flip(3), part.clean)
        degraded = torch.where(flipped[:, None, None, None], part.degraded.flip(3), part.degraded)
        assert torch.equal(degraded, clean[..., ::ratio, ::ratio])
        corners = (clean[:, :2, 0, 0] * 255).round().int()
        assert not (corners % (8 * ratio)).any()
        seen |= {tuple(corner) for corner in corners.tolist()}
    assert len(seen) > 2


def test_images_that_are_judged_as_a_whole_are_not_cut():
    planned = [
        Planned(Sample("0.png", ("haze",)), ("noise.gaussian25", "haze.thin")),
        Planned(Sample("1.png", ("noise",)), ("noise.gaussian25",)),
    ]
    crops = PlannedCrops(Ramps(), planned, load_toolbox(["noise.gaussian25", "haze.thin"]), 32)
    assert [crops.part([place], np.random.default_rng(0)).clean.shape[-1] for place in (0, 1)] == [64, 32]


def test_a_tool_alone_sees_its_degradation_and_clean_images(photos):
    toolbox, source = load_toolbox(["noise.gaussian45", "x4.fidelity"]), load_photos(photos)
    part = single_part(toolbox[0], source, 3, 1, 32, np.random.default_rng(0))
    differences = (part.degraded - part.clean).abs().mean((1, 2, 3))
    assert part.plan == ("noise.gaussian45",) and (differences[:2] > 0.05).all() and differences[2] == 0
    assert single_part(toolbox[1], source, 2, 2, 32, np.random.default_rng(0)).degraded.shape == (2, 3, 8, 8)


def test_differences_by_group():
    combos = [("noise", "jpeg"), ("haze", "noise"), ("noise", "jpeg"), ("rain", "noise")]
    planned = [Planned(Sample(f"{index}.png", combo), ()) for index, combo in enumerate(combos)]
    told = compare_by_group(planned, {"psnr": [20.0, 20, 20, 20]}, {"psnr": [21.0, 19, 23, 20]})
    assert {group: row["psnr"]["difference"] for group, row in told.items()} == {"A": 2, "B": -1, "other": 0, "all": 0.75}
    assert told["A"]["images"] == 2 and told["A"]["psnr"]["interval"] == pytest.approx([1, 3])


def test_what_tools_do_by_themselves(learned, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(tool_behaviour, "_with_lpips", lambda console: ("psnr", "gmsd"))
    arguments = ["--photos", photos, "--toolbox", learned / "toolbox" / "toolbox.yaml", "--before", "learned", "--out", tmp_path]
    arguments += ["--clean", 3, "--single", 2, "--crop", 64, "--tools", "noise.gaussian25", "jpeg.quality25"]
    assert tool_behaviour.main([*map(str, arguments)]) == 0
    told = json.loads((tmp_path / "tool_behaviour.json").read_text())
    assert set(told["tools"]["misuse"]) == {"noise.gaussian25", "jpeg.quality25"}
    assert len(told["tools"]["misuse"]["noise.gaussian25"]["before"]["psnr"]) == 3
    assert told["summary"]["misuse"]["psnr"]["difference"] != 0
    with pytest.raises(IrEnvError, match="no tool of learned has other weights"):
        tool_behaviour.main(["--photos", photos, "--toolbox", "learned", "--before", "learned"])


def test_tools_halfway_between_two_toolboxes(learned, tmp_path):
    after = learned / "toolbox" / "toolbox.yaml"
    assert interpolate.main(["--before", "learned", "--after", str(after), "--out", str(tmp_path / "half")]) == 0
    toolboxes = load_toolbox("learned"), load_toolbox(after), load_toolbox(tmp_path / "half" / "toolbox.yaml")
    assert toolboxes[2].names == toolboxes[0].names
    for name in toolboxes[0].names:
        first, last, half = (torch.cat([weight.flatten() for weight in each[name].module.parameters()]) for each in toolboxes)
        # written in half precision
        assert torch.allclose(half, (first + last) / 2, rtol=1e-3, atol=1e-6)
        if name == "noise.gaussian25":
            assert not torch.equal(first, last)
    with pytest.raises(IrEnvError, match="no network of learned has other weights"):
        interpolate.main(["--before", "learned", "--after", "learned", "--out", str(tmp_path / "same")])
    with pytest.raises(IrEnvError, match="--share is from more than 0 to 1"):
        interpolate.main(["--after", str(after), "--share", "1.5"])


def test_memory_grows_with_the_chain_and_less_with_checkpointing():
    [tool] = load_toolbox(["noise.gaussian25"])
    one, three = (chain_memory.measure([tool] * length, 1, 32, False, "cpu") for length in (1, 3))
    kept = chain_memory.measure([tool] * 3, 1, 32, True, "cpu")
    assert 2.8 < three["forward"] / one["forward"] < 3.2
    # the states alone, 3 channels of float32 each
    assert 2 * 3 * 32 * 32 * 4 <= kept["forward"] <= 3 * 3 * 32 * 32 * 4 + 1024 and kept["peak"] < 1.2 * one["peak"]


class Scale(Tool):
    """Multiplies: what a chain of such makes is known by hand."""

    def __init__(self, name, factor):
        self.spec, self.factor = ToolSpec(name, "brighten", fingerprint=f"{factor}"), factor

    def __call__(self, images):
        return images * self.factor


def test_a_soup_takes_of_each_tool_what_serves_the_plans():
    """Clean images of 0.8 stand degraded at 0.2: "twice" makes half of the way and "again" the rest, if both are right."""
    tools = {name: Scale(name, 1.0) for name in ("twice", "again", "unused")}
    candidates = {name: {"before": tool, "after": Scale(name, 2.0), "wrong": Scale(name, 0.5)} for name, tool in tools.items()}
    low, clean = torch.full((3, 3, 16, 16), 0.2), torch.full((3, 3, 16, 16), 0.8)
    parts = [Part(("twice", "again"), low[:2], clean[:2]), Part(("twice",), 2 * low[2:], clean[2:])]
    even = {name: dict.fromkeys(each, 30.0) for name, each in candidates.items()}
    told = soup.choose(tools, candidates, parts, even, 0.5, 2)
    assert told["chosen"] == {"twice": "after", "again": "after", "unused": "before"}
    far, half, right = -20 * np.log10(0.6), -20 * np.log10(0.4), 80.0
    assert told["plans"] == pytest.approx({"before": (2 * far + half) / 3, "after": right}, abs=1e-3)
    first = {"after": (2 * half + right - 2 * far - half) / 3, "before": 0.0}
    assert {name: told["gains"][0]["twice"][name] for name in first} == pytest.approx(first, abs=1e-3), "the others as chosen so far"
    assert told["gains"][0]["unused"] == {"before": 0.0, "after": 0.0, "wrong": 0.0}

    costly = even | {"again": {"before": 30.0, "after": 30.0 - 1000, "wrong": 30.0}}
    assert soup.choose(tools, candidates, parts, costly, 0.5, 2)["chosen"]["again"] == "before", "it would forget too much"


def test_a_soup_of_toolboxes(learned, photos, tmp_path):
    words = ["--photos", photos, "--policy", "fixed:noise.gaussian25+jpeg.quality25", "--before", "learned", "--combos", "noise+jpeg"]
    words += ["--images", "4", "--crop", "64", "--alone", "0", "--rounds", "1", "--out", str(tmp_path)]
    with pytest.raises(IrEnvError, match="has other weights than that of the same name before"):
        soup.main([*words, "--after", "learned"])
    for wrong, message in ((["--crop", "50"], "multiple of 32"), (["--tools", "noise.gausian25"], "did you mean 'noise.gaussian25'")):
        with pytest.raises(IrEnvError, match=message):
            soup.main([*words, "--after", str(learned / "toolbox" / "toolbox.yaml"), *wrong])
    try:
        assert soup.main([*words, "--after", str(learned / "toolbox" / "toolbox.yaml")]) == 0
    except IrEnvError as error:
        assert "serves these plans better" in str(error)
    told = json.loads((tmp_path / "soup.json").read_text())
    changed = {name for name, choice in told["chosen"].items() if choice != "before"}
    assert told["plans"]["after"] >= told["plans"]["before"] and changed <= {"noise.gaussian25", "jpeg.quality25"}, (
        "no plan tells of others"
    )
    if changed:
        made = load_toolbox(tmp_path / "toolbox" / "toolbox.yaml")
        old = load_toolbox("learned")
        assert {name for name in old.names if made[name].spec.fingerprint != old[name].spec.fingerprint} == changed
    limit_threads(1)
