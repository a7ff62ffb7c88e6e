"""Any policy by one word: a planner's name, a fixed plan, or the path of a checkpoint.

RLlib writes its checkpoints with pickle, which runs code when it is read: open only checkpoints that you trust.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ir_env.planner import Planner
from policies.planners import FixedPlan, GreedyPlanner, NothingPlanner, RandomPlanner
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.extras import need

MODULE = Path("learner_group/learner/rl_module/default_policy")
BEFORE_TRAINING = "before_training"
"""The RLModule as it was before the first update, beside the checkpoints of its trial."""
DEFAULT = "simplecall"
"""The policy that comes with the project, for those who have none of their own."""
THRIFTY = "simplecall_thrifty"
"""The same, which takes a tool only where it prefers it clearly."""
REPEATS = 2
"""How often these take a tool: more gains nothing on validation photographs, and on real ones they would repeat one to the end."""
LABELS = "labels"
WEIGHTS = "policy.safetensors"
"""Of a SimpleCall-style policy that is a folder."""
PERCEIVING: dict[str, Callable[..., Planner]] = {
    "traversal": lambda seed, **parts: _traversal(**parts),
    "mair": lambda seed, **parts: _mair(**parts),
    "agenticir": lambda seed, **parts: _agenticir(seed, **parts),
    "4kagent": lambda seed, **parts: _four_k_agent(seed, **parts),
    "restore_agent": lambda seed, **parts: _restore_agent(**parts),
    "q_agent": lambda seed, **parts: _restore_agent(again=False, **parts),
}
"""Those planners that decide by what they perceive, made from a seed and the parts that take the places of the encoder's."""
PLANNERS: dict[str, Callable[[int], Planner]] = {
    "nothing": lambda seed: NothingPlanner(),
    "random": RandomPlanner,
    "greedy": lambda seed: GreedyPlanner(),
    "rl_restore": lambda seed: _rl_restore(),
    **PERCEIVING,
    "all_in_one": lambda seed: _all_in_one(),
    "beam": lambda seed: _beam(),
    DEFAULT: lambda seed: _simplecall(),
    THRIFTY: lambda seed: _simplecall(thrift=3.0),
    "tir_agent": lambda seed: _tir_agent(),
}
"""Name -> planner, made from a seed. Add one of your own here, or pass the object itself wherever a policy is asked for."""
WITHOUT_WEIGHTS = ("nothing", "random", "greedy", "beam", "rl_restore", "all_in_one")
"""Those of them that decide without any weights of ``policies/``; the others have a network of their own, or perceive with the encoder."""


def shipped_weights() -> list[Path]:
    """The files of weights in ``policies/`` that come with the project, sorted."""
    return sorted(Path(__file__).parent.glob("*/weights/**/*.safetensors"))


def _rl_restore() -> Planner:
    from policies.planners.rl_restore import RLRestoreAgent

    return RLRestoreAgent()


def _traversal(**parts: Any) -> Planner:
    from policies.planners.traversal import TraversalPlanner

    return TraversalPlanner(**parts)


def _mair(**parts: Any) -> Planner:
    from policies.planners.mair import MAIRPlanner

    return MAIRPlanner(**parts)


def _agenticir(seed: int, **parts: Any) -> Planner:
    from policies.planners.agenticir import AgenticIRPlanner

    return AgenticIRPlanner(seed=seed, **parts)


def _four_k_agent(seed: int, **parts: Any) -> Planner:
    from policies.planners.four_k_agent import FourKAgentPlanner

    return FourKAgentPlanner(seed=seed, **parts)


def _restore_agent(again: bool = True, **parts: Any) -> Planner:
    from policies.planners.restore_agent import RestoreAgentPlanner

    return RestoreAgentPlanner(again=again, **parts)


def _perceiving_by(name: str, told: str, seed: int) -> Planner:
    """One of :data:`PERCEIVING` that perceives by ``labels``, or by a model, ``URL#MODEL``, which AgenticIR has judge too."""
    if told == LABELS:
        from policies.planners.perception import Labels

        if name == "restore_agent":
            raise IrEnvError("restore_agent looks again after every tool, and labels tell of the first image alone: take q_agent:labels")
        planner = PERCEIVING[name](seed, perceive=Labels())
        planner.needs_reference = True
        return planner
    from policies.planners.vlm_judge import VLMJudge
    from policies.remote import ChatEndpoint

    judge = VLMJudge(ChatEndpoint.at(told))
    parts: dict[str, Any] = {"severity": judge.severity, "compare": judge.latter_is_better} if name == "agenticir" else {}
    planner = PERCEIVING[name](seed, perceive=judge.perceive, **parts)
    planner.name, planner.endpoint = f"{name} ({judge.endpoint.model})", judge.endpoint
    return planner


def _all_in_one(tool: str = "") -> Planner:
    from policies.planners.all_in_one import OWN, AllInOnePlanner

    return AllInOnePlanner(tool or OWN)


def _beam(told: str = "") -> Planner:
    from policies.planners.search import SearchPlanner

    try:
        return SearchPlanner(*map(int, told.split(":") if told else ()))
    except (TypeError, ValueError) as error:
        raise IrEnvError(f"beam:{told}: write beam:WIDTH:LENGTH, such as beam:8:4") from error


def _hub(name: str) -> Planner:
    from policies.pretrained import from_pretrained

    return from_pretrained(f"hf:{name}")


def _remote(told: str) -> Planner:
    from policies.planners.remote_vlm import RemoteVLM
    from policies.remote import ChatEndpoint

    return RemoteVLM(ChatEndpoint.at(told))


def _remote_plan(told: str) -> Planner:
    from policies.opera.vlm import PLAN_TOKENS
    from policies.planners.remote_vlm import RemotePlanVLM
    from policies.remote import ChatEndpoint

    return RemotePlanVLM(ChatEndpoint.at(told, max_tokens=PLAN_TOKENS))


PREFIXES: dict[str, Callable[[str, int], Planner]] = {
    "fixed:": lambda told, seed: FixedPlan([tool for tool in told.split("+") if tool]),
    "all_in_one:": lambda told, seed: _all_in_one(told),
    "beam:": lambda told, seed: _beam(told),
    "hf:": lambda told, seed: _hub(told),
    "thrifty:": lambda told, seed: _thrifty(told, seed),
    "remote:": lambda told, seed: _remote(told),
    "remote-plan:": lambda told, seed: _remote_plan(told),
    **{f"{name}:": partial(_perceiving_by, name) for name in PERCEIVING},
}
"""Beginning of a word that says more -> planner, made from what follows and a seed."""


def _simplecall(thrift: float = 0.0) -> Planner:
    from policies.simplecall.shipped import load_shipped

    planner = load_shipped()
    planner.thrift, planner.repeats = thrift, REPEATS
    return planner


def _thrifty(told: str, seed: int) -> Planner:
    """``BIAS:POLICY``: a SimpleCall-style policy that takes a tool only where it prefers it to stopping by so much, and at most twice."""
    from policies.simplecall.planner import ObservationPlanner

    bias, _, policy = told.partition(":")
    try:
        thrift = float(bias)
    except ValueError:
        raise IrEnvError(f"thrifty:{told}: write thrifty:BIAS:POLICY, such as thrifty:2:simplecall") from None
    if not 0 <= thrift < float("inf"):
        raise IrEnvError(f"thrifty:{told}: BIAS is added to the logit of stop, a number from 0 on")
    planner = load_policy(policy, seed)
    if not isinstance(planner, ObservationPlanner):
        raise IrEnvError(f"thrifty:{told}: {planner.name} has no logit of stop; policies like simplecall have")
    planner.thrift, planner.repeats, planner.name = thrift, REPEATS, f"{planner.name}, thrifty {bias}"
    return planner


def _tir_agent() -> Planner:
    from policies.vlm.planner import VLMPlanner
    from policies.vlm.shipped import SHIPPED

    planner = VLMPlanner.load(SHIPPED)
    planner.name = "tir_agent"
    return planner


class CheckpointError(IrEnvError):
    """No usable checkpoint at a path."""


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint at a path: itself, or the newest one below it (of a trial, an experiment, a results folder)."""
    path = Path(path).expanduser().resolve()
    if (path / MODULE).is_dir():
        return path
    found = sorted((module.parents[len(MODULE.parts) - 1] for module in path.glob(f"**/{MODULE}")), key=lambda p: p.stat().st_mtime)
    if not found:
        what = "holds no RLlib checkpoint" if path.is_dir() else "no such folder"
        raise CheckpointError(f"{path}: {what}. Give a folder like results/NAME/TRIAL/checkpoint_000010, or the run's folder above it.")
    return found[-1]


def planner_of(module, name: str = "policy", env_config: Mapping[str, Any] | None = None) -> Planner:
    """An RLModule as a planner: by its own method ``planner(name, env_config)`` if it has one."""
    if hasattr(module, "planner"):
        return module.planner(name, env_config or {})
    from policies.simplecall.planner import ModulePlanner

    return ModulePlanner(module, name, env_config)


def load_checkpoint(path: str | Path) -> Planner:
    """The policy of a checkpoint, see :func:`find_checkpoint`; raises :class:`CheckpointError`."""
    checkpoint = find_checkpoint(path)
    return _load_module(checkpoint / MODULE, f"trained policy ({checkpoint.name})", checkpoint)


def load_before_training(path: str | Path) -> Planner | None:
    """The policy of a checkpoint as it was before its training began, in the same environment; None if the training did not keep it.

    Raises:
        CheckpointError: no usable checkpoint at the path, or what was kept cannot be loaded.
    """
    checkpoint = find_checkpoint(path)
    kept = checkpoint.parent / BEFORE_TRAINING
    return _load_module(kept, "before training", checkpoint) if kept.is_dir() else None


def _load_module(folder: Path, name: str, checkpoint: Path) -> Planner:
    """The RLModule in a folder as a planner in the environment of a checkpoint."""
    need("ray")
    from ray.rllib.core.rl_module.rl_module import RLModule

    # RLlib warns about how it builds its own modules; importing it sets the levels, so this comes after
    for logger in ("ray.rllib", "ray._common.deprecation"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    env_config = _env_config(checkpoint)
    try:
        module = RLModule.from_checkpoint(folder)
    except IrEnvError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}: the policy cannot be loaded ({type(error).__name__}: {error})") from error
    return planner_of(module, name, env_config)


def _env_config(checkpoint: Path) -> dict[str, Any]:
    try:
        with open(checkpoint / "class_and_ctor_args.pkl", "rb") as file:
            positional, named = pickle.load(file)["ctor_args_and_kwargs"]
        [config] = (*positional, *named.values())
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: its configuration cannot be read ({type(error).__name__}: {error})") from error
    return dict(config["env_config"] if isinstance(config, Mapping) else config.env_config)


def load_policy(policy: str | Path | Planner, seed: int = 0) -> Planner:
    """A planner.

    Args:
        policy: a name of :data:`PLANNERS`; ``fixed:tool+tool`` for a fixed plan; ``all_in_one:tool`` for an all-in-one
            network; ``beam:width:length`` for a search; ``thrifty:BIAS:POLICY`` for one like simplecall that takes a tool only where it
            prefers it clearly; ``remote:URL#MODEL`` for a vision-language model behind an
            endpoint, asked at every step, or ``remote-plan:URL#MODEL``, asked for a whole plan; ``agenticir:URL#MODEL``, and so for all
            :data:`PERCEIVING`, for one that perceives in the encoder's place, or ``agenticir:labels`` for perception that cannot err;
            ``hf:OWNER/NAME`` for a policy of the Hugging Face hub; or the path of a checkpoint (or of a run that holds some), of a
            vision-language policy, of a file that :func:`policies.simplecall.shipped.save_policy` wrote, or of a folder that
            :func:`policies.pretrained.save_pretrained` did.
        seed: for planners that draw.

    Raises:
        UnknownNameError: neither a name nor a path.
        CheckpointError: a path without a usable checkpoint.
    """
    if isinstance(policy, Planner):
        return policy
    if str(policy) in PLANNERS:
        return PLANNERS[str(policy)](seed)
    for prefix, make in PREFIXES.items():
        if str(policy).startswith(prefix):
            return make(str(policy).removeprefix(prefix), seed)
    if not Path(policy).exists():
        raise UnknownNameError(
            "policy",
            str(policy),
            [
                *PLANNERS,
                "fixed:TOOL+TOOL",
                "thrifty:BIAS:POLICY",
                "all_in_one:TOOL",
                "remote:URL#MODEL",
                "remote-plan:URL#MODEL",
                "agenticir:URL#MODEL",
            ],
            "A path to a checkpoint works too, but there is none here.",
        )
    from policies.opera.vlm import PlanSettings, VLMPlanPlanner
    from policies.vlm.planner import SETTINGS, VLMPlanner

    if Path(policy).suffix == ".safetensors":
        from policies.simplecall.shipped import load_shipped

        return load_shipped(policy, Path(policy).stem)
    if (Path(policy) / WEIGHTS).is_file():
        from policies.simplecall.shipped import load_shipped

        return load_shipped(Path(policy) / WEIGHTS, Path(policy).resolve().name)
    if (Path(policy) / PlanSettings.FILE).is_file():
        return VLMPlanPlanner.load(policy)
    if (Path(policy) / SETTINGS).is_file():
        return VLMPlanner.load(policy, seed=seed)
    return load_checkpoint(policy)
