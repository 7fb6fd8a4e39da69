"""What live sessions share: their socket, with limits on silence, size, speed and slow readers; how one is let in, and
how it ends. docs/serve.md has the messages."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect, WebSocketState

from onedva_runtime.errors import OneDVAError
from onedva_runtime.quantiser import DEFAULT_STEP
from onedva_runtime.serve.admission import Reservation
from onedva_runtime.serve.guard import LIVE_PROTOCOL
from onedva_runtime.serve.refusal import Refusal, refusal_of
from onedva_runtime.serve.service import Service

__all__ = ["LiveDecodeQuery", "LiveEncodeQuery", "LiveSocket", "Pacer", "parse_query", "run_session"]

logger = logging.getLogger("onedva")
MOST_TEXT = 4096  # bytes of a control message
WAITED = 1e-3  # seconds from which a message was waited for: what has come already is there at once
Query = TypeVar("Query", bound=BaseModel)


class _LiveQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = Field(ge=1, le=8192)
    height: int = Field(ge=1, le=8192)
    fps: float = Field(24.0, ge=1, le=120)
    low_latency: bool = False
    tokens: str = Field("auto", max_length=16)
    deadline_ms: float | None = Field(None, gt=0, le=60_000)


class LiveEncodeQuery(_LiveQuery):
    """What a live encode is opened with."""

    quantiser: float = Field(DEFAULT_STEP, ge=2**-10, le=2)
    keyframe_interval: int = Field(8, ge=0, le=10_000)
    max_kbps: float | None = Field(None, ge=0, le=1e6)


class LiveDecodeQuery(_LiveQuery):
    """What a live decode is opened with; tokens: as many as its packets will have, for what it costs."""

    steps: int = Field(1, ge=1, le=50)
    seed: int = Field(0, ge=0, le=2**64 - 1)


class SlowReader(Exception):
    """The client does not take what is sent."""


class Pacer:
    """Holds a client to the frame rate that it was let in with: a quarter more, and two seconds ahead."""

    def __init__(self, fps: float) -> None:
        self._rate, self._burst = 1.25 * fps, max(2 * fps, 40.0)
        self._start, self._frames = time.monotonic(), 0

    def delay(self, frames: int) -> float:
        """Count frames; return the seconds for which to take no more."""
        now = time.monotonic()
        ahead = self._frames - self._rate * (now - self._start)
        if ahead < 0:  # what was not used is not saved up
            self._start, self._frames = now, 0
            ahead = 0.0
        self._frames += frames
        return max(0.0, (ahead + frames - self._burst) / self._rate)


class LiveSocket:
    """One client's socket."""

    def __init__(self, service: Service, socket: WebSocket) -> None:
        self._service, self._socket = service, socket
        self._settings = service.settings
        self._end = time.monotonic() + self._settings.live_seconds
        self._clock: asyncio.Timeout | None = None
        self._idle_at = time.monotonic()

    @property
    def behind(self) -> float:
        """Seconds since the client was last waited for: what it sends lies unread meanwhile."""
        return time.monotonic() - self._idle_at if self._clock is None else 0.0

    async def pause(self, seconds: float) -> None:
        """Take nothing for a while from a client that is ahead of its rate."""
        await asyncio.sleep(seconds)
        self._idle_at = time.monotonic()

    async def accept(self) -> None:
        """Let the client in."""
        offered: list[str] = self._socket.scope.get("subprotocols", [])
        await self._socket.accept(subprotocol=LIVE_PROTOCOL if LIVE_PROTOCOL in offered else None)

    async def receive(self) -> bytes | Mapping[str, Any]:
        """The next message: bytes, or a control message. Raises Refusal for silence, a session that is over, or text
        that is no control message, and where the service is too far behind; WebSocketDisconnect."""
        if self._service.admission.draining:
            raise self._stopping()
        if time.monotonic() > self._end:
            raise Refusal(408, "over", f"a live session lasts {self._settings.live_seconds:g} s: open another")
        self._service.check_behind(self)
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.idle_seconds) as self._clock:
                message = await self._socket.receive()
        except TimeoutError:
            if self._service.admission.draining:
                raise self._stopping() from None
            raise Refusal(408, "idle", f"nothing came for {self._settings.idle_seconds:g} s") from None
        finally:
            self._clock = None
        if time.monotonic() - start > WAITED:
            self._idle_at = time.monotonic()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        data: bytes | None = message.get("bytes")
        if data is not None:
            self._service.metrics.bytes.labels("in").inc(len(data))
            return data
        return _control(message.get("text") or "")

    def interrupt(self) -> None:
        """Let a `receive` that waits look whether the service is stopping."""
        if self._clock is not None:
            self._clock.reschedule(asyncio.get_running_loop().time())

    async def send(self, facts: Mapping[str, Any], data: bytes | None = None) -> None:
        """Send a control message, and bytes after it. Raises SlowReader."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._settings.send_stall_seconds):
                await self._socket.send_text(json.dumps(facts))
                if data is not None:
                    await self._socket.send_bytes(data)
                    self._service.metrics.bytes.labels("out").inc(len(data))
        except TimeoutError:
            raise SlowReader from None
        self._idle_at += time.monotonic() - start  # what a client takes its time for does not put the service behind

    async def refuse(self, refusal: Refusal) -> None:
        """Say why, and close; a refusal over HTTP where the client was not let in yet."""
        self._service.metrics.refused.labels(refusal.code).inc()
        if self._socket.application_state is WebSocketState.CONNECTING:
            answer = JSONResponse(refusal.body(), refusal.status, refusal.headers())
            await self._socket.send_denial_response(answer)
            return
        await self.send({"type": "error", **refusal.body()["error"]})
        await self.close(refusal.close_code, refusal.code)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close in good order."""
        await self._socket.close(code, reason)

    def abort(self) -> None:
        """Break the connection off: what was sent is not taken, so nothing more can be said."""
        abort = getattr(self._socket.state, "abort", None)
        if abort is not None:
            abort(self._socket.scope)

    def _stopping(self) -> Refusal:
        return Refusal(503, "stopping", "the service is stopping: open another session", retry_after=2)


def parse_query(kind: type[Query], socket: WebSocket, service: Service) -> Query:
    """The session's options. Raises Refusal."""
    try:
        query = kind.model_validate(dict(socket.query_params))
    except ValidationError as error:
        told = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:5])
        raise Refusal(422, "bad_parameter", "; ".join(told)) from None
    size: Any = query
    if size.width * size.height > service.settings.live_pixels:
        got = f"{size.width}x{size.height}"
        raise Refusal(
            413, "too_large", f"live frames of {got}; at most {service.settings.live_pixels} pixels are allowed"
        )
    return query


async def run_session(
    service: Service,
    socket: WebSocket,
    work: str,
    share: Callable[[], float],
    session: Callable[[LiveSocket, Reservation], Awaitable[None]],
) -> None:
    """Let a client in, or not, and see the session through. work: "encode" or "decode". share: of the machine, that it
    will take; raises Refusal."""
    live = LiveSocket(service, socket)
    try:
        service.check_ready()
        with service.admission.live(share(), work) as reservation:
            service.live[live] = None
            service.batcher.clients += 1
            try:
                await live.accept()
                await session(live, reservation)
            finally:
                service.batcher.clients -= 1
                service.live.pop(live, None)
    except WebSocketDisconnect:
        pass
    except SlowReader:
        service.metrics.refused.labels("slow_reader").inc()
        live.abort()
    except (Refusal, OneDVAError) as error:
        refusal = refusal_of(error)
        assert refusal is not None
        await _last_words(live, refusal)
    except Exception:
        logger.exception("a live session failed")
        await _last_words(live, Refusal(500, "internal", "internal error: the operator's log has it"))


async def _last_words(live: LiveSocket, refusal: Refusal) -> None:
    try:
        await live.refuse(refusal)
    except SlowReader:
        live.abort()
    except (WebSocketDisconnect, RuntimeError):  # it has gone: RuntimeError is Starlette's word for it
        pass


def _control(text: str) -> Mapping[str, Any]:
    """A control message: a JSON object with a type. Raises Refusal."""
    try:
        if len(text) > MOST_TEXT:
            raise ValueError
        message = json.loads(text)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise ValueError
    except (ValueError, RecursionError):
        raise Refusal(
            422, "bad_message", f'a text message is a JSON object with a "type", of at most {MOST_TEXT} characters'
        ) from None
    return message
