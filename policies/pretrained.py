"""Policies as folders that can be shared: safetensors, what they are as JSON, and a card; and the Hugging Face hub, where others find them.

>>> save_pretrained(load_policy("results/simplecall_ppo"), "mine")
>>> push_to_hub("mine", "me/mine")
>>> from_pretrained("hf:me/mine")                 # also `ir-env restore PHOTO --policy hf:me/mine`
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ir_env.planner import Planner
from policies.loading import WEIGHTS, load_policy
from tool_actors.errors import IrEnvError

__all__ = ["HubError", "from_pretrained", "push_to_hub", "save_pretrained"]

HUB = "hf:"
FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "README.md")
"""What is fetched: nothing that runs code when it is read."""


class HubError(IrEnvError):
    """The hub cannot be reached, or does not hold or take what was asked for."""


def from_pretrained(policy: str | Path, revision: str | None = None) -> Planner:
    """A policy from a folder that :func:`save_pretrained` wrote, or from the hub.

    Args:
        policy: a folder, or ``OWNER/NAME`` of the hub, with or without ``hf:`` before it.
        revision: of the hub: a branch, a tag or a commit.

    Raises:
        HubError: it is neither a folder, nor on the hub or in its cache.
    """
    name = str(policy).removeprefix(HUB)
    if not str(policy).startswith(HUB) and Path(policy).is_dir():
        return load_policy(policy)
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(name, revision=revision, allow_patterns=list(FILES))
    except Exception as error:
        raise HubError(
            f"{policy}: is no folder here, and cannot be had from the Hugging Face hub ({_short(error)}). Check the name, the "
            "network, and for a private one `hf auth login`; or copy its folder here and give its path."
        ) from error
    planner = load_policy(folder)
    planner.name = name
    return planner


def save_pretrained(planner: Planner, folder: str | Path, card: Mapping[str, Any] | None = None) -> Path:
    """Write a policy as a folder: weights without pickles, their settings, and README.md, the card of the hub.

    Args:
        planner: SimpleCall-style or a vision-language policy.
        folder: is made.
        card: how the policy was made, and what it reaches.

    Raises:
        IrEnvError: the policy is of another kind.
    """
    from policies.simplecall.planner import NetworkPlanner
    from policies.simplecall.shipped import save_policy
    from policies.vlm.planner import VLMPlanner

    folder, card = Path(folder), dict(card or {})
    if isinstance(planner, VLMPlanner):
        from policies.vlm.shipped import save_small

        save_small(planner, folder, card)
    elif isinstance(planner, NetworkPlanner) and planner.file:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(planner.file, folder / WEIGHTS)
        told = json.loads(planner.file.with_suffix(".json").read_text())
        (folder / WEIGHTS).with_suffix(".json").write_text(json.dumps({**told, **card}, indent=2) + "\n")
    else:
        save_policy(planner, folder / WEIGHTS, card)
    (folder / "README.md").write_text(_readme(planner, card))
    return folder


def push_to_hub(policy: Planner | str | Path, name: str, *, private: bool = False, token: str | None = None) -> str:
    """Put a policy on the hub; returns its address.

    Args:
        policy: a planner, or a folder that :func:`save_pretrained` wrote.
        name: ``OWNER/NAME``; is made if it is not there.
        private: if it is made, others cannot see it.
        token: of the hub; by default that of ``hf auth login``.

    Raises:
        HubError: the hub cannot be reached, or refuses it.
    """
    import tempfile

    from huggingface_hub import HfApi

    name = name.removeprefix(HUB)
    with tempfile.TemporaryDirectory() as place:
        folder = save_pretrained(policy, place) if isinstance(policy, Planner) else Path(policy)
        load_policy(folder)  # what cannot be read back is not published
        try:
            api = HfApi(token=token)
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(FILES), commit_message="A policy of ir_env")
        except Exception as error:
            raise HubError(
                f"{name}: cannot be put on the Hugging Face hub ({_short(error)}). Check the network and `hf auth login`."
            ) from error
    return str(address)


def _readme(planner: Planner, card: Mapping[str, Any]) -> str:
    told = json.dumps(dict(card), indent=2) if card else "{}"
    return (
        "---\nlibrary_name: ir_env\ntags: [image-restoration, reinforcement-learning]\n---\n\n"
        f"# {planner.name}\n\nA policy of ir_env: it chooses which restoration tool to apply to a photograph next, and when to stop.\n\n"
        "```python\nfrom policies import from_pretrained, restore\n\n"
        'restore("photo.jpg", from_pretrained("hf:OWNER/NAME")).save("better.jpg")\n```\n\n'
        f"How it was made:\n\n```json\n{told}\n```\n"
    )


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
