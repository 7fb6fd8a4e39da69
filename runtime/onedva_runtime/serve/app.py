"""The routes: `make_app(service)` is an ASGI application that any server of such can run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from onedva_runtime.errors import OneDVAError
from onedva_runtime.quantiser import DEFAULT_STEP
from onedva_runtime.serve.files import MEDIA_TYPES, ODVA_TYPE, Streamed, decoded, encoded
from onedva_runtime.serve.guard import LOCAL, Guard, bearer, check_token
from onedva_runtime.serve.jobs import DecodeOptions, EncodeOptions
from onedva_runtime.serve.live_decode import live_decode
from onedva_runtime.serve.live_encode import live_encode
from onedva_runtime.serve.refusal import Refusal, refusal_of
from onedva_runtime.serve.service import Service

__all__ = ["make_app"]

logger = logging.getLogger("onedva")
PAGE = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "live.js": "text/javascript; charset=utf-8",
    "charts.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}


class Problem(BaseModel):
    """Why a request was refused."""

    code: str = Field(description="For programs: busy, too_large, too_long, over_budget, not_a_video, …")
    message: str = Field(description="For people: what was got, what is allowed, what to do.")
    retry_after: int | None = Field(None, description="Seconds after which asking again makes sense.")


class ProblemBody(BaseModel):
    """The body of every answer that is not the one asked for."""

    error: Problem


class Facts(BaseModel):
    """What a client may know of the service."""

    model: str
    fingerprint: str
    max_tokens: int
    max_steps: int
    clip_frames: int
    live_pixels: int
    live_seconds: float
    max_upload_bytes: int
    max_video_seconds: float
    max_pixels: int
    max_compute_seconds: float
    max_request_seconds: float


class State(BaseModel):
    """How the service is."""

    status: str


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ProblemBody} for status in (400, 401, 403, *statuses)}


def _media(*types: str) -> dict[str, Any]:
    return {name: {"schema": {"type": "string", "format": "binary"}} for name in types}


class EncodeQuery(BaseModel):
    """What an encode may ask for."""

    model_config = ConfigDict(extra="forbid")
    tokens: str = Field("auto", max_length=16, description="1D latents per clip: auto, a number, or as in 35dB.")
    quantiser: float = Field(DEFAULT_STEP, ge=2**-10, le=2, description="Quantisation step of the latents.")
    keyframe_interval: int = Field(8, ge=0, le=10_000, description="Clips from one key clip to the next; 1: all.")
    low_latency: bool = Field(False, description="Clips of 5 frames.")
    deadline_s: float | None = Field(None, gt=0, le=86_400, description="Of no use later than this, from now.")


class DecodeQuery(BaseModel):
    """What a decode may ask for."""

    model_config = ConfigDict(extra="forbid")
    steps: int = Field(1, ge=1, le=50, description="Diffusion steps per clip.")
    seed: int = Field(0, ge=0, le=2**64 - 1, description="Of the noise.")
    format: Literal["mp4", "y4m", "nut"] = Field("mp4", description="mp4: H.264 in fragments, as it comes.")
    deadline_s: float | None = Field(None, gt=0, le=86_400, description="Of no use later than this, from now.")


def make_app(service: Service, *, abort: Callable[[Any], None] | None = None, stop: Callable[[], None] | None = None):
    """The application. abort: breaks off the connection of a scope, where the server can; stop: called where warm-up
    fails."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        warming = asyncio.create_task(_warm_up(service, stop))
        yield {} if abort is None else {"abort": abort}
        await asyncio.wait([warming])
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="onedva",
        description="Video to and from adaptive 1D latents. Bodies are bytes, not forms; docs/serve.md has the rest.",
        version="1",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(Refusal, _refused(service))
    app.add_exception_handler(RequestValidationError, _refused(service))
    app.add_exception_handler(HTTPException, _refused(service))
    app.add_exception_handler(OneDVAError, _refused(service))
    app.add_middleware(Guard, service=service)
    if service.settings.allow_origins:  # outside the guard: a browser asks first whether it may send a token
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(service.settings.allow_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After", "Content-Disposition"],
            max_age=600,
        )
    _add_state(app, service)
    _add_files(app, service)
    _add_live(app, service)
    _add_page(app)
    return app


async def _warm_up(service: Service, stop: Callable[[], None] | None) -> None:
    try:
        await asyncio.to_thread(service.warm_up)
    except Exception as error:
        logger.error("warm-up failed: %s", error)
        service.problem = "warm-up failed"
        if stop is not None:
            stop()


def _refused(service: Service) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handler(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            refusal = Refusal(422, "bad_parameter", "; ".join(_told(problem) for problem in error.errors()[:5]))
        elif isinstance(error, HTTPException):
            code = {404: "not_found", 405: "bad_method"}.get(error.status_code, "bad_request")
            refusal = Refusal(error.status_code, code, f"{error.detail}")
        else:
            refusal = refusal_of(error) or Refusal(500, "internal", "internal error: the operator's log has it")
        service.metrics.refused.labels(refusal.code).inc()
        headers = (
            {**(getattr(error, "headers", None) or {}), **refusal.headers()}
            if isinstance(error, HTTPException)
            else refusal.headers()
        )
        return JSONResponse(refusal.body(), refusal.status, headers)

    return handler


def _told(problem: Any) -> str:
    where = ".".join(str(part) for part in problem.get("loc", ())[1:])
    return f"{where}: {problem.get('msg', 'not allowed')}"


def _add_state(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)  # some load balancers probe so
    @app.get("/healthz", response_model=State, tags=["state"])
    async def healthz() -> State:
        """Whether the process lives."""
        return State(status="alive")

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_model=State, responses={503: {"model": ProblemBody}}, tags=["state"])
    async def readyz() -> State:
        """Whether it may be sent requests: warm-up and golden test passed, and it is not stopping."""
        service.check_ready()
        return State(status="ready")

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": _media("text/plain")}, **_problems()},
        tags=["state"],
    )
    async def metrics(request: Request) -> Response:
        """For Prometheus, with a token of its own; without one, on this machine only."""
        settings = service.settings
        if settings.metrics_tokens:
            check_token(bearer(request.scope, request.headers), settings.metrics_tokens)
        else:
            client = request.client.host if request.client is not None else ""
            forwarded = {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(request.headers)
            if not settings.loopback:
                message = "metrics are private on an address that others reach; --metrics-token-file opens them"
                raise Refusal(403, "private", message)
            if client not in LOCAL or forwarded:
                raise Refusal(403, "private", "metrics are for this machine only; --metrics-token-file opens them")
        text, kind = service.metrics.text()
        return Response(text, media_type=kind)

    @app.get("/v1/info", response_model=Facts, responses=_problems(503), tags=["codec"])
    async def info() -> Facts:
        """What is served, and within which limits."""
        service.check_ready()
        codec, settings = service.codec, service.settings
        return Facts(
            model=codec.name,
            fingerprint=codec.manifest.model.fingerprint,
            max_tokens=codec.max_tokens,
            max_steps=codec.manifest.sampler.max_steps,
            clip_frames=codec.clip_frames,
            live_pixels=settings.live_pixels,
            max_upload_bytes=settings.max_upload_bytes,
            max_video_seconds=settings.max_video_seconds,
            live_seconds=settings.live_seconds,
            max_pixels=settings.max_pixels,
            max_compute_seconds=settings.max_compute_seconds,
            max_request_seconds=settings.max_request_seconds,
        )


def _add_files(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/encode",
        response_class=Response,
        responses={200: {"content": _media(ODVA_TYPE)}, **_problems(408, 413, 422, 429, 503)},
        openapi_extra={"requestBody": {"required": True, "content": _media("application/octet-stream", "video/mp4")}},
        tags=["codec"],
    )
    async def encode(query: Annotated[EncodeQuery, Query()]) -> Streamed:
        """A video file in, an `.odva` file out."""
        service.expected_tokens(query.tokens, 1)  # refused before anything is read
        return encoded(service, EncodeOptions(**query.model_dump()))

    @app.post(
        "/v1/decode",
        response_class=Response,
        responses={200: {"content": _media(*MEDIA_TYPES.values())}, **_problems(408, 413, 422, 429, 503)},
        openapi_extra={"requestBody": {"required": True, "content": _media("application/octet-stream", ODVA_TYPE)}},
        tags=["codec"],
    )
    async def decode(query: Annotated[DecodeQuery, Query()]) -> Streamed:
        """An `.odva` file in, a video file out, while it comes."""
        most = service.codec.manifest.sampler.max_steps
        if query.steps > most:
            raise Refusal(422, "bad_parameter", f"steps: this model takes 1 to {most}")
        return decoded(service, DecodeOptions(**query.model_dump()))


def _add_live(app: FastAPI, service: Service) -> None:
    @app.websocket("/v1/live/encode")
    async def encode_live(socket: WebSocket) -> None:
        await live_encode(service, socket)

    @app.websocket("/v1/live/decode")
    async def decode_live(socket: WebSocket) -> None:
        await live_decode(service, socket)


def _add_page(app: FastAPI) -> None:
    folder = resources.files("onedva_runtime.serve") / "page"

    def page(name: str) -> Callable[[], Awaitable[Response]]:
        async def read() -> Response:
            return Response((folder / name).read_bytes(), media_type=PAGE[name], headers={"Cache-Control": "no-cache"})

        return read

    app.add_api_route("/", page("index.html"), methods=["GET", "HEAD"], include_in_schema=False)
    for name in PAGE:
        app.add_api_route(f"/page/{name}", page(name), include_in_schema=False)
