"""Files and folders of `ir-env restore`: each photograph once, as it was, in a tree like its own, and no result twice."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from experiments.cli.ir_env import main
from experiments.restore import restore_all
from experiments.restore_files import Output, find
from ir_env.images import load_image, save_image
from tool_actors.errors import IrEnvError

BRIGHTEN = ("--policy=fixed:gamma.brighten", "--scores=off", "--processes=1")
NOTHING = ("--policy=nothing", "--scores=off", "--processes=1")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def restored(folder="restored"):
    return sorted(str(os.path.relpath(os.path.join(place, name), folder)) for place, _, names in os.walk(folder) for name in names)


# -- what is not pixels --------------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_comes_back_as_it_was(crop, capsys):
    """Doing nothing to a photograph loses nothing of it, in any format that can hold it."""
    random = np.random.default_rng(0)
    deep = random.integers(0, 65536, (64, 80, 3)).astype(np.uint16)
    floats = random.random((64, 80)).astype(np.float32)
    alpha = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0)
    cv2.imwrite("deep.png", deep)
    cv2.imwrite("float.tif", floats)
    Image.fromarray(np.dstack([crop, alpha])).save("rgba.png")
    Image.fromarray(crop).convert("L").save("grey.png")
    exif = Image.Exif()
    exif[0x0112], exif[271], exif[0x8825] = 6, "TestCam", {1: "N"}
    Image.fromarray(crop[:48]).save("turned.jpg", exif=exif, dpi=(300, 300))
    assert main(["restore", ".", *NOTHING, "--grey=keep", "-o", "out"]) == 0
    assert "note" not in capsys.readouterr().out
    assert np.array_equal(cv2.imread("out/deep_restored.png", cv2.IMREAD_UNCHANGED), deep)
    assert np.array_equal(cv2.imread("out/float_restored.tif", cv2.IMREAD_UNCHANGED), floats)
    assert np.array_equal(np.asarray(Image.open("out/rgba_restored.png")), np.dstack([crop, alpha]))
    assert Image.open("out/grey_restored.png").mode == "L"
    with Image.open("out/turned_restored.jpg") as file:
        told = file.getexif()
        assert file.size == (48, 64) and told.get(0x0112, 1) == 1 and told[271] == "TestCam" and told.get_ifd(0x8825) == {1: "N"}
        assert file.info["dpi"] == (300, 300) and told[0x0131].startswith("ir_env ") and "nothing" in told[0x9213]


def test_16_bits_are_kept_through_a_tool_and_8_bit_tools_are_said(crop, capsys):
    cv2.imwrite("deep.png", crop.astype(np.uint16) * 257 + 37)
    plans = {"fixed:nlm.strong": "8 bits", "fixed:tv.denoise": ""}
    for plan, told in plans.items():
        assert main(["restore", "deep.png", f"--policy={plan}", "--scores=off", "-o", "out"]) == 0
        said = capsys.readouterr().out
        assert (told in said) if told else ("note" not in said)
    written = cv2.imread("out/deep_restored.png", cv2.IMREAD_UNCHANGED)
    assert written.dtype == np.uint16 and len(np.unique(written)) > 2000, "more than 8 bits can tell"


def test_format_quality_and_ending_are_chosen(crop, capsys):
    Image.fromarray(np.dstack([crop, crop[..., 0]])).save("a.png")
    assert main(["restore", "a.png", *NOTHING, "--format=jpg", "--suffix=-mended"]) == 0
    assert Image.open("restored/a-mended.jpg").format == "JPEG" and "transparency" in capsys.readouterr().out
    sizes = []
    for quality in (95, 30):
        assert main(["restore", "a.png", *NOTHING, "--format=jpg", f"--quality={quality}"]) == 0
        sizes.append(os.path.getsize("restored/a_restored.jpg"))
    assert sizes[1] < sizes[0] / 2
    assert main(["restore", "a.png", *NOTHING, "--format=nonsense"]) == 2
    assert "cannot be written" in capsys.readouterr().err
    Image.fromarray(crop).save("b.gif")
    assert main(["restore", "b.gif", *NOTHING]) == 0
    assert "it is written as .png" in capsys.readouterr().out and os.path.exists("restored/b_restored.png")


# -- folders -------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_mirrored_and_what_is_skipped_is_counted(crop, capsys):
    for name in ("a.png", "a.jpg", "below/a.jpg", "below/deep/b.webp", ".hidden/c.png", ".d.png"):
        save_image(f"photos/{name}", crop)
    for name in ("notes.txt", "film.mov", "raw.nef"):
        open(f"photos/{name}", "w").close()
    assert main(["restore", "photos", *BRIGHTEN]) == 0
    images = [name for name in restored() if "_restored" in name]
    assert images == ["a-jpg_restored.jpg", "a-png_restored.png", "below/a_restored.jpg", "below/deep/b_restored.webp"]
    summary = capsys.readouterr().err
    assert "4 restored; skipped: 3 no images (" in summary and "1 .nef" in summary


@pytest.mark.parametrize("out", [".", "restored", "photos/out"])
def test_the_same_command_twice_makes_the_same_files_and_restores_no_result(out, crop, capsys):
    for name in ("photos/a.png", "photos/below/a.jpg", "photos/b.bmp", "photos/c.jp2", "photos/d.tif"):
        save_image(name, crop)
    command = ["restore", "photos" if out != "." else ".", *BRIGHTEN, "-o", out]
    assert main(command) == 0
    first = restored(".")
    assert main(command) == 0
    assert restored(".") == first and len(first) == 20
    assert ("earlier restoration" in capsys.readouterr().err) == (out != "restored")
    assert main([*command, "--skip-existing"]) == 0
    output = capsys.readouterr()
    assert not output.out and "5 restored before" in output.err


def test_results_are_skipped_wherever_they_lie_unless_asked_for(crop, capsys):
    save_image("a.png", crop)
    assert main(["restore", "a.png", *BRIGHTEN]) == 0
    os.rename("restored/a_restored.png", "renamed.png")
    assert main(["restore", "renamed.png", *BRIGHTEN]) == 0
    output = capsys.readouterr()
    assert "1 is a result of an earlier restoration" in output.err and "renamed" not in output.out
    assert main(["restore", "renamed.png", *BRIGHTEN, "--again"]) == 0
    assert "restored/renamed_restored.png" in capsys.readouterr().out


def test_no_photograph_is_overwritten(crop):
    save_image("p.png", crop)
    save_image("p_restored.png", crop)  # a photograph that is called so
    before = Path("p_restored.png").read_bytes()
    assert main(["restore", "p.png", *BRIGHTEN, "-o", "."]) == 0
    assert Path("p_restored.png").read_bytes() == before and os.path.exists("p-2_restored.png")
    for place in "xy":
        save_image(f"{place}/q.png", crop)
    assert main(["restore", "x/q.png", "y/q.png", *BRIGHTEN, "-o", "out"]) == 0
    traces = {name: json.loads(Path(f"out/{name}_trace.json").read_text())["image"] for name in ("q", "q-2")}
    assert traces == {"q": "x/q.png", "q-2": "y/q.png"}


def test_patterns_options_and_positions_stand_for_photographs_once(crop, capsys):
    for name in ("photos/a.png", "photos/below/b.png", "c.png"):
        save_image(name, crop)
    assert main(["restore", "photos/**/*.png", "-i", "c.png", "-i", "./c.png", *BRIGHTEN, "-o", "out"]) == 0
    assert [name for name in restored("out") if "_restored" in name] == ["a_restored.png", "below/b_restored.png", "c_restored.png"]
    assert main(["restore", "*.tif", *BRIGHTEN]) == 2
    assert "no file is of this pattern" in capsys.readouterr().err
    assert main(["restore", *BRIGHTEN]) == 2
    assert "nothing to restore" in capsys.readouterr().err
    os.mkdir("[odd]")
    save_image("[odd]/a*.png", crop)
    assert [str(job.path) for job in find(["[odd]", "[odd]/a*.png"], Output()).jobs] == ["[odd]/a*.png"]


def test_a_dry_run_tells_the_plan_and_writes_nothing(crop, capsys):
    save_image("a.png", crop)
    assert main(["restore", "a.png", "--dry-run", "--policy=simplecall", "--max-steps=1", "--scores=off"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("would write restored/a_restored.png  (") and "first: " in told and "%" in told
    assert os.listdir() == ["a.png"]


# -- choice and speed ----------------------------------------------------------------------------------------------------------------


def test_tools_and_tasks_are_left_out(crop, capsys):
    save_image("a.png", crop)
    assert main(["restore", "a.png", "--policy=fixed:gamma.brighten+tv.denoise", "--without=brighten", "--scores=off"]) == 0
    told = capsys.readouterr().out
    assert "(tv.denoise; " in told and "not run: gamma.brighten (it is left out by what was asked for)" in told
    assert main(["restore", "a.png", "--tasks=denoise", "--max-steps=2", "--scores=off"]) == 0
    steps = json.loads(Path("restored/a_trace.json").read_text())["steps"][1:]
    assert {step["task"] for step in steps} <= {"denoise", None} and set(steps[0]["thought"]) and sum(steps[0]["thought"].values()) <= 1.001
    assert main(["restore", "a.png", "--without=denoize"]) == 2
    assert "did you mean 'denoise'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "size"), [("--scale=2", (128, 96)), ("--scale=4", (256, 192)), ("--size=100", (100, 75)), ("--size=32", (32, 24))]
)
def test_a_size_is_reached(option, size, photo):
    Image.fromarray(photo[:48, :64]).convert("RGBA").save("a.png")
    assert main(["restore", "a.png", *NOTHING, option]) == 0
    assert Image.open("restored/a_restored.png").size == size and Image.open("restored/a_restored.png").mode == "RGBA"


def test_devices_and_tiles_that_are_not_there_are_named(crop, capsys):
    save_image("a.png", crop)
    for option, told in (("--device=cudda", "is not known"), ("--tile=10", "too small")):
        assert main(["restore", "a.png", *BRIGHTEN, option]) == 2
        assert told in capsys.readouterr().err


def test_scores_are_of_a_view_of_bounded_size(photo):
    from experiments.restore_trace import VIEW, middle

    large = np.tile(photo, (4, 3, 1))
    assert middle(large).shape == (VIEW, VIEW, 3) and middle(photo) is not large and middle(photo).shape == photo.shape


def test_processes_share_the_work_and_a_killed_one_loses_its_photograph_alone(crop, capsys, monkeypatch):
    """With processes that are threads here: to start real ones takes seconds each."""
    from concurrent.futures import ThreadPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    from experiments import restore

    def in_process(job, output):
        if job.path.name == "b.png":
            raise BrokenProcessPool("killed")
        return real(job, output)

    real = restore._in_process
    monkeypatch.setattr(restore, "_in_process", in_process)
    monkeypatch.setattr(
        restore, "_pool", lambda workers, settings: ThreadPoolExecutor(workers, initializer=restore._begin, initargs=(settings,))
    )
    for name in "abc":
        save_image(f"{name}.png", crop)
    assert restore_all(["."], "fixed:gamma.brighten", Output("out", scores="off"), processes=2) == 2
    output = capsys.readouterr()
    assert "error: b.png: the process that restored it was ended" in output.err and "2 restored, 1 failed: b.png" in output.err
    assert len(output.out.splitlines()) == 2


def test_how_many_processes_there_are(monkeypatch):
    from experiments import restore

    jobs = find([], Output()).jobs + [None] * 6
    monkeypatch.setattr(restore, "_cores", lambda: 4)
    for size, policy, expected in ((1, "nothing", 1), (10 << 20, "nothing", 3), (10 << 20, "random", 1)):
        monkeypatch.setattr(restore, "_size", lambda job, size=size: size)
        assert restore._workers(None, jobs, policy, {"device": "cpu"}) == expected
    assert restore._workers(8, jobs, "nothing", {}) == 6


# -- several images in a file, and what is no file -----------------------------------------------------------------------------------


def test_an_animation_moves_after_its_restoration_and_all_pages_are_restored(crop, capsys):
    frames = [Image.fromarray(np.roll(crop, shift, 1)) for shift in (0, 8, 16)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:], duration=[40, 80, 200], loop=0)
    frames[0].save("b.tif", save_all=True, append_images=frames[1:])
    assert main(["restore", "a.gif", "b.tif", *BRIGHTEN, "-o", "out"]) == 0
    printed = capsys.readouterr().out
    assert "3 frames (as the first)" in printed and "3 pages (gamma.brighten; gamma.brighten; gamma.brighten)" in printed
    with Image.open("out/a_restored.png") as moving, Image.open("out/b_restored.tif") as pages:
        assert moving.n_frames == pages.n_frames == 3
        assert moving.info["duration"] == 40 and np.asarray(pages).mean() > crop.mean() + 5
        pages.seek(2)
        assert np.array_equal(np.asarray(pages)[:, 16:], np.asarray(Image.open("out/b_restored.tif"))[:, :-16])
    assert main(["restore", "a.gif", *BRIGHTEN, "-o", "first", "--frames=first"]) == 0
    assert getattr(Image.open("first/a_restored.png"), "n_frames", 1) == 1 and "this is the first" in capsys.readouterr().out


def test_a_pipe_is_named_and_not_waited_for(crop, capsys):
    save_image("a.png", crop)
    os.mkfifo("pipe.png")
    assert main(["restore", ".", *BRIGHTEN]) == 2
    output = capsys.readouterr()
    assert "error: pipe.png: no regular file" in output.err and "1 restored, 1 failed" in output.err


# -- strength and precision ----------------------------------------------------------------------------------------------------------


def test_strength_mixes_what_a_tool_made_with_the_image(photo):
    from policies import restore

    whole, half, nothing = (restore(photo, "fixed:gamma.brighten", strength=strength).array for strength in (1.0, 0.5, 0.0))
    assert np.array_equal(nothing, photo) and np.abs(half.astype(float) - (whole.astype(float) + photo) / 2).max() <= 1
    small = photo[:40, :48]
    enlarged = [restore(small, "fixed:x4.edge", strength=strength).array for strength in (1.0, 0.5)]
    assert np.array_equal(*enlarged), "what enlarges has no strength"
    with pytest.raises(IrEnvError, match="strength must be 0 to 1"):
        restore(photo, "nothing", strength=1.5)


def test_bf16_is_near_and_fp16_on_a_cpu_is_refused_with_the_reason(crop):
    from policies import Restorer

    exact, near = (Restorer("fixed:noise.gaussian25", precision=name, device="cpu") for name in ("fp32", "bf16"))
    difference = np.abs(exact(crop).pixels.astype(int) - near(crop).pixels)
    assert 0 < difference.max() <= 6
    tools = [restorer.process.executor.toolbox["noise.gaussian25"].spec.fingerprint for restorer in (exact, near)]
    assert tools[0] != tools[1], "a cache must tell them apart"
    with pytest.raises(IrEnvError, match="fp16 is slower than fp32 on a CPU: give --precision bf16"):
        Restorer("nothing", precision="fp16", device="cpu")


# -- from Python ---------------------------------------------------------------------------------------------------------------------


def test_one_line_restores_an_array_an_image_or_a_path(crop):
    from policies import restore

    alpha = np.dstack([crop, crop[..., 0]])
    for array in (crop, crop[..., 0], alpha, crop.astype(np.uint16) * 257, crop.astype(np.float32) / 255):
        result = restore(array, "fixed:tv.denoise")
        assert result.array.dtype == array.dtype and result.array.shape == array.shape and result.tools == ("tv.denoise",)
        assert not np.array_equal(result.array, array) and np.asarray(result).shape == array.shape
    save_image("a.png", crop)
    expected = restore(crop, "fixed:tv.denoise").array
    assert np.array_equal(np.asarray(restore(Image.fromarray(crop), "fixed:tv.denoise").image), expected)
    assert restore("a.png", "fixed:tv.denoise").save("b.png") == [] and np.array_equal(load_image("b.png"), expected)


def test_a_policy_is_a_folder_and_the_hub_is_asked_for_others(monkeypatch, crop):
    import huggingface_hub

    from policies import from_pretrained, load_policy, push_to_hub, save_pretrained

    shipped = load_policy("simplecall")
    save_pretrained(shipped, "mine", {"trained": "by me"})
    assert sorted(os.listdir("mine")) == ["README.md", "policy.json", "policy.safetensors"]
    assert json.loads(Path("mine/policy.json").read_text())["trained"] == "by me"
    calls = {}

    class Hub:
        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, name, **options):
            calls["made"] = name, options
            return f"https://hub/{name}"

        def upload_folder(self, **options):
            calls["files"] = sorted(os.listdir(options["folder_path"]))

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert push_to_hub(shipped, "me/mine", private=True, token="secret") == "https://hub/me/mine"
    assert calls == {
        "token": "secret",
        "made": ("me/mine", {"private": True, "exist_ok": True}),
        "files": ["README.md", "policy.json", "policy.safetensors"],
    }
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: "mine" if name == "me/mine" else 1 / 0)
    for policy in (from_pretrained("mine"), from_pretrained("me/mine"), load_policy("hf:me/mine"), load_policy("mine")):
        weights, theirs = (each.network.state_dict() for each in (policy, shipped))
        assert all((weights[name] == theirs[name]).all() for name in theirs)
    with pytest.raises(IrEnvError, match=r"hf:me/other: .*cannot be had from the Hugging Face hub \(ZeroDivisionError"):
        load_policy("hf:me/other")
