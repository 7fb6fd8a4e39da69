"""/v1/encode and /v1/decode: whole videos, the body streamed in and the answer streamed out. What can be refused is
refused before the first byte of the answer; what is found later breaks the connection off, so that nobody takes half an
answer for a whole one."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from onedva_runtime.serve.body import body_parts, spooled
from onedva_runtime.serve.flow import BodyPipe, Flow
from onedva_runtime.serve.jobs import DecodeOptions, EncodeOptions, decode_packets, encode_video
from onedva_runtime.serve.refusal import Refusal, refusal_of
from onedva_runtime.serve.service import Service

__all__ = ["MEDIA_TYPES", "ODVA_TYPE", "Streamed", "decoded", "encoded"]

logger = logging.getLogger("onedva")
ODVA_TYPE = "application/vnd.onedva.odva"
MEDIA_TYPES = {"mp4": "video/mp4", "y4m": "video/x-yuv4mpeg", "nut": "video/x-nut"}
Parts = AbstractAsyncContextManager[AsyncIterator[bytes]]


class Streamed(Response):
    """An answer that is made while it is sent. Nothing goes out before its first part is there."""

    def __init__(
        self,
        service: Service,
        make: Callable[[Request], Parts],
        *,
        media_type: str,
        name: str,
        deadline_s: float | None,
    ) -> None:
        """make: for the request, the parts of the answer. media_type, name: of the file that the answer is.
        deadline_s: until when it is of use, from now."""
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.headers["content-disposition"] = f'attachment; filename="{name}"'
        self._service, self._make = service, make
        self._seconds = min(service.settings.max_request_seconds, deadline_s or math.inf)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings, metrics = self._service.settings, self._service.metrics
        started = False
        try:
            async with asyncio.timeout(self._seconds), self._make(Request(scope, receive)) as parts:
                async for part in parts:
                    async with asyncio.timeout(settings.send_stall_seconds):
                        if not started:
                            head = {"status": self.status_code, "headers": self.raw_headers}
                            await send({"type": "http.response.start", **head})
                            started = True
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                    metrics.bytes.labels("out").inc(len(part))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except ClientDisconnect:
            metrics.refused.labels("client_gone").inc()
        except TimeoutError:
            refusal = Refusal(408, "timeout", f"it was not done, or not taken, in time ({self._seconds:g} s in all)")
            if not started:
                raise refusal from None
            await self._break_off(scope, refusal)
        except Exception as error:
            if not started:
                raise
            refusal = refusal_of(error)
            if refusal is None:
                logger.exception("an answer broke off")
            await self._break_off(scope, refusal or Refusal(500, "internal", "internal error"))

    async def _break_off(self, scope: Scope, refusal: Refusal) -> None:
        """End the connection in a way that no client takes for the end of the answer."""
        self._service.metrics.refused.labels(refusal.code).inc()
        logger.info("an answer was broken off: %s (%s)", refusal.code, refusal.message)
        abort = scope.get("state", {}).get("abort")
        if abort is None:
            raise refusal
        abort(scope)
        await asyncio.sleep(0)


def encoded(service: Service, options: EncodeOptions) -> Streamed:
    """The answer to an upload of a video."""
    return Streamed(
        service,
        partial(_encoded, service, options),
        media_type=ODVA_TYPE,
        name="video.odva",
        deadline_s=options.deadline_s,
    )


def decoded(service: Service, options: DecodeOptions) -> Streamed:
    """The answer to an upload of an `.odva` file."""
    name = f"video.{options.format}"
    return Streamed(
        service,
        partial(_decoded, service, options),
        media_type=MEDIA_TYPES[options.format],
        name=name,
        deadline_s=options.deadline_s,
    )


@asynccontextmanager
async def _encoded(service: Service, options: EncodeOptions, request: Request) -> AsyncGenerator[AsyncIterator[bytes]]:
    service.check_ready()
    with service.admission.upload(), await spooled(request, service.settings, service.metrics) as file:
        async with service.admission.job(service.settings.max_compute_seconds) as charge:
            gone = asyncio.create_task(_until_gone(request))
            make = partial(encode_video, service, file, options, charge)
            async with _running(service, Flow(service.job_threads, make), gone) as parts:
                yield parts


@asynccontextmanager
async def _decoded(service: Service, options: DecodeOptions, request: Request) -> AsyncGenerator[AsyncIterator[bytes]]:
    service.check_ready()
    with service.admission.upload():
        async with service.admission.job(service.settings.max_compute_seconds) as charge:
            pipe = BodyPipe()
            gone = asyncio.create_task(_feed(request, pipe, service))
            make = partial(decode_packets, service, pipe, options, charge)
            try:
                async with _running(service, Flow(service.job_threads, make), gone, pipe=pipe) as parts:
                    yield parts
            finally:
                pipe.leave()


async def _until_gone(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _feed(request: Request, pipe: BodyPipe, service: Service) -> None:
    """Hand the body on, then return when the client has gone."""
    try:
        async with aclosing(body_parts(request, service.settings, service.metrics)) as parts:
            async for part in parts:
                await pipe.feed(part)
        pipe.end()
    except Refusal as error:
        pipe.end(error)
    except ClientDisconnect:
        return
    await _until_gone(request)


@asynccontextmanager
async def _running(
    service: Service, flow: Flow[bytes], gone: asyncio.Task[None], *, pipe: BodyPipe | None = None
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """The parts of a flow, which is left as soon as the client goes. pipe: what it reads."""

    async def parts() -> AsyncGenerator[bytes]:
        while True:
            item = asyncio.ensure_future(anext(flow, None))
            await asyncio.wait([item, gone], return_when=asyncio.FIRST_COMPLETED)
            if not item.done():
                item.cancel()
                raise ClientDisconnect
            part = item.result()
            if part is None:
                return
            yield part

    service.batcher.clients += 1
    try:
        async with aclosing(parts()) as stream:
            yield stream
    finally:
        service.batcher.clients -= 1
        gone.cancel()
        await asyncio.wait([gone])
        if pipe is not None:
            pipe.end(ClientDisconnect())  # a thread may wait for bytes
        await flow.close()
