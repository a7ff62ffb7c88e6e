"""What GRPO reads from a round of finished rollouts (RLlib episodes of the environments' ``info``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.env.utils.infinite_lookback_buffer import InfiniteLookbackBuffer

from ir_env.metrics import find_metric
from tool_actors.errors import IrEnvError, UnknownNameError

REWARDS = ("final", "gain", "return")


def check_groups(episodes: Sequence[SingleAgentEpisode], group_size: int) -> None:
    """Raise :class:`IrEnvError` unless each ``group_size`` successive rollouts are finished and begin from one sample."""
    if not episodes or len(episodes) % group_size:
        raise IrEnvError(f"{len(episodes)} rollouts are no whole groups of {group_size}")
    for start in range(0, len(episodes), group_size):
        members = episodes[start : start + group_size]
        if not all(member.is_done for member in members):
            raise IrEnvError("a rollout has been cut before its end; GRPO needs whole ones")
        samples = {(str(info.get("sample")), str(info.get("combo"))) for info in (member.get_infos(0) for member in members)}
        if len(samples) > 1:
            raise IrEnvError(
                f"the {group_size} rollouts of a group begin from {len(samples)} samples, {sorted(samples)[:2]}: "
                "the environment must start equal seeds from equal samples, as ir_env/Restoration-v0 does with group_size"
            )


def rollout_rewards(episodes: Sequence[SingleAgentEpisode], kind: str) -> tuple[list[str], np.ndarray]:
    """The rewards of whole rollouts, oriented so that higher is better.

    Args:
        episodes: N finished rollouts.
        kind: ``final``, the metrics of the last image (``info["metrics"]``); ``gain``, what each gained from the first image to the
            last; ``return``, the sum of the environment's rewards.

    Returns:
        The names of the rewards, and float64 (N, K).
    """
    if kind not in REWARDS:
        raise UnknownNameError("kind of reward", kind, REWARDS)
    if kind == "return":
        return ["return"], np.array([[episode.get_return()] for episode in episodes], np.float64)
    first, last = ([episode.get_infos(at).get("metrics") for episode in episodes] for at in (0, -1))
    if not all(first) or not all(last):
        raise IrEnvError("the environment reports no info['metrics'] at the start and end of a rollout: use rewards='return'")
    names = list(first[0])
    signs = np.array([1.0 if find_metric(name).higher_is_better else -1.0 for name in names])
    ends = np.array([[float(metrics[name]) for name in names] for metrics in last])
    if kind == "final":
        return names, signs * ends
    return names, signs * (ends - np.array([[float(metrics[name]) for name in names] for metrics in first]))


def valid_share(episodes: Sequence[SingleAgentEpisode]) -> np.ndarray:
    """float64 (N,): the share of each rollout's steps that were neither forbidden, nor malformed, nor ended by a tool's failure."""
    return np.array([np.mean([not (step.get("invalid") or step.get("error")) for step in episode.get_infos()[1:]]) for episode in episodes])


def called(info: Mapping[str, Any]) -> list[str]:
    """The tools that a step asked for, one or the whole plan; none where the environment reports none."""
    return str(info["tool"]).split("+") if info.get("tool") else []


def part_means(episodes: Sequence[SingleAgentEpisode]) -> dict[str, float]:
    """The mean of each part of the reward, where the environment reports ``info["parts"]``."""
    told = [episode.get_infos(-1).get("parts") or {} for episode in episodes]
    return {name: float(np.mean([parts[name] for parts in told])) for name in told[0]}


def tool_use(episodes: Sequence[SingleAgentEpisode]) -> dict[str, float]:
    """Calls per rollout of each tool that was called, and of stop."""
    calls = Counter(name for episode in episodes for step in episode.get_infos()[1:] for name in called(step))
    return {name: count / len(episodes) for name, count in sorted(calls.items())}


def tools_run(episodes: Sequence[SingleAgentEpisode]) -> np.ndarray:
    """float64 (N,): how many tools each rollout ran; 0 in environments that report none."""
    valid = [[step for step in episode.get_infos()[1:] if not step.get("invalid")] for episode in episodes]
    return np.array([float(sum(name != "stop" for step in steps for name in called(step))) for steps in valid])


def diversity(episodes: Sequence[SingleAgentEpisode], group_size: int) -> float:
    """Mean share of distinct rollouts in a group, from 1 / G (all alike) to 1: by the tools they called, or their actions without such."""
    paths = [
        tuple(str(step["tool"]) for step in episode.get_infos()[1:])
        if "tool" in episode.get_infos(-1)
        else np.asarray(episode.get_actions()).tobytes()
        for episode in episodes
    ]
    return float(np.mean([len(set(paths[start : start + group_size])) / group_size for start in range(0, len(paths), group_size)]))


def share_out(episodes: Sequence[SingleAgentEpisode], count: int) -> list[list[SingleAgentEpisode]]:
    """Whole rollouts for each of ``count`` learners, none without, so that their numbers of steps are nearly equal."""
    if len(episodes) < count:
        raise IrEnvError(f"{count} learners cannot share {len(episodes)} rollouts: lower num_learners, or sample more")
    shares: list[list[int]] = [[] for _ in range(count)]
    steps = [0] * count
    for index in sorted(range(len(episodes)), key=lambda index: -len(episodes[index])):
        least = min(range(count), key=lambda learner: (steps[learner], learner))
        shares[least].append(index)
        steps[least] += len(episodes[index])
    return [[episodes[index] for index in sorted(share)] for share in shares]


def add_column(episodes: Sequence[SingleAgentEpisode], name: str, values: Sequence[float] | np.ndarray) -> None:
    """Give every step of rollout i the value ``values[i]`` in the train batch's column ``name``.

    It is stored with the model's outputs, which RLlib slices and batches together with the observations: a column that a learner
    connector adds can come to belong to other rows without an error.
    """
    for episode, value in zip(episodes, values, strict=True):
        episode.extra_model_outputs[name] = InfiniteLookbackBuffer(np.full(len(episode), value))
