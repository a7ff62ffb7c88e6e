"""Who decides: training-free planners and learned policies, all called through the same :class:`policies.planners.Planner`.

>>> from policies import restore
>>> restore("photo.jpg").save("better.jpg")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from policies.loading import load_policy
    from policies.pretrained import from_pretrained, push_to_hub, save_pretrained
    from policies.restoration import Restored, Restorer, restore

__all__ = ["Restored", "Restorer", "from_pretrained", "load_policy", "push_to_hub", "restore", "save_pretrained"]

_HOMES = {
    "Restored": "restoration",
    "Restorer": "restoration",
    "from_pretrained": "pretrained",
    "load_policy": "loading",
    "push_to_hub": "pretrained",
    "restore": "restoration",
    "save_pretrained": "pretrained",
}


def __getattr__(name: str) -> Any:
    """What is public loads when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
