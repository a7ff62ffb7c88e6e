"""Trained RLlib policies as planners.

RLlib writes its checkpoints with pickle, which runs code when it is read: open only checkpoints that you trust.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ir_env.spaces import view
from policies.planners.base import Observation, Planner
from tool_actors.errors import IrEnvError

MODULE = Path("learner_group/learner/rl_module/default_policy")
VOTES = (0.5, 0.0, 1.0)
"""Where along each side of a large image the policy looks; it looks at every pair of these."""


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
    return module.planner(name, env_config or {}) if hasattr(module, "planner") else ModulePlanner(module, name, env_config)


def load_checkpoint(path: str | Path) -> Planner:
    """The policy of a checkpoint, see :func:`find_checkpoint`; raises :class:`CheckpointError`."""
    from ray.rllib.core.rl_module.rl_module import RLModule

    # RLlib warns about how it builds its own modules; importing it sets the levels, so this comes after
    for name in ("ray.rllib", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)
    checkpoint = find_checkpoint(path)
    env_config = _env_config(checkpoint)
    try:
        module = RLModule.from_checkpoint(checkpoint / MODULE)
    except IrEnvError:
        raise
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: the policy cannot be loaded ({type(error).__name__}: {error})") from error
    return planner_of(module, f"trained policy ({checkpoint.name})", env_config)


def _env_config(checkpoint: Path) -> dict[str, Any]:
    try:
        with open(checkpoint / "class_and_ctor_args.pkl", "rb") as file:
            positional, named = pickle.load(file)["ctor_args_and_kwargs"]
        [config] = (*positional, *named.values())
    except Exception as error:
        raise CheckpointError(f"{checkpoint}: its configuration cannot be read ({type(error).__name__}: {error})") from error
    return dict(config["env_config"] if isinstance(config, Mapping) else config.env_config)


class ModulePlanner(Planner):
    """A SimpleCall-style RLModule as a planner: the most probable action.

    It sees squares of native pixels of the size it was trained on. On a larger image it looks at nine squares (centre, edges and
    corners) and averages the probabilities, as RL-Restore votes over patches.

    Args:
        module: an RLModule for ``ir_env/Restoration-v0``.
        name: for tables.
        env_config: the ``env_config`` it was trained with.
    """

    def __init__(self, module, name: str = "policy", env_config: Mapping[str, Any] | None = None):
        self.module, self.name, self.env_config = module, name, dict(env_config or {})
        self.toolbox = self.env_config.get("toolbox")
        self.size = module.observation_space["image"].shape[0]
        self.max_steps = module.observation_space["history"].shape[0]

    def plan(self, observation: Observation) -> int:
        return self.plan_batch([observation])[0]

    def plan_batch(self, observations: Sequence[Observation]) -> list[int]:
        import torch
        from ray.rllib.core.columns import Columns

        if len(observations[0].action_mask) != self.module.action_space.n:
            raise CheckpointError(
                f"{self.name} knows {self.module.action_space.n} actions, the toolbox gives {len(observations[0].action_mask)}: "
                "use the toolbox that it was trained with"
            )
        views, owners = [], []
        for owner, observation in enumerate(observations):
            large = min(observation.image.shape[:2]) > self.size
            for centre in [(y, x) for y in VOTES for x in VOTES] if large else [(0.5, 0.5)]:
                views.append(view(observation.image, self.size, centre))
                owners.append(owner)
        histories = np.zeros((len(observations), self.max_steps), np.int64)
        for row, observation in zip(histories, observations, strict=True):
            row[: len(observation.history)] = np.asarray(observation.history[: self.max_steps], np.int64) + 1
        steps = np.array([[len(observation.history)] for observation in observations], np.float32)
        masks = np.stack([observation.action_mask for observation in observations])
        batch = {
            "image": torch.from_numpy(np.stack(views)),
            "history": torch.from_numpy(histories[owners]),
            "step": torch.from_numpy(steps[owners]),
            "action_mask": torch.from_numpy(masks[owners]),
        }
        logits = self.module.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]
        probabilities = torch.zeros(len(observations), logits.shape[1])
        probabilities.index_add_(0, torch.tensor(owners), logits.softmax(1).cpu())
        return probabilities.argmax(1).tolist()
