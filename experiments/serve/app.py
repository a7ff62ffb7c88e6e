"""The application: what may be asked of the service, and the page."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from experiments.serve.jobs import Job, Jobs, as_event, told
from experiments.serve.limits import Limits, Refused
from experiments.serve.metrics import Metrics
from experiments.serve.uploads import inspect, receive
from experiments.serve.wanted import Offer, Wanted
from ir_env import __version__

HERE = Path(__file__).parent
REPORT = HERE.parent / "benchmark"
"""Whose page has the same style and slider."""
TYPES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".webp": "image/webp",
}
TYPES |= {".avif": "image/avif", ".jp2": "image/jp2", ".bmp": "image/bmp", ".heic": "image/heic"}
HEARTBEAT_S = 15.0
HEALTH_S = 5.0
PHOTOGRAPH = {
    "requestBody": {
        "required": True,
        "description": "the photograph's file",
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["photo"], "properties": {"photo": {"type": "string", "format": "binary"}}}
            },
        },
    }
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": text,
        "content": {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}},
    }
    for code, text in {
        408: "too slow an upload",
        413: "too many bytes or pixels",
        415: "no photograph",
        422: "it cannot be read, or an option is wrong",
        429: "too many requests",
        503: "too much to do",
        504: "it took too long",
    }.items()
}


def make_app(jobs: Jobs, offer: Offer, limits: Limits, metrics: Metrics) -> FastAPI:
    """The FastAPI application.

    Args:
        jobs: restores.
        offer: policies and tools that requests may name.
        limits: told to clients, and kept to.
        metrics: told at ``/metrics``.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with jobs.at_work():
            yield

    # FastAPI's pages of documentation load scripts from elsewhere
    app = FastAPI(title="ir_env", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.jobs = jobs
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)

    async def taken(request: Request, wanted: Wanted) -> Job:
        wanted.check(offer, limits)
        job = jobs.begin(int(request.headers.get("content-length", limits.max_bytes)))
        try:
            path = job.folder / "photograph"
            await receive(request, path, limits)
            upload = await asyncio.to_thread(inspect, path, limits)
            wanted.check_growth(upload, offer, limits)
            jobs.queue(job, upload, wanted)
        except BaseException:
            jobs.drop(job)
            raise
        return job

    async def answered(request: Request, wanted: Wanted) -> Response:
        """The restored photograph, once there is one; a client that leaves is not restored for."""
        job = await taken(request, wanted)
        over, gone = asyncio.create_task(job.over()), asyncio.create_task(_gone(request))
        try:
            await asyncio.wait([over, gone], return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not over.done():
            over.cancel()
            jobs.drop(job)
            raise ConnectionError("the client left")
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse(told(job, jobs), job.error.status if job.error else 200)
        return _image(job)

    @app.post("/v1/restore", responses={200: {"content": {"image/*": {}}}, **REFUSALS}, openapi_extra=PHOTOGRAPH, response_class=Response)
    async def restore(request: Request, wanted: Annotated[Wanted, Depends(_options(offer))]) -> Response:
        """Restore a photograph, and answer with the restored one; its trace is behind the header `Link`. With `Accept: application/json`
        the answer is the trace, with the link of the image."""
        return await answered(request, wanted)

    @app.post(
        "/v1/tools/{tool}", responses={200: {"content": {"image/*": {}}}, **REFUSALS}, openapi_extra=PHOTOGRAPH, response_class=Response
    )
    async def apply(request: Request, tool: str, files: Annotated[dict, Depends(_files)]) -> Response:
        """Apply one tool to a photograph; one that enlarges does, whatever the size."""
        if tool not in offer.tools:
            raise Refused(404, f"there is no tool {tool[:80]!r}: GET /v1/tools lists them")
        scale = offer.tools[tool].scale
        return await answered(request, Wanted(offer.policies[0], (tool,), scale=scale if scale > 1 else None, **files))

    @app.post("/v1/jobs", status_code=202, responses=REFUSALS, openapi_extra=PHOTOGRAPH)
    async def begin(request: Request, response: Response, wanted: Annotated[Wanted, Depends(_options(offer))]) -> dict:
        """Begin to restore a photograph; the answer tells where to ask for it."""
        job = await taken(request, wanted)
        response.headers["location"] = f"/v1/jobs/{job.id}"
        return told(job, jobs)

    @app.get("/v1/jobs/{id}")
    async def state(id: str) -> dict:
        """How far a job is: `waiting`, `running`, `done`, `failed` or `cancelled`, the steps so far, and at the end the trace."""
        return told(jobs.get(id), jobs)

    @app.get("/v1/jobs/{id}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}})
    async def events(id: str) -> StreamingResponse:
        """The job at once and whenever it changes, as server-sent events, until it is over."""
        return StreamingResponse(_changes(jobs.get(id), jobs), media_type="text/event-stream", headers={"cache-control": "no-store"})

    @app.get("/v1/jobs/{id}/image", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def image(id: str) -> Response:
        """The restored photograph."""
        job = jobs.get(id)
        if not job.is_over:
            raise Refused(409, "it is not restored yet")
        return _image(job)

    @app.get("/v1/jobs/{id}/trace")
    async def trace(id: str) -> dict:
        """The trace, as `ir-env restore` writes it."""
        if (found := jobs.get(id).trace) is None:
            raise Refused(409, "it is not restored, or not yet")
        return found

    @app.get("/v1/jobs/{id}/steps/{number}", response_class=Response, responses={200: {"content": {"image/webp": {}}}})
    async def step(id: str, number: int) -> Response:
        """A picture of a step, 0 for the photograph as it came, of jobs that were begun with `previews`."""
        job = jobs.get(id)
        if not 0 <= number < len(job.steps) or job.steps[number]["preview"] is None:
            raise Refused(404, "there is no such step, or no picture of it")
        return FileResponse(job.preview(number), media_type="image/webp", headers={"cache-control": "private, max-age=900"})

    @app.delete("/v1/jobs/{id}", status_code=204, response_class=Response)
    async def end(id: str) -> Response:
        """End a job, and delete what is kept of it."""
        jobs.drop(jobs.get(id))
        return Response(status_code=204)

    @app.get("/v1/tools")
    async def tools() -> list[dict]:
        """The tools that a plan may name."""
        return [{"name": each.name, "task": each.task, "scale": each.scale, "summary": each.summary} for each in offer.tools.values()]

    @app.get("/v1/policies")
    async def policies() -> list[str]:
        """The policies that may be asked for; the first is the default."""
        return list(offer.policies)

    @app.get("/v1/limits")
    async def bounds() -> dict:
        """What the service takes."""
        return vars(limits)

    @app.get("/v1/health")
    async def health() -> JSONResponse:
        """200 if photographs can be restored, else 503."""
        try:
            async with asyncio.timeout(HEALTH_S):
                await jobs.handle.ping.remote()
            status = 200
        except Exception:
            status = 503
        return JSONResponse({"status": "ok" if status == 200 else "not ready", "waiting": jobs.waiting, "version": __version__}, status)

    @app.get("/metrics", include_in_schema=False)
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    files = {
        "/": (HERE / "page.html", "text/html"),
        "/page.js": (HERE / "page.js", "text/javascript"),
        "/page.css": (HERE / "page.css", "text/css"),
    }
    files |= {"/style.css": (REPORT / "page.css", "text/css"), "/compare.js": (REPORT / "compare.js", "text/javascript")}
    for at, (file, kind) in files.items():
        app.get(at, include_in_schema=False)(_page(file.read_text(), kind))
    return app


def _page(text: str, kind: str):
    async def shown() -> Response:
        return Response(text, media_type=kind, headers={"cache-control": "no-cache"})

    return shown


def _options(offer: Offer):
    """The query of a restoration."""

    async def options(
        files: Annotated[dict, Depends(_files)],
        policy: Annotated[str, Query(max_length=100, description="one of GET /v1/policies")] = offer.policies[0],
        plan: Annotated[str | None, Query(max_length=1000, description="tools in place of a policy: TOOL+TOOL; empty for none")] = None,
        tasks: Annotated[str, Query(max_length=1000, description="use only tools of these tasks: TASK,TASK")] = "",
        without: Annotated[str, Query(max_length=1000, description="use no tools of these names or tasks")] = "",
        effort: Annotated[Literal["fast", "best"] | None, Query(description="how many tools may be tried")] = None,
        max_steps: Annotated[int | None, Query(ge=1, le=12, description="most tools")] = None,
        scale: Annotated[float | None, Query(gt=0, le=16, allow_inf_nan=False, description="enlarge so many times")] = None,
        size: Annotated[int | None, Query(ge=16, le=32768, description="longer side of the result, in pixels")] = None,
    ) -> Wanted:
        tools = None if plan is None else _names(plan)
        return Wanted(policy, tools, _names(tasks), _names(without), effort, max_steps, scale, size, **files)

    return options


async def _files(
    format: Annotated[str | None, Query(max_length=8, pattern="^[A-Za-z0-9]+$", description="png, jpg, tif, webp, avif or jp2")] = None,
    quality: Annotated[int | None, Query(ge=1, le=100, description="of jpg, webp and avif")] = None,
    grey: Annotated[Literal["rgb", "keep"], Query(description="keep: a grey photograph stays grey")] = "rgb",
    scores: Annotated[Literal["off", "view"], Query(description="no-reference metrics in the trace")] = "off",
    previews: Annotated[bool, Query(description="keep pictures of the steps")] = False,
) -> dict:
    """The query of what is written."""
    if format is not None and f".{format.lower()}" not in TYPES:
        raise Refused(422, f"format {format!r} is not written: choose png, jpg, tif, webp, avif or jp2")
    return {"format": format, "quality": quality, "grey": grey, "scores": scores, "previews": previews}


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.replace("+", ",").replace(" ", ",").split(",")))


def _image(job: Job) -> Response:
    if job.error:
        raise job.error
    if job.result is None:
        raise Refused(410, "the restoration was ended")
    kind = TYPES.get(job.result.suffix, "application/octet-stream")
    here = f"/v1/jobs/{job.id}"
    link = f'<{here}/trace>; rel="describedby"; type="application/json", <{here}>; rel="related"'
    headers = {"link": link, "cache-control": "private, no-store"}
    return FileResponse(job.result, media_type=kind, headers=headers)


async def _gone(request: Request) -> None:
    """Waits until the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _changes(job: Job, jobs: Jobs) -> AsyncIterator[bytes]:
    while True:
        yield as_event(job, jobs)
        if job.is_over:
            return
        seen = job.state, len(job.steps)
        try:
            async with asyncio.timeout(HEARTBEAT_S), job.changed:
                await job.changed.wait_for(lambda seen=seen: (job.state, len(job.steps)) != seen)
        except TimeoutError:
            pass


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return JSONResponse({"error": error.text}, error.status, error.headers)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """In one line, as all other errors, and without the input."""
    assert isinstance(error, RequestValidationError)
    told = "; ".join(f"{each['loc'][-1]}: {each['msg']}" for each in error.errors()[:5])
    return JSONResponse({"error": told}, 422)
