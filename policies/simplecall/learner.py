"""PPO's Learner, spared from encoding the same images in every epoch."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns


class EncodeOnce(ConnectorV2):
    """Replaces the images of a finished train batch by their features, for modules whose encoder is frozen.

    Without it a batch is encoded once for the values and once per epoch.
    """

    def __call__(self, *, rl_module, batch: dict[str, Any], **kwargs) -> dict[str, Any]:
        for module_id, columns in batch.items():
            columns[Columns.OBS] = rl_module[module_id].network.encode_once(columns[Columns.OBS])
        return batch


class SimpleCallPPOLearner(PPOTorchLearner):
    """:class:`PPOTorchLearner` with :class:`EncodeOnce` before the advantages are computed."""

    def build(self) -> None:
        super().build()
        self._learner_connector.insert_before("GeneralAdvantageEstimation", EncodeOnce())
