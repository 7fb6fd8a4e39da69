"""/v1/live/encode: frames in, packets out, live. The binary messages that go out are, one after the other, an `.odva`
file; a client that reports its bandwidth gets fewer tail segments, without anything being encoded again."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, BinaryIO, cast

import numpy as np
from fastapi import WebSocket

from onedva_runtime.container import PacketWriter
from onedva_runtime.container_packet import Coded, encode_packet
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.packet import Packet
from onedva_runtime.serve.admission import Reservation
from onedva_runtime.serve.cost import positions_of
from onedva_runtime.serve.jobs import LOW_LATENCY_FRAMES, Chunks
from onedva_runtime.serve.live import LiveEncodeQuery, LiveSocket, Pacer, parse_query, run_session
from onedva_runtime.serve.refusal import Refusal
from onedva_runtime.serve.service import Service
from onedva_runtime.stream_report import StreamReport
from onedva_runtime.thin import Clip, clip_of, header_of, share

__all__ = ["Bandwidth", "live_encode"]

STAMP = struct.Struct("<q")  # before a frame: its time in microseconds
TIME_BASE = Fraction(1, 1_000_000)


class Bandwidth:
    """What a client says it can take, and which tail segments that leaves out."""

    def __init__(self, kbps: float | None) -> None:
        self.kbps = kbps
        """1000 bits per second; None: all of them."""
        self._saved = 0.0  # bytes that earlier clips left over, or took too many

    def keep(self, coded: Sequence[Coded], sizes: Sequence[Clip], seconds: float) -> list[int]:
        """How many segments to keep of each packet of a clip that lasts `seconds`. sizes: `thin.clip_of` of each."""
        if self.kbps is None:
            return [len(packet.segments) for packet in coded]
        rate = 125 * self.kbps
        allowed = rate * seconds + self._saved
        kept = share(sizes, max(0, int(allowed)), source="the clip")
        used = sum(size.base + sum(size.sizes[:number]) for size, number in zip(sizes, kept, strict=True))
        self._saved = min(rate, max(-rate * seconds, allowed - used))  # a second at most; never more than a clip owed
        return kept


class _Session:
    """The codec's side of one session. `push` and `finish` run in threads, one at a time."""

    def __init__(self, service: Service, query: LiveEncodeQuery) -> None:
        codec = service.live_codec
        self._service, self._fps = service, query.fps
        self._quantiser = codec.quantiser(step=query.quantiser)
        self._reports: list[StreamReport] = []
        self.encoder = codec.open_encoder(
            fps=query.fps,
            tokens=query.tokens,
            keyframe_interval=query.keyframe_interval,
            clip_frames=clip_frames(service, query),
            time_base=TIME_BASE,
            deadline_ms=query.deadline_ms,
            on_report=self._reports.append,
        )
        self.bandwidth = Bandwidth(query.max_kbps)
        self._chunks = Chunks()
        self._writer = PacketWriter(cast(BinaryIO, self._chunks), quantiser=self._quantiser)
        self.frames = self.bytes = 0

    def push(self, frame: np.ndarray, time: int) -> list[tuple[dict[str, Any], bytes]]:
        """Messages for a frame (H, W, 3)."""
        return self._coded(self.encoder.push(frame[None], np.array([time], np.int64)))

    def flush(self) -> list[tuple[dict[str, Any], bytes]]:
        """Messages for the clip that is not full."""
        return self._coded(self.encoder.flush())

    def finish(self) -> bytes:
        """The end of the `.odva` file; nothing where there were no frames."""
        if self.frames:
            self._writer.finish()
        return self._chunks.take()

    def _coded(self, packets: Sequence[Packet]) -> list[tuple[dict[str, Any], bytes]]:
        messages: list[tuple[dict[str, Any], bytes]] = []
        for report in self._reports:
            clip = [packet for packet in packets if packet.first_frame == report.first_frame]
            messages.append(self._clip(report, clip))
        self._reports.clear()
        return messages

    def _clip(self, report: StreamReport, packets: Sequence[Packet]) -> tuple[dict[str, Any], bytes]:
        coded = [encode_packet(packet.validate(), self._quantiser, TABLES) for packet in packets]
        header = header_of(packets[0], self._quantiser)
        kept = self.bandwidth.keep(coded, [clip_of(packet, header) for packet in coded], report.frames / self._fps)
        dropped = sum(len(packet.segments) - count for packet, count in zip(coded, kept, strict=True))
        thin = [packet.keep(count) for packet, count in zip(coded, kept, strict=True)]
        for packet in thin:
            self._writer.write_coded(packet, header)
        data = self._chunks.take()
        self.frames, self.bytes = self.frames + report.frames, self.bytes + len(data)
        self._service.note_clip("encode", report)
        self._service.metrics.dropped.inc(dropped)
        facts = {
            "type": "clip",
            "first_frame": report.first_frame,
            "frames": report.frames,
            "key": report.is_key,
            "tokens": sum(packet.tokens for packet in thin),
            "encoded_tokens": report.tokens,
            "dropped_segments": dropped,
            "bytes": len(data),
            "seconds": round(report.seconds, 4),
            "latency_ms": round(1e3 * report.latency_s, 1),
            "late": report.late,
            "reduced": report.reduced,
        }
        return facts, data


def clip_frames(service: Service, query: Any) -> int:
    """Frames of a full clip of a session."""
    return LOW_LATENCY_FRAMES if query.low_latency else service.live_codec.clip_frames


def encode_share(service: Service, query: LiveEncodeQuery, tokens: str) -> float:
    """What the session takes of the machine. Raises Refusal."""
    frames = clip_frames(service, query)
    positions = positions_of(frames, query.height, query.width)
    return service.cost.encode(positions, service.expected_tokens(tokens, positions)) * query.fps / max(1, frames - 1)


async def live_encode(service: Service, socket: WebSocket) -> None:
    """See a live encode through."""
    query: LiveEncodeQuery | None = None

    def taken() -> float:
        nonlocal query
        query = parse_query(LiveEncodeQuery, socket, service)
        return encode_share(service, query, query.tokens)

    async def session(live: LiveSocket, reservation: Reservation) -> None:
        assert query is not None
        await _run(service, live, reservation, query)

    await run_session(service, socket, "encode", taken, session)


async def _run(service: Service, live: LiveSocket, reservation: Reservation, query: LiveEncodeQuery) -> None:
    loop, threads = asyncio.get_running_loop(), service.live_threads
    session = await loop.run_in_executor(threads, _Session, service, query)
    pacer, size = Pacer(query.fps), STAMP.size + 3 * query.width * query.height
    last: int | None = None
    while True:
        try:
            message = await live.receive()
        except Refusal as refusal:
            if refusal.code == "stopping":  # what was taken in is not lost
                await _send_all(live, await loop.run_in_executor(threads, session.flush))
            raise
        if isinstance(message, bytes):
            if len(message) != size:
                raise Refusal(
                    422,
                    "bad_frame",
                    f"a frame of {len(message)} bytes; {query.width}x{query.height} is {size}: the time in "
                    "microseconds as int64, little-endian, then rows of RGB",
                )
            (time,) = STAMP.unpack_from(message)
            if (last is not None and time <= last) or not -(2**53) < time < 2**53:
                raise Refusal(
                    422, "bad_time", f"times rise from frame to frame within 53 bits; got {time} after {last}"
                )
            last = time
            frame = np.frombuffer(message, np.uint8, offset=STAMP.size).reshape(query.height, query.width, 3)
            await _send_all(live, await loop.run_in_executor(threads, session.push, frame, time))
            if (delay := pacer.delay(1)) > 0.01:
                await live.pause(delay)
        elif message["type"] == "end":
            await _send_all(live, await loop.run_in_executor(threads, session.flush))
            rest = await loop.run_in_executor(threads, session.finish)
            await live.send({"type": "end", "frames": session.frames, "bytes": session.bytes + len(rest)}, rest)
            await live.close()
            return
        elif message["type"] == "flush":
            await _send_all(live, await loop.run_in_executor(threads, session.flush))
        else:
            _obey(service, session, reservation, query, message)


async def _send_all(live: LiveSocket, messages: Sequence[tuple[dict[str, Any], bytes]]) -> None:
    for facts, data in messages:
        await live.send(facts, data)


def _obey(
    service: Service,
    session: _Session,
    reservation: Reservation,
    query: LiveEncodeQuery,
    message: Mapping[str, Any],
) -> None:
    """Do what a control message asks. Raises Refusal for one that is not known."""
    if message["type"] == "key":
        session.encoder.request_key()
    elif message["type"] == "bandwidth":
        kbps = message.get("kbps")
        valid = (
            isinstance(kbps, int | float) and not isinstance(kbps, bool) and math.isfinite(kbps) and 0 <= kbps <= 1e6
        )
        if kbps is not None and not valid:
            raise Refusal(422, "bad_message", "bandwidth: kbps is a number from 0 to 1000000, or null for no limit")
        session.bandwidth.kbps = kbps
    elif message["type"] == "set":
        tokens = message.get("tokens")
        if not isinstance(tokens, int | str) or isinstance(tokens, bool) or len(str(tokens)) > 16:
            raise Refusal(422, "bad_message", 'set: tokens is a number, "auto", or a quality such as "35dB"')
        reservation.change(encode_share(service, query, str(tokens)))
        session.encoder.set_tokens(str(tokens))
    else:
        raise Refusal(
            422, "bad_message", "a message of type end, flush, key, bandwidth or set, or a frame, is expected"
        )
