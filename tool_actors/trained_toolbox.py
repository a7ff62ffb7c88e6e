"""A toolbox some of whose tools have learned on, as a folder: a toolbox file, and for each such tool its weights.

The file lists the same names in the same order, so a policy of the old toolbox can use the new one, and it is accepted wherever a toolbox
is: ``--toolbox FOLDER/toolbox.yaml``. The tools have other weights, hence other fingerprints: no cache takes one for the other.

Networks of the project's own keep their format (half precision, a JSON card beside the weights); others are float32 and recognised by
their tensors. Size and SHA-256 of each file stand in the toolbox file: a reference to a tool (:attr:`Toolbox.references`) never loads
weights other than those it was made with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tool_actors.errors import IrEnvError
from tool_actors.weight_files import file_sha256

if TYPE_CHECKING:
    import torch

    from tool_actors.toolbox import Toolbox

__all__ = ["TOOLBOX_FILE", "check_writable", "write_toolbox"]

TOOLBOX_FILE = "toolbox.yaml"


def check_writable(toolbox: Toolbox) -> None:
    """Raise :class:`IrEnvError` if a network of the toolbox could not be written, before hours are spent on it."""
    from tool_actors.learned import LearnedTool

    for tool, reference in zip(toolbox, toolbox.references, strict=True):
        if isinstance(tool, LearnedTool) and tool.card is None and isinstance(reference, str):
            raise IrEnvError(
                f"tool {reference!r} could learn, but not be loaded again: its network is made by code. "
                "Leave it out, or describe its checkpoint in a toolbox file"
            )


def write_toolbox(toolbox: Toolbox, trained: Mapping[str, torch.nn.Module], folder: Path, note: str = "") -> Path:
    """Write the toolbox with other weights; returns the toolbox file.

    The networks in ``trained`` are rounded to what is stored, so that what is loaded gives the same to the last bit.

    Args:
        toolbox: the tools as they were; those not in ``trained`` are referred to.
        trained: by name, the networks of some of them, with other weights.
        folder: of the toolbox file; the weights are beside it.
        note: how the weights came about, for descriptions.
    """
    import torch
    import yaml
    from safetensors.torch import save_file

    check_writable(toolbox)
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[Any] = []
    for tool, reference in zip(toolbox, toolbox.references, strict=True):
        name = tool.spec.name
        if name not in trained:
            entries.append(reference)
            continue
        card = getattr(tool, "card", None)
        # a recognised network is wrapped, and recognised again by its own names
        inner = trained[name] if card else getattr(trained[name], "model", trained[name])
        half = {key: value.half() if card and value.is_floating_point() else value for key, value in inner.state_dict().items()}
        with torch.no_grad():
            inner.load_state_dict(half)
        path = folder / f"{name}.safetensors"
        save_file({key: value.detach().contiguous().cpu() for key, value in half.items()}, path)
        if card:
            path.with_suffix(".json").write_text(json.dumps({**card, "gain_db": {}, "note": note}, indent=2) + "\n")
        described = {} if isinstance(reference, str) else {key: reference[key] for key in ("architecture",) if key in reference}
        entries.append(
            {"name": name, "task": tool.spec.task, "file": path.name, "size": path.stat().st_size, "sha256": file_sha256(path)}
            | described
            | ({"note": note} if note else {})
        )
    path = folder / TOOLBOX_FILE
    path.write_text(yaml.safe_dump(entries, sort_keys=False, width=1000))
    return path
