"""RL-Restore's trained agent (Yu, Dong, Lin and Loy, CVPR 2018): a recurrent Q-network over its twelve tools."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ir_env.planner import Observation, Planner
from tool_actors.weight_files import find_weights, read_state

TOOLS = tuple(f"rl_restore.tool{number:02}" for number in range(1, 13))
PATCH = 63
MAX_STEPS = 3


class DRQN(nn.Module):
    """Four convolutions, a dense layer, the last action as one of twelve, an LSTM of 50 and a linear layer to 13 values.

    The weights are those of the authors' TensorFlow graph, so its conventions are kept: padding SAME (one pixel more below and to the right
    where it is uneven), features flattened as rows, columns, channels; gates in the order input, candidate, forget (plus 1), output.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        for name, value in state.items():
            self.register_buffer(name.replace(".", "_"), value.float())

    def forward(self, images: Tensor, last: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Values of the 13 actions.

        Args:
            images: float32 (B, 3, 63, 63) in [0, 1], rows and columns exchanged as for the tools.
            last: float32 (B, 12), one-hot of the last tool, zeros at the start.
            memory: cell and output of the LSTM, each (B, 50).
        """
        features = images
        for layer in (1, 2, 3, 4):
            weight = self.get_buffer(f"prediction_l{layer}_w")
            bias = self.get_buffer(f"prediction_l{layer}_biases")
            features = F.relu(F.conv2d(_pad_same(features, weight.shape[-1], 2), weight, bias, stride=2))
        flat = features.permute(0, 2, 3, 1).flatten(1)
        dense = F.relu(flat @ self.prediction_l7_Matrix + self.prediction_l7_bias)
        cell, output = memory
        gates = torch.cat([dense, last, output], dim=1) @ self.prediction_prediction_rnn_basic_lstm_cell_kernel
        enter, candidate, forget, leave = (gates + self.prediction_prediction_rnn_basic_lstm_cell_bias).chunk(4, dim=1)
        cell = cell * torch.sigmoid(forget + 1.0) + torch.sigmoid(enter) * torch.tanh(candidate)
        output = torch.tanh(cell) * torch.sigmoid(leave)
        return output @ self.prediction_q_Matrix + self.prediction_q_bias, (cell, output)


class RLRestoreAgent(Planner):
    """The published agent, greedy on its values: at most three tools of the toolbox ``rl_restore``.

    It learned on patches of 63 x 63 pixels. A larger image is cut into such patches, from the top left without overlap; each votes for an
    action, and the image gets the one with the most votes, stop among them, as in the authors' code for large images. An image with a
    shorter side gets nothing.
    """

    name = "rl_restore agent"
    toolbox = "rl_restore"
    env_config = {"quantize": "none", "max_steps": MAX_STEPS}

    def __init__(self):
        self.network = DRQN(read_state(find_weights("rl_restore/agent.safetensors"))).eval()

    @torch.no_grad()
    def plan(self, observation: Observation) -> int:
        tools = [observation.actions.name(index) for index in observation.history]
        if len(tools) >= MAX_STEPS or min(observation.image.shape[:2]) < PATCH:
            return observation.actions.stop
        memory, values = None, torch.empty(0)
        for image, tool in zip(observation.trajectory, [None, *tools], strict=True):
            patches = _patches(image)
            last = torch.zeros(len(patches), len(TOOLS))
            if tool is not None:
                last[:, TOOLS.index(tool)] = 1.0
            values, memory = self.network(patches, last, memory or (torch.zeros(len(patches), 50), torch.zeros(len(patches), 50)))
        best = int(values.argmax(1).bincount(minlength=len(TOOLS) + 1).argmax())
        return observation.actions.stop if best == len(TOOLS) else observation.actions.index(TOOLS[best])


def _patches(image: np.ndarray) -> Tensor:
    """float32 (B, 3, 63, 63), rows and columns exchanged, of uint8 (H, W, 3)."""
    exchanged = torch.from_numpy(image.transpose(2, 1, 0) / np.float32(255))
    return exchanged.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).flatten(0, 1).contiguous()


def _pad_same(features: Tensor, kernel: int, stride: int) -> Tensor:
    """TensorFlow's padding SAME for square inputs."""
    side = features.shape[-1]
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return F.pad(features, (total // 2, total - total // 2) * 2)
