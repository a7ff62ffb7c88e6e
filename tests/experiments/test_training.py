"""`rllib train` and `rllib evaluate` from a user's view: a run, its resumption, its folders, and sweeps."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from experiments.benchmark.learning_curves import read_runs
from experiments.training.early_stopping import ResumableASHA
from experiments.training.experiment_file import ExperimentError, load_experiment
from experiments.training.launch import run_folder, train
from policies.loading import find_checkpoint, load_before_training, load_checkpoint
from tool_actors.errors import IrEnvError


def iterations(text):
    return [int(number) for number in re.findall(r"\biteration +(\d+) ", text)]


# -- a run -------------------------------------------------------------------------------------------------------------------------


def test_a_run_shows_how_it_goes_and_ends_with_a_table(trained):
    said = trained.said.stdout
    assert iterations(said) == [1, 2] and "tools/image" in said and "psnry" in said
    rows = ("trained policy", "before training", "nothing", "random", "best fixed plan", "greedy (oracle)")
    for words in (*rows, "held-out images"):
        assert words in said
    table = json.loads((trained.folder / "heldout.json").read_text())
    assert [row["policy"].partition(":")[0] for row in table["rows"]] and len(table["rows"]) == len(rows) and "(ir_env 0" in table["note"]
    [trial] = [path for path in trained.folder.iterdir() if path.is_dir()]
    events = b"".join(path.read_bytes() for path in trial.glob("events.*"))
    assert b"heldout" in events and b"quality/psnry" in events, "curves and pictures are in TensorBoard"


def test_a_run_is_evaluated_again(trained, command, tmp_path):
    again = command("rllib", "evaluate", trained.folder, "--samples=6", cwd=tmp_path)
    assert again.returncode == 0 and "best fixed plan" in again.stdout and "before training" in again.stdout, again.stderr


def test_the_policy_before_training_is_kept(trained, small):
    before, after = load_before_training(trained.folder), load_checkpoint(trained.folder)
    assert before.env_config == after.env_config and before.name == "before training"
    first, last = before.module.get_state(), after.module.get_state()
    changed = {name for name, value in last.items() if not np.array_equal(value, first[name])}
    assert changed and not any(".encoder." in name for name in changed), "what learns has changed, and the frozen encoder has not"
    assert find_checkpoint(trained.folder).name.startswith("checkpoint_"), "what is untrained is never taken for the newest checkpoint"
    algorithm = load_experiment(small[2], [setting.removeprefix("--set=") for setting in small[3:]]).config.build_algo()
    begun = algorithm.learner_group.get_weights()["default_policy"]
    algorithm.stop()
    for name, value in begun.items():
        np.testing.assert_array_equal(first[name], value, err_msg=f"the same seed begins with the same {name}")


@pytest.fixture(scope="module")
def interrupted(small, tmp_path_factory):
    """Ctrl-C in the middle of a run that would never end, in a process of its own with a Ray of its own: (storage, what it wrote)."""
    storage, root = tmp_path_factory.mktemp("interrupted"), Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
    arguments = [*small, "--storage=.", "--name=mine", "--stop=training_iteration=100000", "--samples=6"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli.rllib", *map(str, arguments)],
        cwd=storage,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watch = threading.Timer(600, os.killpg, (process.pid, signal.SIGKILL))
    watch.start()
    output = ""
    for line in process.stdout:
        output += line
        if line.startswith("iteration    2 "):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Ray's processes, too
    assert process.wait() == 130, output
    watch.cancel()
    return storage, output


def test_an_interrupted_run_goes_on_where_it_was(interrupted, small, command, ray_cluster):
    storage, output = interrupted
    assert "--name mine --resume" in output, output
    reached, [before] = max(iterations(output)), (storage / "mine").glob("*/before_training/module_state.*")
    written = before.stat().st_mtime_ns
    end = f"--stop=training_iteration={reached + 2}"
    resumed = command("rllib", *small[:3], "--storage=.", "--name=mine", "--resume", end, "--samples=0", cwd=storage)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    seen = iterations(resumed.stdout)
    assert reached <= seen[0] <= reached + 2 and seen[-1] == reached + 2, "it neither starts again nor skips"
    assert before.stat().st_mtime_ns == written, "the policy before training is that of the beginning"
    done = command("rllib", *small[:3], "--storage=.", "--name=mine", "--resume", cwd=storage)
    assert done.returncode == 0 and f"it had reached training_iteration={reached + 2}" in done.stdout, "the new end is kept"


# -- folders -----------------------------------------------------------------------------------------------------------------------


def test_a_finished_run_says_so_and_how_to_go_on(trained, small, command):
    files = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*") if path.is_file() and path.name != ".lock"}
    said = command("rllib", *small[:3], "--storage=.", "--name=mine", "--resume", cwd=trained.storage)
    assert said.returncode == 0 and iterations(said.stdout) == []
    assert "finished already: it had reached training_iteration=2" in said.stdout
    assert "--resume --stop training_iteration=4" in said.stdout and f"rllib evaluate {trained.folder}" in said.stdout
    assert files == {path: path.stat().st_mtime_ns for path in files}, "nothing was touched"


def test_runs_that_begin_at_once_have_a_folder_each(tmp_path):
    folders, start = [], threading.Barrier(8)

    def begin():
        start.wait()
        folders.append(run_folder(tmp_path, "mine", resume=False))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {folder.name for folder in folders} == {"mine", *(f"mine-{number}" for number in range(2, 9))}
    assert all(folder.is_dir() for folder in folders)


def test_a_storage_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExperimentError, match="cannot be written"):
        run_folder(tmp_path / "file", "mine", resume=False)


def test_only_runs_of_that_very_name_are_resumed(tmp_path):
    for index, name in enumerate(("mine", "mine-2", "mine-other", "mine-2-other", "other-mine")):
        folder = tmp_path / name
        folder.mkdir()
        for file in ("experiment_state-1.json", "run.json"):
            (folder / file).touch()
        os.utime(folder, (1000 + index, 1000 + index))
    (tmp_path / "mine-3").mkdir()
    assert run_folder(tmp_path, "mine", resume=True).name == "mine-2"
    assert run_folder(tmp_path, "mine-2", resume=True).name == "mine-2"
    for name in ("min", "mine-3", "absent", "mine."):
        with pytest.raises(ExperimentError, match="holds no run to resume"):
            run_folder(tmp_path, name, resume=True)


def test_a_run_that_goes_on_elsewhere_is_left_alone(small, tmp_path):
    """Another process holds the folder."""
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"
    words = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ExperimentError, match="goes on in another process"):
            train(load_experiment(small[2], stop=["training_iteration=1"]), tmp_path, Console(file=StringIO()))
        other.stdin.close()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("num_env_runners=5000", "error: the experiment asks for 4501 CPUs and there are 8"),
        ("minibatch_size={grid_search: [16, 999]}", "error: minibatch_size=999: `minibatch_size` (999) must be <="),
    ],
)
def test_a_run_that_cannot_begin_is_named_and_leaves_no_folder(setting, words, small, command, ray_cluster, tmp_path):
    result = command("rllib", *small, f"--set={setting}", "--storage=.", "--stop=training_iteration=1", cwd=tmp_path)
    assert result.returncode == 2 and words in result.stderr, result.stderr
    assert list(tmp_path.iterdir()) == []


def test_bad_experiments_and_checkpoints_are_named(small, command, tmp_path):
    (tmp_path / "mine.py").write_text("x = 1")
    result = command("rllib", "train", "file", "mine.py", cwd=tmp_path)
    assert result.returncode == 2 and "defines no `config`" in result.stderr
    result = command("rllib", "evaluate", "nowhere", cwd=tmp_path)
    assert result.returncode == 2 and "no such folder" in result.stderr
    result = command("rllib", *small[:3], "--resume", cwd=tmp_path)
    assert result.returncode == 2 and "no run to resume" in result.stderr
    result = command("rllib", *small[:3], "--resume", "--seed=1", cwd=tmp_path)
    assert result.returncode == 2 and "keeps its settings" in result.stderr


# -- sweeps ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_keeps_what_succeeded_and_names_what_failed(small, command, ray_cluster, tmp_path):
    sweep = (*small, "--set=model_config.hidden={grid_search: [[8], wide]}", "--storage=.", "--name=sweep", "--samples=4")
    said = command("rllib", *sweep, "--stop=training_iteration=1", cwd=tmp_path)
    assert said.returncode == 2, said.stdout + said.stderr
    assert "1 of 2 trials failed: model_config.hidden=wide: " in said.stderr and "--name sweep --resume" in said.stderr
    [line] = [line for line in said.stdout.splitlines() if iterations(line)]
    assert line.startswith("model_config.hidden=[8]: iteration "), "progress tells the trial"
    kept = json.loads((tmp_path / "sweep/sweep.json").read_text())
    told = [(trial["trial"], trial["iterations"], bool(trial["error"])) for trial in kept["trials"]]
    assert told == [("model_config.hidden=[8]", 1, False), ("model_config.hidden=wide", 0, True)]
    [table] = kept["tables"]
    assert [row["policy"] for row in table["rows"][:2]] == ["model_config.hidden=[8]", "nothing"]
    first = kept["trials"][0]
    assert load_checkpoint(first["checkpoint"]).env_config["max_steps"] == 2 and first["folder"] in first["checkpoint"]
    assert np.asarray(Image.open(tmp_path / "sweep/sweep.png")).std() > 0
    assert list(read_runs([tmp_path / "sweep"])["mean return"]) == ["sweep, model_config.hidden=[8]"], "a curve per trial"

    again = ("--storage=.", "--name=sweep", "--resume", "--stop=training_iteration=2", "--samples=0")
    said = command("rllib", *small[:3], *again, cwd=tmp_path)
    assert said.returncode == 2 and "model_config.hidden=wide: " in said.stderr, "the failed one was tried again"
    kept = json.loads((tmp_path / "sweep/sweep.json").read_text())
    assert [trial["iterations"] for trial in kept["trials"]] == [2, 0] and kept["tables"] == []


@pytest.mark.slow
def test_trials_that_fall_behind_end_early(small, command, ray_cluster, tmp_path):
    # with one seed the first returns are r, 10 r and r / 10: whatever r, of the last two the one that is less than r falls behind, if they
    # come one after another
    alone = f"--set=num_cpus_for_main_process={ray_cluster.cluster_resources()['CPU']:g}"
    weights = "--set=env_config.reward_weights={grid_search: [{psnry: 1.0}, {psnry: 10.0}, {psnry: 0.1}]}"
    sweep = (
        *small,
        "--set=env_config.reward=delta_iqa",
        weights,
        alone,
        "--storage=.",
        "--name=race",
        "--asha=1",
        "--stop=training_iteration=2",
    )
    said = command("rllib", *sweep, "--samples=0", cwd=tmp_path)
    assert said.returncode == 0 and "1, fell behind" in said.stdout, said.stdout + said.stderr
    first, second, third = json.loads((tmp_path / "race/sweep.json").read_text())["trials"]
    assert first["iterations"] == 2 and not first["early"]
    assert sorted((each["iterations"], each["early"]) for each in (second, third)) == [(1, True), (2, False)]
    again = command("rllib", *small[:3], "--storage=.", "--name=race", "--resume", "--samples=0", cwd=tmp_path)
    assert again.returncode == 0 and "finished already" in again.stdout, "a trial that fell behind is not gone on with"
    further = command("rllib", *small[:3], "--storage=.", "--name=race", "--resume", "--stop=training_iteration=4", cwd=tmp_path)
    assert further.returncode == 2 and "begin another sweep" in further.stderr


@pytest.mark.parametrize(
    ("more", "message"), [(["--asha=1"], "a single training"), (["--set=lr={grid_search: [1, 2]}", "--asha=3"], "fewer than they have")]
)
def test_what_asha_cannot_compare_is_named(small, command, ray_cluster, tmp_path, more, message):
    said = command("rllib", *small, *more, "--stop=training_iteration=3", "--storage=.", "--name=bad", cwd=tmp_path)
    assert said.returncode == 2 and message in said.stderr and not (tmp_path / "bad").exists()


def test_a_resumed_sweep_remembers_the_returns(tmp_path):
    def add(asha, name):
        trial = SimpleNamespace(trial_id=name, storage=SimpleNamespace(trial_dir_name=name, trial_fs_path=str(tmp_path / name)))
        asha.on_trial_add(None, trial)
        return trial

    told = {"training_iteration": 2, "env_runners": {"episode_return_mean": 5.0}}
    (tmp_path / "before").mkdir()
    (tmp_path / "before/result.json").write_text(json.dumps(told) + "\n{cut off")
    asha, forgetful = ResumableASHA(2, 9), ResumableASHA(2, 9)
    add(asha, "before")
    result = {"training_iteration": 2, "env_runners/episode_return_mean": 4.0}
    assert asha.on_trial_result(None, add(asha, "new"), result) == "STOP"
    assert forgetful.on_trial_result(None, add(forgetful, "new"), result) == "CONTINUE"


def test_what_a_sweep_varies(small):
    settings = [setting.removeprefix("--set=") for setting in small[3:]]
    searches = ["env_config.toolbox={grid_search: [[tv.denoise], [tv.denoise, dcp.strong]]}", "lr={grid_search: [1e-3, 1e-4]}"]
    experiment = load_experiment(small[2], [*settings, *searches, "model_config.hidden={grid_search: [[8], [16]]}"])
    assert len(experiment.variants) == 8
    for name, config in experiment.variants.items():
        tools, hidden = config.env_config["toolbox"], config.rl_module_spec.model_config["hidden"]
        assert name == f"env_config.toolbox={tools}, lr={config.lr:g}, model_config.hidden={hidden}"
        assert [tool for _, tool in config.rl_module_spec.model_config["actions"]] == tools, "each policy keeps its own tools"
    assert {(config.lr, len(config.env_config["toolbox"])) for config in experiment.variants.values()} == {
        (lr, tools) for lr in (1e-3, 1e-4) for tools in (1, 2)
    }
    with pytest.raises(IrEnvError, match=r"did you mean 'tv\.denoise'"):
        load_experiment(small[2], [*settings, "env_config.toolbox={grid_search: [[tv.denoise], [tv.denois]]}"])
    alone = load_experiment(small[2], settings)
    assert list(alone.variants) == [""] and alone.variants[""] is alone.config
    drawn = load_experiment(small[2], [*settings, "seed={grid_search: [3, 4]}"])
    assert [config.seed for config in drawn.variants.values()] == [3, 4] and list(drawn.variants) == ["seed=3", "seed=4"]


# -- pools -------------------------------------------------------------------------------------------------------------------------


def test_a_training_on_a_pool_of_its_own(small, command, ray_cluster, tmp_path):
    arguments = ("--set=env_config.executor=pool", "--stop=training_iteration=1", "--samples=0", "--name=pooled", "--storage=.")
    result = command("rllib", *small, *arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    [line] = (tmp_path / "pooled").glob("*/result.json")
    counters = json.loads(line.read_text().splitlines()[-1])["pool"]
    assert counters["requests"] > 0 and counters["failures"] == 0 and counters["executions"] <= counters["requests"]
