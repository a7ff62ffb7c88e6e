import os

# before ray is imported anywhere: its workers must start in this environment, not in a copy
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
# and run as the tests do that wait for them; at Ray's lower priority they hardly start on a busy machine
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

import numpy as np
import pytest

from ir_env.datasets import BuiltinPhotos
from tool_actors.threads import limit_threads


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    limit_threads(1)


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """A clean photograph, uint8 (300, 448, 3)."""
    return BuiltinPhotos("heldout").load("chelsea")


@pytest.fixture(scope="session")
def crop(photo) -> np.ndarray:
    """Part of it, uint8 (64, 64, 3)."""
    return np.ascontiguousarray(photo[96:160, 160:224])


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray of this machine alone; more CPUs on paper than there are, so that small actors fit side by side."""
    import ray

    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
