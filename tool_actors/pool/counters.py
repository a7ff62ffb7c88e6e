"""What a pool's counters say."""

from __future__ import annotations

from typing import Any


def plain(status: dict[str, Any]) -> dict[str, Any]:
    """:meth:`MCPool.status` for JSON, whose keys are strings: services by their kind, and there by their name."""
    services: dict[str, dict] = {}
    for service, stats in status["services"].items():
        services.setdefault(service.kind, {})[service.name] = stats
    return {**status, "services": services}


def summarise(status: dict[str, Any]) -> dict[str, float]:
    """A few plain figures for curves, from :meth:`MCPool.status`: rates since the pool started, and numbers of now."""
    services = status["services"].values()
    total = {
        key: sum(each[key] for each in services) for key in ("requests", "executions", "batches", "hits", "joined", "retries", "failures")
    }
    waited = sum(each["wait_s"] for each in services)
    alive = max(status["instances"], 1) * max(status["seconds"], 1e-9)
    return {
        **total,
        "shared": (total["hits"] + total["joined"]) / max(total["requests"], 1),
        "images_per_batch": total["executions"] / max(total["batches"], 1),
        "mean_wait_ms": 1000 * waited / max(total["executions"], 1),
        "utilisation": min(status["busy_s"] / alive, 1.0),
        "instances": status["instances"],
        "lost": status["lost"],
        "queued": status["queued"] + status["at_callers"],
        "cache_mb": status["cache_bytes"] / 2**20,
    }
