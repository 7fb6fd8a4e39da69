"""Whole videos as generators that a `Flow` runs in a thread: an upload to the bytes of an `.odva` file, and back to
those of a video, clip by clip, so that memory does not grow with the video."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, cast

from onedva_runtime.container import PacketWriter, open_packets
from onedva_runtime.serve.admission import Charge
from onedva_runtime.serve.cost import positions_of
from onedva_runtime.serve.flow import BodyPipe, Flow
from onedva_runtime.serve.refusal import Refusal
from onedva_runtime.serve.service import Service
from onedva_runtime.video_pipe import PipeWriter
from onedva_runtime.video_sandbox import Sandbox, open_sandboxed

__all__ = ["Chunks", "DecodeOptions", "EncodeOptions", "decode_packets", "encode_video"]

LOW_LATENCY_FRAMES = 5
RATES = (Fraction(1, 10), Fraction(1000))  # frames per second that videos may have


@dataclass(frozen=True, kw_only=True)
class _Options:
    deadline_s: float | None
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline, of which the upload and waiting may have taken some."""
        return None if self.deadline_s is None else self.deadline_s - (time.monotonic() - self.asked_at)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions(_Options):
    """What a client asks of an encode."""

    tokens: str
    quantiser: float
    keyframe_interval: int
    low_latency: bool


@dataclass(frozen=True, kw_only=True)
class DecodeOptions(_Options):
    """What a client asks of a decode."""

    steps: int
    seed: int
    format: str


class Chunks:
    """A file that is written to memory and taken away as it grows."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes | memoryview) -> int:
        """Append."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        """What was written since the last time."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def encode_video(
    service: Service, file: BinaryIO, options: EncodeOptions, charge: Charge, flow: Flow[bytes]
) -> Iterator[bytes]:
    """Encode an uploaded video, decoded in a process of its own. Raises Refusal, OneDVAError."""
    settings, codec, cost = service.settings, service.codec, service.cost
    sandbox = Sandbox(
        memory_bytes=settings.sandbox_bytes,
        cpu_seconds=max(1, math.ceil(settings.max_request_seconds)),
        stall_seconds=max(1.0, settings.send_stall_seconds),
    )
    clip_frames = LOW_LATENCY_FRAMES if options.low_latency else codec.clip_frames
    with open_sandboxed(file, sandbox=sandbox, limits=settings.limits, batch=17) as reader:
        info = reader.info
        _check_rate(info.fps)
        _check_length(info.duration_s or 0.0, settings.max_video_seconds)
        positions = positions_of(clip_frames, info.height, info.width)
        seconds = cost.encode(positions, service.expected_tokens(options.tokens, positions))
        per_frame = seconds / max(1, clip_frames - 1)
        expected = min(info.frames or 0, settings.limits.max_frames)  # what the file says: more is charged as it comes
        flow.call(lambda: charge.expect(per_frame * expected, deadline=options.left_s))
        out = Chunks()
        writer = PacketWriter(
            cast(BinaryIO, out),
            quantiser=codec.quantiser(step=options.quantiser),
            fps=info.fps,
            colour=str(info.colour),
        )
        encoder = codec.open_encoder(
            fps=float(info.fps),
            tokens=options.tokens,
            keyframe_interval=options.keyframe_interval,
            clip_frames=clip_frames,
            time_base=info.time_base,
            on_report=lambda report: service.note_clip("encode", report),
        )
        count, first, shift = 0, 0, 0
        for frames, times in reader:
            if not count:
                first, shift = int(times[0]), min(0, int(times[0]))
            _check_length(float((int(times[-1]) - first) * info.time_base), settings.max_video_seconds)
            count += len(frames)
            if count > expected:
                more, expected = count - expected, count
                flow.call(lambda more=more: charge.expect(per_frame * more))
            for packet in encoder.push(frames, times - shift):
                writer.write(packet)
            done = per_frame * len(frames)
            flow.call(lambda done=done: charge.done(done))
            if chunk := out.take():
                yield chunk
        for packet in encoder.flush():
            writer.write(packet)
        writer.finish()
        yield out.take()


def decode_packets(
    service: Service, pipe: BodyPipe, options: DecodeOptions, charge: Charge, flow: Flow[bytes]
) -> Iterator[bytes]:
    """Decode an uploaded `.odva` file as it comes. Raises Refusal, OneDVAError."""
    settings, codec, cost = service.settings, service.codec, service.cost
    with open_packets(cast(BinaryIO, pipe), limits=settings.limits) as reader:
        header = reader.header
        _check_rate(header.fps)
        out = Chunks()
        writer = PipeWriter(
            cast(BinaryIO, out),
            width=header.width,
            height=header.height,
            fps=header.fps,
            time_base=header.time_base,
            kind=options.format,
        )
        reports: list[Any] = []
        decoder = codec.open_decoder(num_steps=options.steps, seed=options.seed, on_report=reports.append)
        shown = 0

        def written() -> bytes:
            nonlocal shown
            for frames, report in zip(outputs, reports, strict=True):
                shown += len(frames)
                _check_length(float(shown / header.fps), settings.max_video_seconds)
                writer.write(frames, report.timestamps)
                service.note_clip("decode", report)
            reports.clear()
            return out.take()

        for packet in reader:
            rows, columns = packet.grid[1:]
            seconds = cost.decode(positions_of(packet.frames, 16 * rows, 16 * columns), packet.tokens, options.steps)
            flow.call(lambda seconds=seconds: charge.expect(seconds, deadline=options.left_s))
            outputs = decoder.push(packet)
            chunk = written()
            flow.call(lambda seconds=seconds: charge.done(seconds))
            if chunk:
                yield chunk
        outputs = decoder.flush()
        chunk = written()
        writer.close()
        yield chunk + out.take()


def _check_rate(fps: Fraction) -> None:
    if not RATES[0] <= fps <= RATES[1]:
        low, high = (float(rate) for rate in RATES)
        raise Refusal(422, "bad_rate", f"a video has {low:g} to {high:g} frames per second, this one {float(fps):g}")


def _check_length(seconds: float, most: float) -> None:
    if seconds > most:
        raise Refusal(413, "too_long", f"the video is {seconds:.1f} s long or more, it may be {most:g} s: send a part")
