"""Tools that learn together: OPERA's execution optimisation (arXiv 2605.22104, section 4.3, appendices D and E).

The tools of a plan run one after another, ``x_k = M_k(x_{k-1})`` (equation 1), and the loss of the last image is differentiated through all
of them into every tool's weights. No tool is asked for a good image in between, only for its part in the last one.

What training sees between two tools is what execution sees: states in [0, 1], rounded to 256 levels. Clamping and rounding let the gradient
through as if they were not there (straight-through; OPERA's released code clamps so, too). Tools without gradients (classical ones) stand
in a chain as they are: ``straight_through`` takes their gradient for that of the identity, or of enlarging where they enlarge, ``stop``
lets none past them, so that tools before them do not learn from this chain.

>>> trainer = CoTraining(load_toolbox("default"), load_loss(), SMALL)
>>> trainer.step([Part(("noise.gaussian25", "motion.short"), degraded, clean)], epoch=1)
>>> write_toolbox(toolbox, trainer.trained(), folder)          # tool_actors.trained_toolbox
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.learned import LearnedTool
from tool_actors.losses import RestorationLoss, schedule
from tool_actors.toolbox import Tool, Toolbox

__all__ = ["PAPER", "SMALL", "Classical", "CoTraining", "Part", "Settings", "batches", "enlarged", "psnr_of", "run_chain", "with_module"]

Classical = Literal["straight_through", "stop"]
CLASSICAL = ("straight_through", "stop")


@dataclass(frozen=True)
class Settings:
    """How tools learn together; as it is by default, as in the paper."""

    epochs: int = 23
    lr: float = 1e-6
    decay: bool = False
    """Let the rate fall along half a cosine to a twentieth; the paper's is constant."""
    warmup: int = 0
    """Updates of a tool over which its rate rises to ``lr``: Adam's first steps go by the sign of one batch's gradient."""
    max_norm: float = 0.5
    """Of each tool's gradient."""
    checkpointing: bool = False
    """Keep only the states between tools for the backward pass, and run each tool again in it: less memory, a third more time."""
    classical: Classical = "straight_through"
    quantise: bool = True
    """Round the states to 256 levels, as executors do by default."""
    relative: bool = False
    """Learn from the logarithm of each part's loss, as decibels count: an image that is nearly right weighs as much as one that is far from
    it. Otherwise long chains, whose loss is several times that of a tool on its own degradation, decide alone (the paper's way)."""
    average: float = 0.0
    """What is validated and kept is a running mean of each tool's weights, with this share of the mean before its last update; 0: the
    weights themselves. It smooths what small batches leave of noise in them."""
    bfloat16: bool = False
    """Convolutions compute in bfloat16; weights, states and the loss stay float32."""

    def __post_init__(self):
        if self.classical not in CLASSICAL:
            raise UnknownNameError("way to treat classical tools", self.classical, CLASSICAL)
        if self.epochs < 1:
            raise IrEnvError(f"epochs must be at least 1, not {self.epochs}")
        if not 0 <= self.average < 1:
            raise IrEnvError(f"average is a share from 0 to less than 1, not {self.average}")


PAPER = Settings()
"""For networks of the size of Restormer, 26 million weights."""
SMALL = Settings(lr=2e-4, decay=True, warmup=50, relative=True, average=0.99)
"""For the project's own networks of 50 to 140 thousand weights, which were trained at 1e-3: at the paper's rate they would hardly move."""


@dataclass(frozen=True, eq=False)
class Part:
    """Images that share a plan and a size, so that they go through its tools as one batch."""

    plan: tuple[str, ...]
    degraded: Tensor
    """float32 (B, 3, h, w) in [0, 1]."""
    clean: Tensor
    """float32 (B, 3, H, W) in [0, 1]."""


# -- the chain -----------------------------------------------------------------------------------------------------------------------


class _StraightThrough(torch.autograd.Function):
    """A value, with the gradient of a surrogate."""

    @staticmethod
    def forward(ctx, value: Tensor, surrogate: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx, *gradients: Tensor):
        # a root in a tool (curves of low light) has an infinite slope at a black pixel, which must not spoil the rest
        return None, torch.nan_to_num(gradients[0], 0.0, 0.0, 0.0)


def as_state(images: Tensor, quantise: bool = True) -> Tensor:
    """What an executor makes of a tool's output: clamped to [0, 1] and rounded to 256 levels; the gradient passes unchanged."""
    value = images.detach().clamp(0, 1)
    return _StraightThrough.apply(value.mul(255.0).round_().div_(255.0) if quantise else value, images)


def run_chain(
    tools: Sequence[Tool],
    images: Tensor,
    classical: Classical = "straight_through",
    checkpointing: bool = False,
    quantise: bool = True,
) -> Tensor:
    """Run tools one after another (equation 1); gradients flow through all of them.

    Args:
        tools: in order; those that are not differentiable as ``classical`` says.
        images: float (B, 3, h, w) in [0, 1].
        classical, checkpointing, quantise: see :class:`Settings`.

    Returns:
        float (B, 3, sh, sw) in [0, 1], s the product of the tools' scales.
    """

    def step(tool: Tool, state: Tensor) -> Tensor:
        return as_state(tool(state) if tool.spec.differentiable else _classical(tool, state, classical), quantise)

    for tool in tools:
        again = checkpointing and tool.spec.differentiable and torch.is_grad_enabled()
        images = checkpoint(step, tool, images, use_reentrant=False) if again else step(tool, images)
    return images


def enlarged(restored: Tensor, clean: Tensor) -> Tensor:
    """An image that a plan left small at the size of the clean one, as the environment's metrics judge it."""
    if restored.shape == clean.shape:
        return restored
    return F.interpolate(restored, clean.shape[2:], mode="bicubic", antialias=True)


def psnr_of(restored: Tensor, clean: Tensor) -> Tensor:
    """PSNR over RGB of images in [0, 1], float (B, 3, H, W), in dB: float (B,)."""
    return -10 * torch.log10((restored - clean).square().mean((1, 2, 3)) + 1e-8)


def _classical(tool: Tool, state: Tensor, how: Classical) -> Tensor:
    with torch.no_grad():
        output = tool(state.detach().float()).to(state.dtype)
    if how == "stop":
        return output
    scale = tool.spec.scale
    surrogate = state if scale == 1 else F.interpolate(state, scale_factor=scale, mode="bicubic", antialias=True)
    return _StraightThrough.apply(output, surrogate)


# -- the training --------------------------------------------------------------------------------------------------------------------


class CoTraining:
    """Copies of a toolbox's differentiable tools, each with an optimiser of its own; the toolbox itself is never changed.

    Args:
        toolbox: where the tools come from.
        loss: of the last image of a chain.
        settings: see :class:`Settings`.
        device: where it runs.
    """

    def __init__(self, toolbox: Toolbox, loss: RestorationLoss, settings: Settings = PAPER, device: str = "cpu"):
        self.loss, self.settings, self.device = loss, settings, device
        self.tools: dict[str, Tool] = {tool.spec.name: _copy(tool, device) for tool in toolbox}
        self._learners = {name: tool for name, tool in self.tools.items() if isinstance(tool, LearnedTool)}
        if not self._learners:
            raise IrEnvError(f"toolbox {toolbox.name!r} has no tool that can learn: choose one with networks, such as learned or default")
        self.optimisers = {name: torch.optim.Adam(tool.module.parameters(), settings.lr) for name, tool in self._learners.items()}
        averaging = get_ema_multi_avg_fn(settings.average)
        self._means = {name: AveragedModel(tool.module, multi_avg_fn=averaging) for name, tool in self._learners.items()}
        self.kept = self.tools | {name: with_module(tool, self._means[name].module) for name, tool in self._learners.items()}
        """The tools with the mean weights."""
        self.updates: defaultdict[str, int] = defaultdict(int)
        """Steps in which each tool learned."""

    def forward(self, part: Part, kept: bool = False) -> Tensor:
        """The last image of a part's chain, at the size of the clean one: float32 (B, 3, H, W) in [0, 1].

        Args:
            part: images and their plan.
            kept: with the mean weights, those that are kept, instead of the last ones.
        """
        tools = [self._find(name, self.kept if kept else self.tools) for name in part.plan]
        settings = self.settings
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=settings.bfloat16):
            restored = run_chain(
                tools, part.degraded.to(self.device), settings.classical, settings.checkpointing, settings.quantise
            ).float()
        return enlarged(restored, part.clean)

    def step(self, parts: Sequence[Part], epoch: int, progress: float = 0.0) -> dict[str, float]:
        """Learn from a batch: one shared backward pass, then a step of every tool that took part.

        Args:
            parts: of the batch, each weighted by its number of images.
            epoch: from 1, for the schedule of the loss.
            progress: share of the training that is done, for the decay of the rate.

        Returns:
            ``loss``, and each of its terms.
        """
        weights = schedule(self.loss.targets, epoch, self.settings.epochs)
        told: defaultdict[str, float] = defaultdict(float)
        count = sum(len(part.degraded) for part in parts)
        for optimiser in self.optimisers.values():
            optimiser.zero_grad()
        for part in parts:
            share = len(part.degraded) / count
            loss, terms = self.loss(self.forward(part), part.clean.to(self.device), weights)
            if loss.requires_grad:
                (share * (_log(loss) if self.settings.relative else loss)).backward()
            for name, value in {"loss": loss.item(), **terms}.items():
                told[name] += share * value
        for name, tool in self._learners.items():
            # tools that no plan of the batch names have no gradients
            if all(weight.grad is None for weight in tool.module.parameters()):
                continue
            norm = torch.nn.utils.clip_grad_norm_(tool.module.parameters(), self.settings.max_norm)
            if not torch.isfinite(norm):
                continue
            for group in self.optimisers[name].param_groups:
                group["lr"] = self._rate(name, progress)
            self.optimisers[name].step()
            self._means[name].update_parameters(tool.module)
            self.updates[name] += 1
        return dict(told)

    @torch.no_grad()
    def validate(self, parts: Iterable[Part]) -> dict[str, float]:
        """Means over images: ``loss`` with the target weights, whatever the epoch, so that epochs compare (its logarithm if ``relative``),
        and ``psnr`` in dB (RGB)."""
        losses, psnr, count = 0.0, 0.0, 0
        for part in parts:
            restored, clean = self.forward(part, kept=True), part.clean.to(self.device)
            loss = self.loss(restored, clean)[0]
            losses += len(clean) * (_log(loss) if self.settings.relative else loss).item()
            psnr += float(psnr_of(restored, clean).sum())
            count += len(clean)
        if not count:
            raise IrEnvError("there is nothing to validate on: give more images")
        return {"loss": losses / count, "psnr": psnr / count}

    def trained(self) -> dict[str, torch.nn.Module]:
        """The networks by tool, as they are kept now; of tools that never learned none."""
        return {name: self._means[name].module for name in self._learners if self.updates[name]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later :meth:`load_state_dict` needs to go on as if nothing had happened."""
        return {
            "modules": {name: tool.module.state_dict() for name, tool in self._learners.items()},
            "means": {name: mean.state_dict() for name, mean in self._means.items()},
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "updates": dict(self.updates),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tool in self._learners.items():
            tool.module.load_state_dict(state["modules"][name])
            self._means[name].load_state_dict(state["means"][name])
        for name, optimiser in self.optimisers.items():
            if name in state.get("optimisers", ()):
                optimiser.load_state_dict(state["optimisers"][name])
        self.updates = defaultdict(int, state["updates"])

    def _rate(self, name: str, progress: float) -> float:
        decay = 0.525 + 0.475 * math.cos(math.pi * progress) if self.settings.decay else 1.0
        return self.settings.lr * decay * min(1.0, (self.updates[name] + 1) / (self.settings.warmup + 1))

    def _find(self, name: str, tools: dict[str, Tool]) -> Tool:
        if name not in tools:
            raise UnknownNameError("tool of a plan", name, tools)
        return tools[name]


def _copy(tool: Tool, device: str) -> Tool:
    if not isinstance(tool, LearnedTool):
        return tool
    return with_module(tool, copy.deepcopy(tool.module).to(device).requires_grad_(True))


def with_module(tool: LearnedTool, module: torch.nn.Module) -> LearnedTool:
    """A tool with other weights; its fingerprint is still the old one, so it is never handed to an executor."""
    own = copy.copy(tool)
    own.module = module
    return own


def _log(loss: Tensor) -> Tensor:
    """Its logarithm, of a loss that may be 0."""
    return (loss + 1e-4).log()


def batches(keys: Sequence[Hashable], size: int, rng: np.random.Generator) -> list[list[list[int]]]:
    """One epoch: all images in random order, in batches of parts.

    Images of one key make parts of at most ``size``; where plans are many a part is often a single image, so parts are put together until
    a batch holds ``size`` images. (OPERA's code makes a batch of one plan and drops the remainder, which here would be most images.)

    Args:
        keys: of each image, what must be the same within a part: its plan and its size.
        size: images per batch.
        rng: decides the order.

    Returns:
        Per batch its parts, per part the places of its images in ``keys``.
    """
    by_key: defaultdict[Hashable, list[int]] = defaultdict(list)
    for place in rng.permutation(len(keys)).tolist():
        by_key[keys[place]].append(place)
    parts = [places[start : start + size] for places in by_key.values() for start in range(0, len(places), size)]
    made: list[list[list[int]]] = [[]]
    for place in rng.permutation(len(parts)).tolist():
        if sum(map(len, made[-1])) + len(parts[place]) > size and made[-1]:
            made.append([])
        made[-1].append(parts[place])
    return [batch for batch in made if batch]
