"""What a request asks for beside its photograph, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.restore_files import Output
from experiments.serve.limits import Limits, Refused
from experiments.serve.uploads import Upload
from tool_actors.errors import IrEnvError, UnknownNameError
from tool_actors.toolbox import ToolSpec

PREVIEW = 1280
"""Longest side of what the page shows of a step, in pixels."""


@dataclass(frozen=True)
class Offer:
    """What the service has."""

    policies: tuple[str, ...]
    """By the names under which it was started; the first is the default."""
    tools: Mapping[str, ToolSpec]


@dataclass(frozen=True)
class Wanted:
    """As the options of `ir-env restore`, which makes the same pixels of them."""

    policy: str
    plan: tuple[str, ...] | None = None
    """Tools, in order, in place of a policy."""
    tasks: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    effort: Literal["fast", "best"] | None = None
    max_steps: int | None = None
    scale: float | None = None
    size: int | None = None
    format: str | None = None
    quality: int | None = None
    grey: Literal["rgb", "keep"] = "rgb"
    scores: Literal["off", "view"] = "off"
    previews: bool = False
    """Whether pictures of the steps are kept."""

    def check(self, offer: Offer, limits: Limits) -> Wanted:
        """Itself; raises :class:`Refused` that names what is not there."""
        try:
            if self.policy not in offer.policies:
                raise UnknownNameError("policy", self.policy, offer.policies)
            for tool in self.plan or ():
                if tool not in offer.tools:
                    raise UnknownNameError("tool", tool, offer.tools)
            known = {*offer.tools, *(spec.task for spec in offer.tools.values())}
            for name in (*self.tasks, *self.without):
                if name not in known:
                    raise UnknownNameError("task or tool", name, known)
            Output(format=self.format, quality=self.quality)
            if self.scale is not None and self.size is not None:
                raise IrEnvError("a scale and a size say the same thing: give one of them")
        except IrEnvError as error:
            raise Refused(422, str(error)) from None
        if len(self.plan or ()) > limits.max_plan:
            raise Refused(422, f"a plan has at most {limits.max_plan} tools, this one {len(self.plan or ())}")
        return self

    def check_growth(self, upload: Upload, offer: Offer, limits: Limits) -> None:
        """Raises :class:`Refused` if the result, or what a tool makes on the way to it, would be too large.

        Without a scale or a size only what is small enough by far is enlarged.
        """
        if self.scale is None and self.size is None:
            return
        factor = self.scale or (self.size or 0) / max(upload.width, upload.height)
        tools = [offer.tools[name] for name in self.plan] if self.plan is not None else list(offer.tools.values())
        made = max((tool.scale for tool in tools), default=1) if factor > 1 or self.plan is not None else 1
        if upload.width * upload.height * max(factor, made) ** 2 > limits.max_pixels:
            raise Refused(
                413,
                f"enlarged so, the photograph would have more than {limits.max_pixels / 1e6:g} million pixels on the way: "
                "ask for less, or raise --max-megapixels",
            )

    def suffix_for(self, upload: Upload) -> str:
        return Output(format=self.format).suffix_for(Path(f"photograph{upload.suffix}"))

    def settings(self) -> dict[str, Any]:
        """Of :class:`policies.restoration.Restorer`."""
        return {name: getattr(self, name) for name in ("tasks", "without", "effort", "max_steps", "scale", "size")}
