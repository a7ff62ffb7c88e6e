"""MC-Pool: a globally shared, batched, cached, fault-tolerant pool of tools on Ray actors."""

from tool_actors.pool.client import MCPool, PoolExecutor
from tool_actors.pool.config import DEFAULT_NAME, Placement, PoolConfig
from tool_actors.pool.scheduler import PoolFailure

__all__ = ["DEFAULT_NAME", "MCPool", "Placement", "PoolConfig", "PoolExecutor", "PoolFailure"]
