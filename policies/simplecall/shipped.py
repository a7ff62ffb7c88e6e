"""A trained policy as two small files: its weights as safetensors, and a card of what it is and how it was made.

RLlib's checkpoints hold pickles, and want Ray to be read; these files want neither, so they can be shared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ir_env.planner import Planner
from ir_env.view import View
from policies.simplecall.planner import ModulePlanner, NetworkPlanner
from tool_actors.errors import IrEnvError
from tool_actors.weight_files import file_sha256, load_into

if TYPE_CHECKING:
    from policies.simplecall.encoders import SmallCNN

SHIPPED = Path(__file__).parent / "weights" / "policy.safetensors"
"""The policy that comes with the project, trained by ``experiments/simplecall_ppo.py``; the card beside it says how."""
ENCODER = "encoder."
"""How the names of the encoder's weights begin."""
KEPT = ("toolbox", "quantize", "max_steps", "view")
"""Of the arguments of the environment it was trained in."""


def save_policy(planner: Planner, path: str | Path, card: Mapping[str, Any]) -> None:
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

    if not isinstance(planner, ModulePlanner) or not isinstance(getattr(planner, "module", None), SimpleCallRLModule):
        raise IrEnvError(
            f"{getattr(planner, 'name', planner)}: only policies of SimpleCallRLModule are written so; keep the checkpoint of others"
        )
    module, path = planner.module, Path(path)
    options = module.network_options()
    if options.get("encoder", "cnn") != "cnn":
        raise IrEnvError(f"{planner.name}: its encoder {options['encoder']!r} is not part of its weights; keep the checkpoint")
    apart = _is_the_projects(module.network.encoder)
    state = {name: value for name, value in module.network.state_dict().items() if not (apart and name.startswith(ENCODER))}
    stored = {name: (value.half() if value.ndim > 1 else value).contiguous() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, path)
    described = {
        "network": {
            "actions": module.network.actions,
            "max_steps": module.network.max_steps,
            "hidden": list(options.get("hidden", (256, 256))),
            "tools": options["tools"],
        },
        "encoder": None if apart else {"tools": list(module.network.encoder.tools), "view": asdict(module.network.encoder.view)},
        "encoder_sha256": file_sha256(module.network.encoder.WEIGHTS) if apart else None,
        "env_config": {name: planner.env_config[name] for name in KEPT if name in planner.env_config},
    }
    path.with_suffix(".json").write_text(json.dumps({**described, **card}, indent=2) + "\n")


def load_shipped(path: str | Path = SHIPPED, name: str = "simplecall") -> NetworkPlanner:
    """The policy of a file that :func:`save_policy` wrote.

    Raises:
        IrEnvError: the file or its card is missing, they do not belong together, or the encoder is another.
    """
    from policies.simplecall.encoders import SmallCNN
    from policies.simplecall.network import SimpleCallNetwork

    path = Path(path)
    try:
        card = json.loads(path.with_suffix(".json").read_text())
        env_config, encoder = dict(card["env_config"]), card["encoder"]
        network = SimpleCallNetwork(**card["network"], encoder_options={"weights": None, **encoder} if encoder else None)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IrEnvError(f"{path}: no policy with its card beside it ({type(error).__name__}: {error})") from error
    if not encoder and card.get("encoder_sha256") != file_sha256(SmallCNN.WEIGHTS):
        raise IrEnvError(f"{path}: learned with another encoder than the one that comes with this version; write it anew from its run")
    load_into(network, path, apart=None if encoder else ENCODER)
    planner = NetworkPlanner(network.eval(), View.of(env_config.get("view")), name, env_config)
    planner.file = path
    planner.trained_combos = combos_of(card)
    return planner


def combos_of(card: Mapping[str, Any]) -> list[Any] | None:
    """The combinations of degradations that a policy's card says it learned from; None if it does not say."""
    trained = card.get("trained")
    dataset = trained.get("dataset") if isinstance(trained, Mapping) else None
    return [dataset["combos"]] if isinstance(dataset, Mapping) and "combos" in dataset else None


def _is_the_projects(encoder: SmallCNN) -> bool:
    """Whether an encoder is still as the project ships it: then its weights need not be written again."""
    theirs = type(encoder)().state_dict()
    return all(theirs[name].shape == value.shape and bool((theirs[name] == value).all()) for name, value in encoder.state_dict().items())
