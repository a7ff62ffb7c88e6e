"""Demonstrations and supervised fine-tuning, at a small size."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from experiments.tir_agent import __main__ as tir_agent
from experiments.tir_agent import ablation, figures, qwen3vl_8b, sft
from experiments.tir_agent import demos as demonstrating
from experiments.tir_agent.curves import grpo_curves, row_curves, smoothed
from experiments.tir_agent.demos import load_demonstrations
from experiments.tir_agent.gpu_memory import Sizes, on_meta, training_bytes, visual_tokens
from experiments.tir_agent.held_out import evaluate_demonstrator, evaluate_traversal
from experiments.tir_agent.pretrain import Seeing
from experiments.tir_agent.sft import Collator, replay
from ir_env.actions import ActionTable
from ir_env.images import save_image
from ir_env.view import View
from policies.vlm.model import VisionLanguageModel
from policies.vlm.planner import PolicySettings, VLMPlanner
from tool_actors.errors import IrEnvError
from tool_actors.executor import ImageState, LocalExecutor, Request
from tool_actors.pool import MCPool
from tool_actors.toolboxes import load_toolbox

TOOLS = ["tv.denoise", "nlm.strong", "dcp.strong", "gamma.brighten"]
COUNTS = ["--count", 60, "--heldout", 8]
CROPS = ["--crop", 64, "--heldout-crop", 96]


def make_demonstrations(folder, photos, *more):
    toolbox = folder / "mine.yaml"
    toolbox.write_text(json.dumps(TOOLS))
    places = ["--photos", photos, "--out", folder / "demos", "--toolbox", toolbox, "--processes", 1]
    demonstrating.main([*map(str, [*places, "--combos", "noise,haze,low_light+noise", *CROPS, *COUNTS, *more])])


def fine_tune(demos, out, *more):
    sizes = ["--batch", 4, "--steps", 4, "--save-steps", 2, "--heldout", 4, "--diversity-images", 2, "--threads", 1, "--processes", 1]
    return sft.main([*map(str, ["--demos", demos, "--out", out, *sizes, *more])])


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp("photos")
    for index in range(5):
        save_image(folder / f"{index}.png", np.roll(photo, 40 * index, axis=1))
    return folder


@pytest.fixture(scope="module")
def demos(tmp_path_factory, photos):
    folder = tmp_path_factory.mktemp("work")
    make_demonstrations(folder, photos)
    return folder / "demos"


def test_a_demonstration_is_what_its_tools_do(demos):
    data, settings = load_demonstrations(demos)
    assert (len(data["train"]), len(data["heldout"])) == (60, 8) and settings["toolbox"] == TOOLS
    assert not {sample.split("[")[0] for sample in data["train"]["sample"]} & {sample.split("[")[0] for sample in data["heldout"]["sample"]}
    assert {row["degraded"].size for row in data["heldout"]} == {(96, 96)}
    executor, actions = LocalExecutor(load_toolbox(TOOLS)), ActionTable(load_toolbox(TOOLS))
    for row in data["train"].select(range(10)):
        assert row["degraded"].size == row["clean"].size == (64, 64)
        assert [actions[actions.index(tool)].task for tool in row["tools"]] == row["tasks"]
        state = ImageState.from_pixels(np.asarray(row["degraded"]))
        for tool in row["tools"]:
            state = executor.run([Request(state, tool)])[0].state
        errors = [np.mean((np.asarray(row["clean"], float) - pixels) ** 2) for pixels in (np.asarray(row["degraded"]), state.pixels)]
        assert (errors[1] < errors[0] and row["gain"] > 0) if row["tools"] else row["gain"] == 0
    assert {tool for tools in data["train"]["tools"] for tool in tools} >= {"dcp.strong", "gamma.brighten"}


def test_interrupted_demonstrations_go_on_and_are_the_same(demos, photos, tmp_path, monkeypatch):
    made = []

    def interrupted(job, demonstrate=demonstrating.demonstrate):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(job["at"])
        return demonstrate(job)

    monkeypatch.setattr(demonstrating, "demonstrate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demonstrations(tmp_path, photos)
    monkeypatch.undo()
    began = (tmp_path / "demos" / "pieces" / "train" / "000000").stat().st_mtime_ns
    with pytest.raises(IrEnvError, match="begun with other settings"):
        make_demonstrations(tmp_path, photos, "--seed", 1)
    assert (tmp_path / "demos" / "pieces" / "train" / "000000").stat().st_mtime_ns == began
    make_demonstrations(tmp_path, photos)
    for split in ("train", "heldout"):
        first, second = (load_demonstrations(folder)[0][split] for folder in (demos, tmp_path / "demos"))
        assert all(first[name] == second[name] for name in ("sample", "tools", "gain"))
    assert not (tmp_path / "demos" / "pieces").exists()


def test_examples_hold_the_images_of_the_trajectory_as_it_is_run(demos):
    rows = load_demonstrations(demos)[0]["train"]
    hazy = rows["combo"].index("haze")
    trajectories = [(hazy, (("dehaze", "dcp.strong"), ("denoise", "tv.denoise"))), (0, ()), (hazy, (("denoise", "tv.denoise"),))]
    whole = PolicySettings(view=View(overview=0, glimpses=0, whole=64), toolbox=TOOLS)
    examples = replay({"demos": str(demos), "policy": whole, "demonstrations": trajectories})
    prompter = whole.prompter(ActionTable(load_toolbox(TOOLS)))
    told = [(each["history"], each["text"]) for each in examples]
    dcp, tv = "dcp.strong", "tv.denoise"
    wanted = [([], dcp), ([dcp], tv), ([dcp, tv], "stop"), ([], "stop"), ([], tv), ([tv], "stop")]
    assert told == [(history, prompter.answer(prompter.actions.index(tool))) for history, tool in wanted]
    assert all(len(each["pictures"]) == 1 for each in examples)
    images = [np.asarray(each["pictures"][0]) for each in examples]
    assert (images[0] == np.asarray(rows[hazy]["degraded"])).all() and (images[4] == images[0]).all()
    [result] = LocalExecutor(load_toolbox(TOOLS)).run([Request(ImageState.from_pixels(images[1]), tv)])
    assert (images[2] == result.state.pixels).all() and (images[5] != images[2]).any()
    every = PolicySettings(view=View(overview=0, glimpses=0, whole=64, images="all"), toolbox=TOOLS)
    third = replay({"demos": str(demos), "policy": every, "demonstrations": trajectories})[2]
    assert len(third["pictures"]) == 3 and third["history"] == [dcp, tv]
    assert all((np.asarray(picture) == image).all() for picture, image in zip(third["pictures"], images[:3], strict=True))


def test_demonstrations_through_the_pool_are_the_same(photos, demos, tmp_path, ray_cluster):
    pool = MCPool.start({"toolbox": TOOLS, "placements": [{"replicas": 1, "num_cpus": 0.5}]}, "demos")
    try:
        make_demonstrations(tmp_path, photos, "--executor", "pool:demos", "--count", 12, "--heldout", 2)
        assert sum(tool["executions"] for tool in pool.status()["services"].values()) > 12
    finally:
        pool.stop()
    ours, theirs = (load_demonstrations(folder)[0]["train"] for folder in (tmp_path / "demos", demos))
    for column in ("sample", "tools", "gain", "executions"):
        assert ours[column] == theirs[column][:12], column


def test_the_loss_is_that_of_the_answer_alone(demos):
    policy = replace(PolicySettings.of("nano"), toolbox=TOOLS)
    prompter = policy.prompter(ActionTable(load_toolbox(TOOLS)))
    vlm = VisionLanguageModel.load("nano", prompter)
    examples = replay({"demos": str(demos), "policy": policy, "demonstrations": [(3, (("dehaze", "dcp.strong"),)), (4, ())]})
    batch = Collator(vlm, prompter)(examples)
    told = [vlm.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert told == [prompter.answer(index) + "<|im_end|>" for index in (2, prompter.actions.stop, prompter.actions.stop)]
    loss = vlm.model(**batch).loss
    vlm.barred_tokens = []  # the trainer's loss knows nothing of them
    prompts = vlm.encode(
        [
            prompter.messages(list(map(np.asarray, each["pictures"])), list(map(prompter.actions.index, each["history"])))
            for each in examples
        ]
    )
    tokens, mask = vlm.encode_answers([each["text"] for each in examples])
    assert loss.item() == pytest.approx(-(vlm.logprobs(prompts, tokens, mask).sum() / mask.sum()).item(), abs=1e-5)


def test_the_tower_learns_from_the_pictures_that_the_policy_is_shown(photo):
    settings = PolicySettings.of("nano")
    prompter = settings.prompter(ActionTable(load_toolbox(TOOLS)))
    vlm = VisionLanguageModel.load("nano", prompter)
    seen = [settings.view.look([image]) for image in (photo, 255 - photo, photo[::-1])]
    batch = {name: torch.from_numpy(np.stack([each[name] for each in seen])) for name in seen[0]}
    network, shown = Seeing(vlm, prompter, len(TOOLS)), []
    hook = network.tower.register_forward_pre_hook(lambda module, arguments: shown.append(arguments[0]))
    told = network(batch)
    hook.remove()
    assert told.shape == (3, 8 + len(TOOLS)) and told.dtype == torch.float32
    asked = vlm.encode([prompter.messages(prompter.pictures(each), ()) for each in seen])
    assert torch.equal(shown[0], asked["pixel_values"])
    told.square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.tower.merger.parameters())
    alone = network({name: each[1:2] for name, each in batch.items()})
    torch.testing.assert_close(alone[0], told[1], atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def tuned(demos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    return folder / "whole", fine_tune(demos, folder / "whole")


def test_fine_tuning_reports_what_it_reached(demos, tuned):
    folder, report = tuned
    assert 0 <= report["well_formed"] <= 1 and report["images"] == 4 and report["demonstrator"]["gain"] > 0
    assert report["diversity"]["rollouts"] == 8 and json.loads((folder / "report.json").read_text()) == report
    edp = json.loads((folder / "edp.json").read_text())
    assert edp["after"]["trajectories"] > edp["before"]["trajectories"] == 60
    assert sum(edp["after"]["tools"]["denoise"].values()) == pytest.approx(1)
    planner = VLMPlanner.load(folder / "policy")
    assert planner.toolbox == TOOLS and planner.settings.view == View() and list((folder / "tensorboard").iterdir())
    assert planner.trained_combos == (load_demonstrations(demos)[1]["combos"],), "for a set that is to be unseen"
    assert all(sum(shares.values()) == pytest.approx(1) for shares in report["diversity"]["tools"].values())


def test_rows_of_the_ablation_stand_beside_one_another(demos, tuned):
    assert ",".join(ablation.ROWS).split(",") == list(ablation.ROWS), "--rows separates them by commas"
    report = json.loads((tuned[0] / "report.json").read_text())
    table = ablation.beside_one_another({"vanilla": report["demonstrator"], "TIR-Agent": report}, demos)
    assert [row.policy for row in table.rows] == ["vanilla", "TIR-Agent"] and len(table.photographs) == 4
    [difference] = table.differences
    assert difference.mean == pytest.approx(report["reward"] - report["demonstrator"]["reward"])
    assert table.row("TIR-Agent").more["diversity"] == report["diversity"] and table.render().row_count == 2


def test_the_demonstrator_is_measured_as_it_can_be_deployed(demos):
    splits, made_with = load_demonstrations(demos)
    row = evaluate_traversal("deployed", splits["heldout"], made_with)
    assert row.images == 8 and row.executions >= row.tools and set(row.metrics) == {"psnr", "psnry", "ssim_ycbcr", "piqe"}
    oracle = evaluate_demonstrator("oracle", splits["heldout"], made_with)
    assert oracle.gain > row.gain and oracle.executions == np.mean(splits["heldout"]["executions"])


def test_an_interrupted_run_ends_the_same(demos, tuned, tmp_path):
    whole = tuned[0]
    shutil.copytree(whole, tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "checkpoint-4")
    shutil.rmtree(tmp_path / "cut" / "policy")
    fine_tune(demos, tmp_path / "cut", "--diversity-images", 0)
    first, second = (load_file(folder / "policy" / "model.safetensors") for folder in (whole, tmp_path / "cut"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(IrEnvError, match="seed was 0"):
        fine_tune(demos, tmp_path / "cut", "--seed", 3)
    with pytest.raises(IrEnvError, match="holds no demonstrations; make some"):
        fine_tune(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.slow
def test_figures_are_drawn_of_what_there_is_and_the_sweep_goes_on(demos, tuned, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(demos, run / "demos")
    shutil.copytree(tuned[0], run / "sft")
    prompter = PolicySettings.of("nano").prompter(ActionTable(load_toolbox(TOOLS)))
    VisionLanguageModel.load("nano", prompter).save(run / "nano")
    PolicySettings.of("nano").save(run / "nano")
    for seed in (0, 1):
        trial = run / f"grpo-{seed}" / "trial"
        trial.mkdir(parents=True)
        told = [{"reward": {"psnr": 20 + at + seed, "piqe": -40 - at}, "weight": {"psnr": 0.5, "piqe": 0.5}} for at in (0, 9, 1, 2)]
        lines = [{"training_iteration": at, "grpo": each} for at, each in zip((1, 2, 2, 3), told, strict=True)]
        (trial / "result.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = grpo_curves(run)
    assert list(curves) == ["grpo-0", "grpo-1"]
    assert curves["grpo-1"]["reward"]["psnr"].tolist() == [21, 22, 23], "an iteration that was repeated counts once, as it was in the end"
    sweep = run / "figures/sweep"
    for point in ("order-0_tool-0", "order-0.3_tool-0.4"):
        shutil.copytree(tuned[0], sweep / point)
    words = ["--run", str(run), "--alpha-orders", "0.5", "--alpha-tools", "0.4", "--images", "4"]
    words += ["--sft", "--batch 4 --steps 1 --threads 1 --processes 1 --rollouts 3 --diversity-images 3"]
    capsys.readouterr()
    figures.main(words)
    told = capsys.readouterr().out
    assert told.count("fine-tuning with") == 1 and "fine-tuning with alpha^t 0.5 and alpha^m 0.4" in told, "what is there is kept"
    assert "figure6.png: left out, it needs the rows w/o decouple" in told
    assert json.loads((sweep / "order-0.5_tool-0.4/settings.json").read_text())["alpha_order"] == 0.5
    assert all((run / f"figures/figure{number}.png").stat().st_size > 20_000 for number in (3, 7))
    figures.main(words)
    assert "fine-tuning with" not in capsys.readouterr().out


def test_smoothing_is_a_running_mean():
    values = np.random.default_rng(0).random(9)
    assert smoothed(values)[4] == pytest.approx(values[2:7].mean()) and smoothed(values)[0] == pytest.approx(values[:3].mean())
    assert smoothed(values[:2]) == pytest.approx([values[:2].mean()] * 2)


@pytest.mark.slow
def test_workers_share_the_examples(demos, tuned, tmp_path):
    """Two workers with two examples each take the same steps as one process with four."""
    words = ["--demos", demos, "--out", tmp_path / "two", "--batch", 2, "--steps", 4, "--save-steps", 2, "--heldout", 4]
    words += ["--diversity-images", 0, "--threads", 1, "--processes", 1, "--workers", 2]
    subprocess.run([sys.executable, "-m", "experiments.tir_agent.sft", *map(str, words)], check=True)
    one, two = (json.loads((folder / "checkpoints/checkpoint-4/trainer_state.json").read_text()) for folder in (tuned[0], tmp_path / "two"))
    assert two["global_step"] == one["global_step"] == 4 and two["epoch"] == pytest.approx(one["epoch"], rel=0.1)
    assert VLMPlanner.load(tmp_path / "two/policy").toolbox == TOOLS
    begun = VisionLanguageModel.load("nano", PolicySettings.of("nano").prompter(ActionTable(load_toolbox(TOOLS)))).model.state_dict()
    ended = load_file(tmp_path / "two/policy/model.safetensors")
    assert any(not torch.equal(value, begun[name]) for name, value in ended.items())


def test_an_adapter_is_trained_on_a_folder(demos, tuned, tmp_path):
    adapter = ["--model", tuned[0] / "policy", "--lora", "r=4,lora_alpha=8", "--steps", 1, "--diversity-images", 0]
    fine_tune(demos, tmp_path / "lora", *adapter)
    assert (tmp_path / "lora" / "policy" / "adapter_model.safetensors").is_file()
    settings = json.loads((tmp_path / "lora" / "settings.json").read_text())
    assert (settings["lr"], settings["epochs"], settings["accumulation"]) == (1e-5, 3, 4), "the paper's, for what is trained already"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_pipeline_and_its_ablation(photos, tmp_path):
    toolbox, out = tmp_path / "mine.yaml", tmp_path / "run"
    toolbox.write_text(json.dumps(TOOLS))
    tune = "--steps 2 --batch 4 --save-steps 2 --heldout 2 --diversity-images 0 --threads 1 --processes 1"
    rollouts = f"num_envs_per_env_runner=8 num_cpus_for_main_process=1 env_config.toolbox={toolbox} env_config.dataset.combos=noise"
    rollouts += " env_config.dataset.crop_size=64"
    stages = {
        "pretrain": f"--states 16 --heldout 6 --crop 64 --epochs 1 --batch 8 --processes 1 --toolbox {toolbox} --work {tmp_path}/work",
        "demos": f"--count 8 --heldout 4 --crop 64 --heldout-crop 64 --combos noise,haze --processes 1 --toolbox {toolbox}",
        "sft": tune,
        "grpo": rollouts,
    }
    command = ["--photos", str(photos), "--out", str(out), "--iterations", "1", "--images", "4"]
    for name, words in stages.items():
        command += [f"--{name}", words]
    tir_agent.main(command)
    table = json.loads((out / "table.json").read_text())
    assert list(table["policies"])[2:] == ["SFT", "SFT + GRPO, seed 0"] and table["images"] == 4
    oracle, _, *ours = table["policies"].values()
    assert (
        oracle["executions"] >= oracle["tools"] and oracle["gain"] > 0 and set(oracle["metrics"]) == {"psnr", "psnry", "ssim_ycbcr", "piqe"}
    )
    assert all(row["executions"] == row["tools"] <= 6 and 0 <= row["well_formed"] <= 1 for row in ours)
    made = (out / "sft/report.json").stat().st_mtime
    tir_agent.main(command)
    assert (out / "sft/report.json").stat().st_mtime == made, "what is done is not done again"

    words = ["--base", out, "--photos", photos, "--out", tmp_path / "ablation", "--rows", "vanilla,w/o alpha^t,w/o w", "--iterations", 2]
    words += ["--images", 2, "--sft", tune, "--grpo", rollouts, "--cpus", 1]
    module = [sys.executable, "-m", "experiments.tir_agent.ablation"]
    subprocess.run([*module, *map(str, words)], check=True)
    rows = json.loads((tmp_path / "ablation/table.json").read_text())
    assert list(rows) == ["vanilla", "w/o alpha^t", "w/o w"] and rows["vanilla"]["well_formed"] == 0
    curve = next((tmp_path / "ablation/trials").glob("*alpha_t*/result.json")).read_text().splitlines()
    iteration, _, row = map(json.loads, curve)
    assert "format_rate" in iteration and row["normalised"] == rows["w/o alpha^t"]["normalised"]
    assert json.loads((tmp_path / "ablation/sft-tools/settings.json").read_text())["alpha_order"] == 0

    curves = row_curves(tmp_path / "ablation")
    assert set(curves) == {"w/o alpha^t", "w/o w"} and set(curves["w/o w"]["reward"]) == {"psnr", "ssim_ycbcr", "piqe"}
    assert all(len(values) == 2 for part in curves["w/o w"].values() for values in part.values())
    few = tune.replace("--heldout 2 --diversity-images 0 ", "")
    words = ["--run", str(out), "--ablation", str(tmp_path / "ablation"), "--alpha-orders", "0.3", "--alpha-tools", "", "--images", "2"]
    figures.main([*words, "--sft", few])
    assert all((out / f"figures/figure{number}.png").stat().st_size > 20_000 for number in (3, 6, 7))


def test_the_large_experiment_stands_beside_the_paper(capsys):
    qwen3vl_8b.main()
    told = capsys.readouterr().out
    assert "8.77 billion parameters" in told and "5e-06" in told
    large = qwen3vl_8b
    assert large.config.group_size == 8 and large.SAMPLERS * large.GROUPS_PER_SAMPLER >= 64 and large.config.advantage == "mar"
    assert set(large.DEVIATIONS) <= set(large.PAPER)
    for name, (paper, here) in large.PAPER.items():
        assert str(here()) == str(paper) or name in large.DEVIATIONS or here() == paper, name


def test_memory_is_counted_as_it_is_used():
    prompter = PolicySettings.of("nano").prompter(ActionTable(load_toolbox(TOOLS)))
    vlm = VisionLanguageModel.load("nano", prompter)
    sizes = Sizes.of(vlm.model)
    assert sizes.parameters == sizes.trained == sum(p.numel() for p in vlm.model.parameters())
    assert Sizes.of(on_meta(vlm.model.config.to_dict())).parameters == sizes.parameters
    prompts = vlm.encode([[{"role": "user", "content": [{"type": "text", "text": "Done: nothing"}]}]])
    cache = vlm.model(**prompts, use_cache=True).past_key_values
    cached = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert cached == sizes.cached * prompts["input_ids"].numel()
    one, eight = (training_bytes(sizes, 1, 60, 40, 10, shards) for shards in (1, 8))
    shown = vlm.encode([prompter.messages([np.zeros((64, 352, 3), np.uint8)], ())])["input_ids"]
    assert (shown == vlm.model.config.image_token_id).sum() == visual_tokens(vlm.model.config.to_dict(), 64, 352) == 22
    assert one["activations of the vision tower"] == 2 * 3 * 192 * 4 * 60, "bfloat16, 3 layers of width 192, 4 patches a token"
    assert one["trained weights, gradients, optimiser"] == 16 * sizes.parameters == 8 * eight["trained weights, gradients, optimiser"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nano_learns_the_form_and_the_task(photos, tmp_path):
    make_demonstrations(tmp_path, photos, "--count", 400, "--heldout", 48)
    sizes = ["--batch", 16, "--steps", 250, "--heldout", 48]
    report = fine_tune(tmp_path / "demos", tmp_path / "sft", *sizes)
    assert report["well_formed"] >= 0.98
    assert report["gain"] > 0.4 * report["demonstrator"]["gain"]
