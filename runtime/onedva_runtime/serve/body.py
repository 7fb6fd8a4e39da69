"""Bodies of requests as they come: bounded in size, in silence and in slowness, and never held in memory."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncGenerator
from typing import BinaryIO, cast

from starlette.requests import ClientDisconnect, Request

from onedva_runtime.serve.metrics import Metrics
from onedva_runtime.serve.refusal import Refusal
from onedva_runtime.serve.settings import Settings

__all__ = ["body_parts", "spooled"]


async def body_parts(request: Request, settings: Settings, metrics: Metrics) -> AsyncGenerator[bytes]:
    """The parts of a request's body. Raises Refusal: 413 for too many bytes, before they are read where the client
    announces them; 408 for one that stops or dawdles; ClientDisconnect."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Refusal(
            422, "bad_body", "the body is a form: send the file's bytes as the body (curl --data-binary @FILE)"
        )
    most = settings.max_upload_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(most)
    got, waited = 0, 0.0
    while True:
        start = time.monotonic()
        try:
            async with asyncio.timeout(settings.upload_stall_seconds):
                message = await request.receive()
        except TimeoutError:
            seconds = settings.upload_stall_seconds
            raise Refusal(408, "too_slow", f"nothing came for {seconds:g} s: send the body without a pause") from None
        waited += time.monotonic() - start
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part: bytes = message.get("body", b"")
        got += len(part)
        metrics.bytes.labels("in").inc(len(part))
        if got > most:
            raise _too_large(most)
        if waited > settings.upload_stall_seconds + got / settings.min_upload_rate:
            rate = settings.min_upload_rate
            raise Refusal(408, "too_slow", f"the body came at less than {rate} bytes per second")
        if part:
            yield part
        if not message.get("more_body", False):
            return


async def spooled(request: Request, settings: Settings, metrics: Metrics) -> BinaryIO:
    """The whole body in a temporary file without a name, so that nothing is left whatever happens to this process.

    Video files must be searched to be read, so they cannot be decoded as they come. Raises as `body_parts`, and Refusal
    for an empty body.
    """
    file = cast(BinaryIO, tempfile.TemporaryFile(prefix="onedva-"))  # noqa: SIM115 (handed out)
    try:
        size = 0
        async for part in body_parts(request, settings, metrics):
            await asyncio.to_thread(file.write, part)
            size += len(part)
        if not size:
            raise Refusal(422, "empty", "the body is empty: send the video's bytes as the body, not a form")
        await asyncio.to_thread(file.flush)
    except BaseException:
        file.close()
        raise
    return file


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"the body has more than {most} bytes, which is what may be sent at once")
