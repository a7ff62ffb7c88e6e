"""The tools as an MCP server (Model Context Protocol), so that any assistant can be the agent that restores.

TIR-Agent's tools are served so, too. An assistant looks at a photograph (``assess``), applies a tool, looks again (``compare``), and stops
when nothing helps; or leaves the plan to the policy (``restore``). Images go in as base64, as files of one folder, or as the ids of earlier
results, so that a chain of tools sends no pixels twice; they come back as content blocks that the assistant sees.

One call computes at a time, on all cores: others wait, and no two photographs are mixed. What is wrong with a request is the error of its
tool, which the assistant reads, and the server goes on.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeVar

import anyio
import numpy as np
from mcp.server import MCPServer
from mcp.server.mcpserver import Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field

from experiments.restore_trace import middle, no_reference_scores
from experiments.serve.client_images import ClientImages, as_uint8, encoded, preview
from ir_env import __version__
from ir_env.image_files import Photograph, write_photograph
from ir_env.images import ImageError
from ir_env.metrics import MetricSuite
from policies.restoration import SOFTWARE, Restorer
from tool_actors.blended import Blended
from tool_actors.errors import IrEnvError
from tool_actors.executor import run_tool
from tool_actors.toolbox import Tool

__all__ = ["Desk", "build_server"]

RESTORERS = 4
"""How many ways of restoring (with fewer tools, to another size) stay loaded."""
INSTRUCTIONS = """Restores degraded photographs: noise, blur, rain, haze, JPEG artefacts, low light, low resolution.

To restore one yourself, as a planner would: `assess` it, `apply_tool` what its degradation asks for (`list_tools` names the tools by task),
`compare` the result with what was before, go on from the better of the two, and stop when no tool helps.
Degradations lie over one another: the one that came last is best undone first. `restore` leaves the whole plan to the trained policy.
Every result has an id, such as image-Xy12, which is an image for the next call. Tools never change the image that they are given."""

ImageName = Annotated[str, Field(description="an id from an earlier result, the file's content in base64 or as a data URL, or a path")]
Strength = Annotated[float, Field(ge=0, le=1, description="1: all of what the tool does; less: mixed with the image as it was")]
Value = TypeVar("Value")


class Desk:
    """What the server's tools do, without the protocol.

    Args:
        images: finds the images that clients name.
        settings: of :class:`policies.restoration.Restorer`: the policy, the toolbox, the device. A client chooses none of these.
    """

    def __init__(self, images: ClientImages, **settings: Any):
        self.images = images
        self._settings = settings
        self.restorer = lru_cache(RESTORERS)(self._restorer)

    def _restorer(self, **options: Any) -> Restorer:
        return Restorer(**self._settings, **options)

    def list_tools(self, task: str | None = None) -> list:
        toolbox = self.restorer().process.executor.toolbox
        tasks = {tool.spec.task for tool in toolbox}
        if task is not None and task not in tasks:
            raise IrEnvError(f"no tool of the task {task[:40]!r}: there are tools of {', '.join(sorted(tasks))}")
        specs = [tool.spec for tool in toolbox if task in (None, tool.spec.task)]
        return [{"tools": [{"tool": spec.name, "task": spec.task, "scale": spec.scale, "what": spec.summary} for spec in specs]}]

    def assess(self, image: str) -> list:
        kept = self.images.find(image)
        told = {"first_tools": self.restorer().first_thoughts(kept.photograph)}
        name = image if len(image) < 64 and image.startswith("image-") else self.images.keep(kept.photograph, kept.plan)
        return [self._told(name, kept.photograph, kept.plan, **told), self._shown(kept.photograph)]

    def apply_tool(self, image: str, tool: str, strength: float = 1.0) -> list:
        kept = self.images.find(image)
        restorer = self.restorer()
        chosen: Tool = restorer.process.executor.toolbox[tool]
        height, width = kept.photograph.pixels.shape[:2]
        self.images.limits.check_pixels(width * chosen.spec.scale, height * chosen.spec.scale, "the result")
        if strength != 1:
            chosen = Blended(chosen, strength)
        quantize = "uint8" if kept.photograph.depth == 8 else "none"
        [pixels] = run_tool(chosen, [kept.photograph.pixels], quantize, restorer.device, restorer.threads)
        if isinstance(pixels, IrEnvError):
            raise pixels
        return self._result(replace(kept.photograph, pixels=pixels), (*kept.plan, tool))

    def restore(self, image: str, **options: Any) -> list:
        kept = self.images.find(image)
        height, width = kept.photograph.pixels.shape[:2]
        scale = options.get("scale") or 1.0
        self.images.limits.check_pixels(round(width * scale), round(height * scale), "the result")
        restored = self.restorer(**options)(kept.photograph, "the image")
        self.images.limits.check_pixels(restored.pixels.shape[1], restored.pixels.shape[0], "the result")
        notes = [*restored.notes, *([restored.error] if restored.error else [])]
        photograph = replace(kept.photograph, pixels=restored.pixels)
        return self._result(photograph, (*kept.plan, *restored.tools), thoughts=restored.thoughts, notes=notes)

    def compare(self, image: str, other: str) -> list:
        pair = {"image": self.images.find(image).photograph, "other": self.images.find(other).photograph}
        pixels = [as_uint8(photograph) for photograph in pair.values()]
        told: dict[str, Any] = {name: self._scores(photograph) for name, photograph in pair.items()}
        if pixels[0].shape == pixels[1].shape:
            suite = MetricSuite(["psnr", "ssim_ycbcr"])
            values = suite.score([middle(pixels[0])], [middle(pixels[1])])[0]
            told["difference"] = {
                name: round(float(value), 4) if np.isfinite(value) else None for name, value in zip(suite.names, values, strict=True)
            }
        else:
            told["difference"] = f"none: they are of {pixels[0].shape[1::-1]} and {pixels[1].shape[1::-1]} pixels"
        return [told, self._picture(_beside(*(preview(photograph) for photograph in pair.values())))]

    def get_image(self, image: str) -> Image:
        kept = self.images.find(image)
        data, kind = encoded(kept.photograph, SOFTWARE, _history(kept.plan))
        return Image(data=data, format=kind)

    def save_image(self, image: str, path: str) -> str:
        kept = self.images.find(image)
        place = self.images.place(path)
        if place.exists():
            raise ImageError(f"{path!r} is there already, and nothing is overwritten: choose another name")
        if not place.parent.is_dir():
            raise ImageError(f"{path!r}: no such folder")
        try:
            notes = write_photograph(place, kept.photograph.pixels, kept.photograph, software=SOFTWARE, history=_history(kept.plan))
        except ImageError as error:
            raise ImageError(str(error).replace(str(place), repr(path))) from None
        return "; ".join([f"saved as {path}", *notes])

    # -- what is told ----------------------------------------------------------------------------------------------------------------

    def _result(self, photograph: Photograph, plan: tuple[str, ...], **more: Any) -> list:
        return [self._told(self.images.keep(photograph, plan), photograph, plan, **more), self._shown(photograph)]

    def _told(self, name: str, photograph: Photograph, plan: tuple[str, ...], **more: Any) -> dict[str, Any]:
        height, width = photograph.pixels.shape[:2]
        told = {"image": name, "width": width, "height": height, "bits": photograph.depth, "tools_so_far": list(plan)}
        return told | {"scores": self._scores(photograph)} | {key: value for key, value in more.items() if value}

    def _scores(self, photograph: Photograph) -> dict[str, Any]:
        """By metrics that need no clean image: lower is better; of the middle of a large image."""
        scores = no_reference_scores(middle(as_uint8(photograph)))
        rounded = {name: None if value is None else round(value, 2) for name, value in scores["metrics"].items()}
        return rounded | ({"note": scores["note"]} if scores["note"] else {})

    def _shown(self, photograph: Photograph) -> Image:
        return self._picture(preview(photograph))

    def _picture(self, pixels: np.ndarray) -> Image:
        from PIL import Image as Pillow

        data = io.BytesIO()
        Pillow.fromarray(pixels).save(data, "JPEG", quality=90, subsampling=0)
        return Image(data=data.getvalue(), format="jpeg")


def _history(plan: tuple[str, ...]) -> str:
    return f"{' + '.join(plan) or 'nothing'} (by an assistant)"


def _beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two pictures side by side, as high as the higher of them."""
    import cv2

    height = max(len(left), len(right))
    scaled = [cv2.resize(each, (max(1, round(each.shape[1] * height / len(each))), height)) for each in (left, right)]
    return np.concatenate([scaled[0], np.full((height, 8, 3), 255, np.uint8), scaled[1]], axis=1)


def build_server(desk: Desk) -> MCPServer:
    """The MCP server, to run by any of its transports."""
    server = MCPServer("ir_env", title="Photograph restoration", instructions=INSTRUCTIONS, version=__version__, log_level="WARNING")
    one_at_a_time = anyio.CapacityLimiter(1)

    async def run(work: Callable[..., Value], *arguments: Any, **options: Any) -> Value:
        try:
            return await anyio.to_thread.run_sync(lambda: work(*arguments, **options), limiter=one_at_a_time)
        except IrEnvError as error:
            raise ToolError(str(error)) from None

    looks = server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False), structured_output=False)

    @looks
    async def list_tools(task: Annotated[str | None, Field(description="only tools of this task, e.g. denoise")] = None) -> list:
        """The restoration tools, by task: name, scale, and what each is."""
        return await run(desk.list_tools, task)

    @looks
    async def assess(image: ImageName) -> list:
        """Look at an image: size, no-reference scores (NIQE and PIQE, lower is better), and what the trained policy would do first."""
        return await run(desk.assess, image)

    @looks
    async def apply_tool(image: ImageName, tool: str, strength: Strength = 1.0) -> list:
        """Apply one restoration tool to an image; returns the id of the result, its scores, and a picture of it."""
        return await run(desk.apply_tool, image, tool, strength)

    @looks
    async def restore(
        image: ImageName,
        effort: Annotated[Literal["fast", "best"] | None, Field(description="fast: at most two tools; best: as many as it likes")] = None,
        tasks: Annotated[list[str], Field(description="use only tools of these tasks", max_length=32)] = [],  # noqa: B006  its schema's
        without: Annotated[list[str], Field(description="use no tools of these names or tasks", max_length=64)] = [],  # noqa: B006
        scale: Annotated[float | None, Field(gt=0, le=16, description="enlarge so many times")] = None,
        strength: Strength = 1.0,
    ) -> list:
        """Restore an image as the trained policy decides; returns the id of the result, the tools, their scores, and a picture of it."""
        options = {"effort": effort, "tasks": tuple(tasks), "without": tuple(without), "scale": scale, "strength": strength}
        return await run(desk.restore, image, **options)

    @looks
    async def compare(image: ImageName, other: ImageName) -> list:
        """Two images side by side: scores of each, and how much they differ (PSNR and SSIM, where they are of one size)."""
        return await run(desk.compare, image, other)

    @looks
    async def get_image(image: ImageName) -> Image:
        """An image in its full size and depth, as a file with its metadata; other tools show pictures of at most 1024 px a side."""
        return await run(desk.get_image, image)

    if desk.images.root is not None:

        @server.tool(annotations=ToolAnnotations(destructive_hint=False, open_world_hint=False), structured_output=False)
        async def save_image(image: ImageName, path: Annotated[str, Field(description="in the folder; its suffix is the format")]) -> str:
            """Write an image into the folder that the server was started with, with its metadata; nothing is overwritten."""
            return await run(desk.save_image, image, path)

    return server
