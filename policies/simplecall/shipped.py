"""A trained policy as two small files: its weights as safetensors, and a card of what it is and how it was made.

RLlib's checkpoints hold pickles, and want Ray to be read; these files want neither, so they can be shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ir_env.view import View
from policies.simplecall.planner import ModulePlanner, NetworkPlanner
from tool_actors.errors import IrEnvError

SHIPPED = Path(__file__).parent / "weights" / "policy.safetensors"
"""The policy that comes with the project, trained by ``experiments/simplecall_ppo.py``; the card beside it says how."""
KEPT = ("toolbox", "quantize", "max_steps", "view")
"""Of the arguments of the environment it was trained in."""


def save_policy(planner: ModulePlanner, path: str | Path, card: Mapping[str, Any]) -> None:
    """Write the policy of a SimpleCall-style RLModule: matrices in half precision, and beside the weights ``NAME.json``.

    Args:
        planner: as :func:`policies.loading.load_checkpoint` gives it.
        path: ends in ``.safetensors``.
        card: what the card tells besides, such as how the policy was made and what it reaches.

    Raises:
        IrEnvError: the policy is of another kind.
    """
    from safetensors.torch import save_file

    from policies.simplecall.rl_module import SimpleCallRLModule

    if not isinstance(getattr(planner, "module", None), SimpleCallRLModule):
        raise IrEnvError(
            f"{getattr(planner, 'name', planner)}: only policies of SimpleCallRLModule are written so; keep the checkpoint of others"
        )
    module, path = planner.module, Path(path)
    options = module.network_options()
    if options.get("encoder", "cnn") != "cnn":
        raise IrEnvError(f"{planner.name}: its encoder {options['encoder']!r} is not part of its weights; keep the checkpoint")
    stored = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in module.network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, path)
    described = {
        "network": {
            "actions": module.network.actions,
            "max_steps": module.network.max_steps,
            "hidden": list(options.get("hidden", (256, 256))),
            "tools": options["tools"],
            "encoder_tools": list(module.network.encoder.tools),
        },
        "env_config": {name: planner.env_config[name] for name in KEPT if name in planner.env_config},
    }
    path.with_suffix(".json").write_text(json.dumps({**described, **card}, indent=2) + "\n")


def load_shipped(path: str | Path = SHIPPED, name: str = "simplecall") -> NetworkPlanner:
    """The policy of a file that :func:`save_policy` wrote.

    Raises:
        IrEnvError: the file or its card is missing, or they do not belong together.
    """
    from policies.simplecall.network import SimpleCallNetwork
    from tool_actors.weight_files import load_into

    path = Path(path)
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        told, env_config = dict(card["network"]), dict(card["env_config"])
        view = View.of(env_config.get("view"))
        options = {"weights": None, "tools": told.pop("encoder_tools"), "view": view}
        network = SimpleCallNetwork(**told, encoder_options=options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IrEnvError(f"{path}: no policy with its card beside it ({type(error).__name__}: {error})") from error
    load_into(network, path)
    return NetworkPlanner(network.eval(), view, name, env_config)
