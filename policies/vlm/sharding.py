"""A model of transformers whose parameters learners share: FSDP2, a layer at a time."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard


def shard(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """Leave this process its part of every parameter, on the mesh's device, in place.

    The layers that transformers would not split between devices, those of text and of vision, are gathered one at a time, to compute in
    the type that the model has. What is trained is kept in float32, and its gradients are summed in it: small steps, and small
    gradients, would be lost in bfloat16.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    together = set(base._no_split_modules or ())
    half = next((parameter.dtype for parameter in model.parameters() if parameter.dtype.itemsize == 2), None)
    layers = [module for module in model.modules() if type(module).__name__ in together]
    for module in [*layers, model]:
        for parameter in module.parameters():
            if parameter.requires_grad and half:
                parameter.data = parameter.data.float()
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=half and torch.float32, cast_forward_inputs=module is model)
        fully_shard(module, mesh=mesh, mp_policy=policy)
