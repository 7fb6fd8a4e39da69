"""/v1/live/decode: the bytes of an `.odva` file in, as they come and cut however, frames out, live. What is lost on the
way is concealed, and told of."""

from __future__ import annotations

import asyncio
import io
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from fastapi import WebSocket

from onedva_runtime.container import PacketReader, open_packets
from onedva_runtime.container_layout import MAX_SETUP, OPENING
from onedva_runtime.errors import OverLimit, Truncated
from onedva_runtime.serve.admission import Reservation
from onedva_runtime.serve.cost import positions_of
from onedva_runtime.serve.live import LiveDecodeQuery, LiveSocket, Pacer, parse_query, run_session
from onedva_runtime.serve.live_encode import clip_frames
from onedva_runtime.serve.refusal import Refusal
from onedva_runtime.serve.service import Service
from onedva_runtime.stream_report import StreamReport

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["HEAD", "live_decode"]

HEAD = struct.Struct("<IHHHH")  # before frames: number of the first, how many, height, width, 0
Messages = list[tuple[dict[str, Any], bytes]]


class Growing(io.RawIOBase):
    """A file that grows as bytes are fed, and forgets what was read."""

    def __init__(self) -> None:
        super().__init__()
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Append."""
        self._data += data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(self._data))
        view[:count] = self._data[:count]
        del self._data[:count]
        return count


class _Session:
    """The codec's side of one session. `feed` and `step` run in threads, one at a time."""

    def __init__(self, service: Service, query: LiveDecodeQuery) -> None:
        self._service, self._query = service, query
        self._limits = service.settings.live_limits
        self._reports: list[StreamReport] = []
        self.decoder = service.live_codec.open_decoder(
            num_steps=query.steps, seed=query.seed, deadline_ms=query.deadline_ms, on_report=self._reports.append
        )
        self._start, self._file = bytearray(), Growing()  # what came before the file could be opened, and after
        self._reader: PacketReader | None = None
        self.frames = 0

    def feed(self, data: bytes) -> None:
        """Take bytes of the file. Raises PacketError, Refusal."""
        if self._reader is not None:
            self._file.feed(data)
            return
        self._start += data
        if len(self._start) < OPENING.size:
            return
        file = Growing()
        file.feed(bytes(self._start))
        try:
            reader = open_packets(cast(BinaryIO, file), limits=self._limits)
        except Truncated:
            if len(self._start) > 2 * MAX_SETUP:
                raise OverLimit(f"no setup in the first {len(self._start)} bytes") from None
            return
        size = reader.header.width, reader.header.height
        if size != (self._query.width, self._query.height):
            got, asked = (f"{width}x{height}" for width, height in (size, (self._query.width, self._query.height)))
            raise Refusal(422, "bad_size", f"the packets are of {got}, this session was opened for {asked}")
        reader.expect_losses()
        self._reader, self._file, self._start = reader, file, bytearray()

    def step(self) -> Messages | None:
        """Messages for the next packet; None where no whole one is there. Raises PacketError."""
        if self._reader is None:
            return None
        try:
            packet = next(iter(self._reader), None)
        except Truncated:
            return None
        return None if packet is None else self._shown(self.decoder.push(packet))

    @property
    def complete(self) -> bool:
        """Whether the file's own end came."""
        return self._reader is not None and self._reader.complete

    def flush(self) -> Messages:
        """Messages for the frames that are held back."""
        return self._shown(self.decoder.flush())

    def _shown(self, outputs: Sequence[npt.NDArray[np.uint8]]) -> Messages:
        messages: Messages = []
        for frames, report in zip(outputs, self._reports, strict=True):
            self._service.note_clip("decode", report)
            self.frames += len(frames)
            times = None if report.timestamps is None else [int(tick) for tick in report.timestamps]
            facts = {
                "type": "frames",
                "first_frame": report.first_frame,
                "frames": report.frames,
                "times": times,
                "tokens": report.tokens,
                "steps": report.num_steps,
                "seconds": round(report.seconds, 4),
                "late": report.late,
                "reduced": report.reduced,
                "concealed": report.concealed,
                "needs_key": self.decoder.needs_key,
            }
            most = max(1, (self._service.settings.live_pixels * 20) // (frames.shape[1] * frames.shape[2]))
            for start in range(0, len(frames), most):  # a long loss is many frames
                part = np.ascontiguousarray(frames[start : start + most])
                head = HEAD.pack(report.first_frame + start, len(part), *part.shape[1:3], 0)
                messages.append(({**facts, "more": start + most < len(frames)}, head + part.tobytes()))
        self._reports.clear()
        return messages


def decode_share(service: Service, query: LiveDecodeQuery, steps: int) -> float:
    """What the session takes of the machine. Raises Refusal."""
    most = service.live_codec.manifest.sampler.max_steps
    if steps > most:
        raise Refusal(422, "bad_parameter", f"steps: this model takes 1 to {most}, got {steps}")
    frames = clip_frames(service, query)
    positions = positions_of(frames, query.height, query.width)
    tokens = service.expected_tokens(query.tokens, positions)
    return service.cost.decode(positions, tokens, steps) * query.fps / max(1, frames - 1)


async def live_decode(service: Service, socket: WebSocket) -> None:
    """See a live decode through."""
    query: LiveDecodeQuery | None = None

    def taken() -> float:
        nonlocal query
        query = parse_query(LiveDecodeQuery, socket, service)
        return decode_share(service, query, query.steps)

    async def session(live: LiveSocket, reservation: Reservation) -> None:
        assert query is not None
        await _run(service, live, reservation, query)

    await run_session(service, socket, "decode", taken, session)


async def _run(service: Service, live: LiveSocket, reservation: Reservation, query: LiveDecodeQuery) -> None:
    loop, threads = asyncio.get_running_loop(), service.live_threads
    session, pacer = _Session(service, query), Pacer(query.fps)
    while True:
        message = await live.receive()
        if isinstance(message, bytes):
            await loop.run_in_executor(threads, session.feed, message)
            while (messages := await loop.run_in_executor(threads, session.step)) is not None:
                before = session.frames
                for facts, data in messages:
                    await live.send(facts, data)
                if (delay := pacer.delay(session.frames - before)) > 0.01:
                    await live.pause(delay)
        elif message["type"] == "end":
            for facts, data in await loop.run_in_executor(threads, session.flush):
                await live.send(facts, data)
            await live.send({"type": "end", "frames": session.frames, "complete": session.complete})
            await live.close()
            return
        else:
            _obey(service, session, reservation, query, message)


def _obey(
    service: Service,
    session: _Session,
    reservation: Reservation,
    query: LiveDecodeQuery,
    message: Mapping[str, Any],
) -> None:
    """Do what a control message asks. Raises Refusal for one that is not known."""
    if message["type"] != "set":
        raise Refusal(422, "bad_message", "a message of type end or set, or bytes of an .odva file, is expected")
    steps = message.get("steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise Refusal(422, "bad_message", "set: steps is a whole number from 1")
    reservation.change(decode_share(service, query, steps))
    session.decoder.set_steps(steps)
