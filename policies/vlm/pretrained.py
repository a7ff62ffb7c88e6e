"""Models of transformers and adapters of peft, from the hub or from a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from policies.vlm.nano import NANO
from policies.vlm.shipped import SMALL, load_small
from tool_actors.errors import IrEnvError
from tool_actors.extras import need

ADAPTER = "adapter_config.json"


class ModelError(IrEnvError):
    """A vision-language model that cannot be loaded or used."""


def load_pretrained(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Model and processor by name or folder; that of an adapter with its base beneath. Raises :class:`ModelError`."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = Path(name).expanduser()
    source = str(folder.resolve()) if folder.is_dir() else name
    # without a connection every file would be asked for six times, with pauses
    where = {"local_files_only": folder.is_dir() or not _hub_answers()}
    try:
        processor = AutoProcessor.from_pretrained(source, **where)
        if (folder / SMALL).is_file():
            return load_small(folder, dtype), processor
        if (folder / ADAPTER).is_file():
            need("peft")
            from peft import PeftModel

            base = json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"]
            where = {"local_files_only": Path(base).is_dir() or not _hub_answers()}
            model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype, use_safetensors=True, **where)
            return PeftModel.from_pretrained(model, source, is_trainable=True), processor
        return AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, use_safetensors=True, **where), processor
    except Exception as error:
        raise ModelError(
            f"the vision-language model {name!r} cannot be loaded ({type(error).__name__}: {str(error).strip().splitlines()[0]}). "
            "Give the name of an image-text-to-text model on the hub (which needs a connection, or the model in the local cache), the "
            f"folder of a downloaded one, or {NANO!r}, which needs neither."
        ) from error


def _hub_answers() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        return False
    return True


def add_lora(model: Any, settings: Mapping[str, Any], seed: int) -> Any:
    """The model within a new adapter of peft, in float32 whatever the model's own type: small steps would be lost in bfloat16."""
    need("peft")
    from peft import LoraConfig, get_peft_model

    # with dropout, the first importance ratio of reinforcement learning would not be 1
    chosen = {"target_modules": "all-linear", "lora_dropout": 0.0, **settings}
    try:
        config = LoraConfig(task_type="CAUSAL_LM", **chosen)
    except TypeError as error:
        raise ModelError(f"lora {dict(settings)}: {error}. The settings are those of peft.LoraConfig, e.g. r and lora_alpha.") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)
