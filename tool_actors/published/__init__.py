"""Small published networks, written here from their papers; their weights are found, not shipped.

Weights are looked for below the folders of ``IR_ENV_WEIGHTS`` (see :mod:`tool_actors.weight_files`), as ``published/<file>.safetensors``
and ``rl_restore/<file>.safetensors``, with the parameter names of their authors' releases. Those of MAXIM can be fetched
(``manifests/maxim.yaml``).
"""

from __future__ import annotations

from tool_actors.toolbox import Deferred

__all__ = ["all_in_one_tools", "published_tools", "rl_restore_tools"]


def published_tools() -> list[Deferred]:
    """FFDNet, DnCNN, DMPHN, PReNet, PRN_r, AOD-Net, SCI, IAT and IMDN, in the order of the tasks."""
    from tool_actors.published import aodnet, dmphn, dncnn, ffdnet, iat, imdn, prenet, sci

    return [tool for room in (ffdnet, dncnn, dmphn, prenet, aodnet, sci, iat, imdn) for tool in room.tools()]


def rl_restore_tools() -> list[Deferred]:
    """RL-Restore's twelve tools."""
    from tool_actors.published import rl_restore

    return rl_restore.tools()


def all_in_one_tools() -> list[Deferred]:
    """PromptIR and AirNet, each trained on noise, rain and haze."""
    from tool_actors.published import airnet, promptir

    return [*promptir.tools(), *airnet.tools()]
