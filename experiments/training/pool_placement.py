"""Whether a training runs its tools in its environments, or in a pool of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from experiments.training.experiment_file import ExperimentError

if TYPE_CHECKING:
    from tool_actors.pool import MCPool

EXECUTORS = ("auto", "local", "pool")
SPARE_CPUS = 2
"""A pool pays where at least so many CPUs are left beside the run's own processes, or a GPU is."""
INSTANCES_PER_GPU = 2
"""One copies images while the other computes."""


def settle_executor(env_config: dict[str, Any], asked: Mapping[str, float], available: Mapping[str, float], name: str) -> bool:
    """Decide ``env_config["executor"]``; returns whether the run wants a pool of its own, which is then called ``name``.

    ``auto``, the default, takes a pool where there is room for one; ``pool:NAME`` and ``pool:http://HOST:PORT`` are
    pools that somebody else started.
    """
    executor = env_config.get("executor", "auto")
    if not isinstance(executor, str) or (executor not in EXECUTORS and not executor.startswith("pool:")):
        raise ExperimentError(f"env_config.executor is {executor!r}: write auto, local, pool, or pool:NAME for a pool that runs")
    if executor == "auto":
        executor = "pool" if _spare(asked, available, "GPU") >= 1 or _spare(asked, available, "CPU") >= SPARE_CPUS else "local"
    env_config["executor"] = f"pool:{name}" if executor == "pool" else executor
    return executor == "pool"


def pool_settings(toolbox: Any, settings: Mapping[str, Any], asked: Mapping[str, float], available: Mapping[str, float]) -> dict[str, Any]:
    """The settings of a run's pool: those of the experiment, and instances on what the run leaves free, on GPUs if there are any."""
    if "placements" in settings:
        return {"toolbox": toolbox, **settings}
    gpus, cpus = (_spare(asked, available, kind) for kind in ("GPU", "CPU"))
    if cpus < 1:
        raise ExperimentError(
            f"a pool needs a CPU, and the run asks for {asked.get('CPU', 0):g} of {available.get('CPU', 0):g}: lower num_env_runners with "
            "--set, or run the tools in the environments, --set env_config.executor=local"
        )
    if gpus >= 1:
        placement = {"num_gpus": 1 / INSTANCES_PER_GPU, "max_replicas": min(int(gpus) * INSTANCES_PER_GPU, int(cpus))}
    else:
        placement = {"max_replicas": int(cpus)}
    return {"toolbox": toolbox, "placements": [placement], **settings}


def start_pool(name: str, settings: Mapping[str, Any]) -> MCPool:
    """Start the run's pool in the connected Ray cluster; it ends with this process."""
    from tool_actors.pool import MCPool

    return MCPool.start(settings, name)


def _spare(asked: Mapping[str, float], available: Mapping[str, float], kind: str) -> float:
    return available.get(kind, 0.0) - asked.get(kind, 0.0)
