"""Reads an experiment: a Python file with ``config`` and ``stop``, or a YAML file; and applies ``--set`` to it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tool_actors.errors import IrEnvError, UnknownNameError

OWN_ALGORITHMS = {"GRPO": "policies.grpo.config:GRPOConfig"}
"""Beside those of RLlib."""


class ExperimentError(IrEnvError):
    """An experiment file, or a setting for it, that cannot be used."""


@dataclass
class Experiment:
    """What to train, and until when."""

    name: str
    config: Any
    """An RLlib AlgorithmConfig; it may hold searches, such as ``tune.grid_search([...])``."""
    stop: dict[str, float] = field(default_factory=dict)
    """Result key -> value at which the run ends."""
    pool: dict[str, Any] = field(default_factory=dict)
    """Settings of the run's tool pool, see :class:`tool_actors.pool.PoolConfig`."""
    variants: dict[str, Any] = field(default_factory=dict)
    """What is trained: the config by the name "", or, of a sweep, each of its configs by what is varied in it, see :func:`expand`."""


def load_experiment(path: str | Path, settings: Sequence[str] = (), stop: Sequence[str] = (), seed: int | None = None) -> Experiment:
    """Read an experiment file and apply the command line's settings.

    Args:
        path: a ``.py`` file that defines ``config`` (an AlgorithmConfig) and, if it likes, ``stop`` and ``pool`` (dicts) and ``name`` (of
            the run; by default that of the file); or a ``.yaml`` file in the classic form ``{name: {run: PPO, env: ..., stop: {...},
            config: {...}, pool: {...}}}``, where ``run`` is an algorithm of RLlib, GRPO, or the place of a config class
            (``package.module:Config``).
        settings: ``key=value`` lines, see :func:`apply_setting`.
        stop: ``key=value`` lines that replace the file's ``stop``.
        seed: replaces the config's seed.

    Raises:
        ExperimentError: the file is missing, breaks, or lacks what it must define; or a setting does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise ExperimentError(f"{path}: no such experiment file. Experiments are Python or YAML files, e.g. experiments/simplecall_ppo.py.")
    if path.suffix == ".py":
        experiment = _from_python(path)
    elif path.suffix in (".yaml", ".yml"):
        experiment = _from_yaml(path)
    else:
        raise ExperimentError(f"{path}: an experiment is a .py or a .yaml file")
    for setting in settings:
        apply_setting(experiment.config, setting)
    if stop:
        experiment.stop = {key: _number(key, value) for key, value in map(split_setting, stop)}
    if not experiment.stop:
        raise ExperimentError(
            f"{path}: nothing ends the run. Define stop = {{'training_iteration': 50}} or give --stop training_iteration=50."
        )
    if seed is not None:
        experiment.config.debugging(seed=seed)
    experiment.variants = expand(experiment.config)
    for config in experiment.variants.values():
        _check_environment(config)
    return experiment


def expand(config: Any) -> dict[str, Any]:
    """The configs that a config with searches stands for, by what is varied in each: ``{"lr=0.001, env_config.max_steps=4": ...}``.

    Searches are those of Ray Tune: every combination of the values of ``tune.grid_search([...])`` (in files without Python
    ``{grid_search: [...]}``), and one draw for each ``tune.uniform(...)`` and its like. They may stand for any value of the config, of
    ``env_config`` and of the RLModule's ``model_config``. Without any, the config itself is returned, by the name "".
    """
    from ray.tune.search.variant_generator import generate_variants, parse_spec_vars

    spec = config.rl_module_spec if config._rl_module_spec is not None else None
    values = {**vars(config), "model_config": getattr(spec, "model_config", None)}
    _, drawn, grids = parse_spec_vars(values)
    searched = {name: values[name] for name in {path[0] for path, _ in [*drawn, *grids]}}
    if not searched:
        return {"": config}
    variants = {}
    for chosen, found in generate_variants(searched, random_state=config.seed if isinstance(config.seed, int) else None):
        variant = config.copy(copy_frozen=False)
        for name, value in found.items():
            if name == "model_config":
                variant.rl_module(rl_module_spec=replace(spec, model_config=value))  # pyrefly: ignore[bad-specialization]  it is RLlib's
            else:
                setattr(variant, name, value)
        variants[", ".join(f"{'.'.join(map(str, path)).lstrip('_')}={_short(value)}" for path, value in chosen.items())] = variant
    return variants


def apply_setting(config: Any, setting: str) -> None:
    """Change one value of a config: ``lr=1e-4``, ``env_config.dataset.combos=single``, ``model_config.encoder=clip``.

    A key is an attribute of the AlgorithmConfig, followed by keys of the dicts below it; ``model_config`` is that of the RLModule. The
    value is read as YAML.
    """
    key, value = split_setting(setting)
    head, *rest = key.split(".")
    if head == "model_config":
        target = config.rl_module_spec.model_config
        if not isinstance(target, dict):
            raise ExperimentError(f"--set {key}: this experiment's RLModule takes no model_config")
    elif not hasattr(config, head):
        known = [name for name in vars(config) if not name.startswith("_")]
        raise UnknownNameError("setting", head, known, "Settings are attributes of the AlgorithmConfig.")
    elif not rest:
        setattr(config, head, value)
        return
    else:
        target = getattr(config, head)
    for part in rest[:-1]:
        if not isinstance(target, dict) or part not in target:
            raise ExperimentError(f"--set {key}: there is nothing called {part!r}; known: {', '.join(map(str, target))}")
        target = target[part]
    if not rest or not isinstance(target, dict):
        raise ExperimentError(f"--set {key}: names no single value; write e.g. env_config.max_steps=4")
    target[rest[-1]] = value


def split_setting(setting: str) -> tuple[str, Any]:
    """``"key=value"`` -> (key, value), the value read as YAML (and 1e-4 as the number it is)."""
    import yaml

    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ExperimentError(f"{setting!r}: write key=value, without spaces around the =")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"{setting!r}: the value is not readable ({error})") from error
    return key.strip(), _with_numbers(value)


def _with_numbers(value: Any) -> Any:
    """YAML reads 1e-4 as a text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, list):
        return [_with_numbers(each) for each in value]
    if isinstance(value, dict):
        return {key: _with_numbers(each) for key, each in value.items()}
    return value


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _from_python(path: Path) -> Experiment:
    name = f"ir_env_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except IrEnvError:
        raise
    except Exception as error:
        line = next((frame.tb_lineno for frame in _frames(error) if frame.tb_frame.f_code.co_filename == str(path)), None)
        where = f", line {line}" if line else ""
        raise ExperimentError(f"{path}{where}: the file cannot be run ({type(error).__name__}: {error})") from error
    from ray import cloudpickle
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    config = getattr(module, "config", None)
    if not isinstance(config, AlgorithmConfig):
        found = "defines no `config`" if config is None else f"its `config` is a {type(config).__name__}"
        raise ExperimentError(f"{path}: {found}; it must define `config`, an RLlib AlgorithmConfig such as PPOConfig().environment(...)")
    # classes that the file defines must reach worker processes, which cannot import it by name
    cloudpickle.register_pickle_by_value(module)
    name = str(getattr(module, "name", path.stem))
    return Experiment(name, config, dict(getattr(module, "stop", {})), dict(getattr(module, "pool", {})))


def _from_yaml(path: Path) -> Experiment:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ExperimentError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(content, Mapping) or len(content) != 1 or not isinstance(next(iter(content.values())), Mapping):
        raise ExperimentError(f"{path}: it must hold one experiment, `name: {{run: PPO, env: ..., stop: {{...}}, config: {{...}}}}`")
    [(name, body)] = content.items()
    unknown = set(body) - {"run", "env", "stop", "config", "module", "model_config", "learner", "callbacks", "pool"}
    if unknown or "env" not in body:
        raise ExperimentError(f"{path}: {f'unknown entries {sorted(unknown)}' if unknown else 'the entry env is missing'}")
    from ray.rllib.algorithms.registry import ALGORITHMS  # importing by Tune's registry would import them all
    from ray.rllib.core.rl_module import RLModuleSpec

    run = str(body.get("run", "PPO"))
    if run in OWN_ALGORITHMS or ":" in run:
        config = _import(OWN_ALGORITHMS.get(run, run), path)()
    elif run in ALGORITHMS:
        _, config = ALGORITHMS[run]()
    else:
        raise UnknownNameError("algorithm", run, [*OWN_ALGORITHMS, *ALGORITHMS], f"It stands in {path}; or write package.module:Config.")
    config.environment(body["env"], env_config=dict((body.get("config") or {}).get("env_config") or {}))
    for key, value in (body.get("config") or {}).items():
        if not hasattr(config, key):
            raise UnknownNameError("setting", key, [n for n in vars(config) if not n.startswith("_")], f"It stands in {path}.")
        setattr(config, key, value)
    if "module" in body:
        spec = RLModuleSpec(module_class=_import(body["module"], path), model_config=dict(body.get("model_config") or {}))
        config.rl_module(rl_module_spec=spec)
    if "learner" in body:
        config.training(learner_class=_import(body["learner"], path))
    if "callbacks" in body:
        config.callbacks(_import(body["callbacks"], path))
    return Experiment(str(name), config, dict(body.get("stop") or {}), dict(body.get("pool") or {}))


def _import(place: str, path: Path) -> Any:
    module, _, name = str(place).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ExperimentError(f"{path}: {place!r} cannot be imported ({error}); write package.module:Class") from error


def _check_environment(config: Any) -> None:
    """Make the environment once, so that a wrong setting is named here and not by a worker; pin its toolbox, and tell the module.

    An action is an index into the toolbox, so a policy must keep the list of tools that it learned on, not the name of a list.
    """
    import gymnasium

    import ir_env  # noqa: F401  # registers them

    name = str(config.env).rpartition(":")[2]
    if name not in ("ir_env/Restoration-v0", "ir_env/RestorationPlan-v0"):
        return

    try:
        # the pool that it may run on is started later
        arguments: dict[str, Any] = {**config.env_config, "executor": "local"}
        made = gymnasium.make_vec(name, config.num_envs_per_env_runner, vectorization_mode="vector_entry_point", **arguments)
        env: Any = made.unwrapped
    except TypeError as error:
        raise ExperimentError(f"env_config: {error}; its keys are the arguments of {name}") from error
    config.env_config["toolbox"] = env.process.executor.toolbox.references
    spec = config.rl_module_spec
    if isinstance(spec.model_config, dict):
        told = {name: _from_anywhere(value) for name, value in spec.model_config.items()}
        told["actions"] = [[action.task, action.tool] for action in env.actions]
        config.rl_module(rl_module_spec=replace(spec, model_config=told))


def _from_anywhere(value: Any) -> Any:
    """A relative path to a folder, such as a model's, as an absolute one: a checkpoint is used from other folders, too."""
    return str(Path(value).resolve()) if isinstance(value, str) and "/" in value and Path(value).is_dir() else value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ExperimentError(f"--stop {key}={value}: the value must be a number")
    return value


def _frames(error: BaseException):
    frame = error.__traceback__
    while frame is not None:
        yield frame
        frame = frame.tb_next
