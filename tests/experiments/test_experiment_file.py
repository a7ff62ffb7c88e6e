from pathlib import Path

import pytest

from experiments.training.experiment_file import ExperimentError, apply_setting, load_experiment, split_setting
from tool_actors.errors import IrEnvError, UnknownNameError

PPO = "experiments/simplecall_ppo.py"


@pytest.fixture(scope="module", autouse=True)
def _in_repository(request):
    import os

    before = os.getcwd()
    os.chdir(request.config.rootpath)
    yield
    os.chdir(before)


def test_the_shipped_experiment_and_its_settings():
    experiment = load_experiment(
        PPO,
        ["lr=1e-4", "env_config.dataset.combos=single", "env_config.max_steps=3", "model_config.hidden=[32, 32]", "num_env_runners=0"],
        ["training_iteration=2"],
        seed=7,
    )
    config = experiment.config
    assert (experiment.name, experiment.stop) == ("simplecall_ppo", {"training_iteration": 2})
    assert config.lr == 1e-4 and config.num_env_runners == 0 and config.seed == 7
    assert config.env_config["dataset"]["combos"] == "single" and config.env_config["max_steps"] == 3
    assert config.rl_module_spec.model_config["hidden"] == [32, 32]
    assert config.env_config["toolbox"][0] == "noise.gaussian25", "the toolbox is pinned to its list of tools"


def test_the_yaml_form_equals_the_python_form():
    yaml, python = load_experiment("experiments/simplecall_ppo.yaml"), load_experiment(PPO)
    assert yaml.stop == python.stop
    for name in (
        "env",
        "env_config",
        "lr",
        "gamma",
        "lambda_",
        "num_epochs",
        "minibatch_size",
        "train_batch_size_per_learner",
        "entropy_coeff",
    ):
        assert getattr(yaml.config, name) == getattr(python.config, name), name
    assert yaml.config.rl_module_spec.module_class is python.config.rl_module_spec.module_class
    assert yaml.config.rl_module_spec.model_config == python.config.rl_module_spec.model_config
    assert yaml.config.learner_class is python.config.learner_class
    assert yaml.config.callbacks_class is python.config.callbacks_class
    assert yaml.config.num_env_runners == python.config.num_env_runners


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines no `config`"),
        ("config = {'lr': 1}", "`config` is a dict"),
        ("config = 1 / 0", r"line 1: the file cannot be run \(ZeroDivisionError"),
        ("import not_a_package_of_ours", "not_a_package_of_ours"),
        ("from ray.rllib.algorithms.ppo import PPOConfig\nconfig = PPOConfig()", "nothing ends the run"),
    ],
)
def test_bad_python_files(tmp_path, text, words):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ExperimentError, match=words):
        load_experiment(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not readable"),
        ("a: {run: PPO}", "env is missing"),
        ("a: {run: PPO, env: CartPole-v1, confg: {}}", "confg"),
        ("a: {run: PPQ, env: CartPole-v1}", "unknown algorithm 'PPQ'"),
        ("a: {run: PPO, env: CartPole-v1, config: {learning_rate: 1}}", "learning_rate"),
        ("a: {run: PPO, env: CartPole-v1, module: 'nowhere:X'}", "cannot be imported"),
    ],
)
def test_bad_yaml_files(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(IrEnvError, match=words):
        load_experiment(tmp_path / "mine.yaml")


def test_absent_and_other_files(tmp_path):
    with pytest.raises(ExperimentError, match="no such experiment file"):
        load_experiment(tmp_path / "absent.py")
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(ExperimentError, match=r"a \.py or a \.yaml"):
        load_experiment(tmp_path / "x.txt")


def test_bad_settings():
    config = load_experiment(PPO).config
    with pytest.raises(UnknownNameError, match="did you mean 'gamma'"):
        apply_setting(config, "gama=0.9")
    with pytest.raises(ExperimentError, match="key=value"):
        apply_setting(config, "gamma")
    with pytest.raises(ExperimentError, match="nothing called 'data'"):
        apply_setting(config, "env_config.data.combos=A")
    with pytest.raises(ExperimentError, match="must be a number"):
        load_experiment(PPO, stop=["training_iteration=soon"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("env_config.metrics=[psnyr]", "unknown metric 'psnyr'"),
        ("env_config.toolbox=clasical", "unknown toolbox"),
        ("env_config.max_stepz=3", "max_stepz"),
        ("env_config.dataset.photos=nowhere", "no such folder"),
        ("env_config.dataset.combos=rian", "rian"),
        ("env_config.group_size=5", "multiple of group_size"),
    ],
)
def test_a_wrong_environment_is_named_before_anything_starts(setting, words):
    with pytest.raises(IrEnvError, match=words):
        load_experiment(PPO, [setting])


def test_values_are_read_as_yaml():
    assert split_setting("a=1e-4") == ("a", 1e-4)
    assert split_setting("a=[1, 2]") == ("a", [1, 2])
    assert split_setting("a=null") == ("a", None)
    assert split_setting("a=x=y") == ("a", "x=y")


def test_yaml_takes_our_algorithm_and_that_of_a_package(tmp_path):
    from policies.grpo.config import GRPOConfig

    for run in ("GRPO", "policies.grpo.config:GRPOConfig"):
        file = tmp_path / "mine.yaml"
        config = "{group_size: 4, num_envs_per_env_runner: 8, env_config: {toolbox: [tv.denoise]}}"
        file.write_text(f"mine: {{run: '{run}', env: 'ir_env:ir_env/Restoration-v0', stop: {{training_iteration: 1}}, config: {config}}}")
        experiment = load_experiment(file)
        assert isinstance(experiment.config, GRPOConfig) and experiment.config.group_size == 4
    file.write_text("mine: {run: GRPQ, env: x, stop: {training_iteration: 1}}")
    with pytest.raises(UnknownNameError, match="did you mean 'GRPO'"):
        load_experiment(file)


def test_a_models_folder_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "results/policy").mkdir(parents=True)
    experiment = Path("experiments/tir_agent/nano.py").resolve()
    monkeypatch.chdir(tmp_path)
    config = load_experiment(experiment, ["model_config.model=results/policy", "num_envs_per_env_runner=8"]).config
    assert config.rl_module_spec.model_config["model"] == str(tmp_path / "results/policy")
    config = load_experiment(experiment, ["model_config.model=Qwen/Qwen3-VL-8B-Instruct", "num_envs_per_env_runner=8"]).config
    assert config.rl_module_spec.model_config["model"] == "Qwen/Qwen3-VL-8B-Instruct"
