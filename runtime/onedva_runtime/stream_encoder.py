"""Live encoding: frames in batches of any size, packets as clips fill. Memory stays that of one clip, however long the
stream; any chunking of the same frames gives the same packets."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from types import TracebackType

import numpy as np
import numpy.typing as npt

from onedva_runtime.clip_coding import Engine
from onedva_runtime.clipper import Clip, Clipper
from onedva_runtime.errors import BackendError
from onedva_runtime.pace import Pace
from onedva_runtime.packet import Packet
from onedva_runtime.prepare import (
    check_deadline,
    check_fps,
    check_frames,
    check_integer,
    check_switch,
    check_timestamps,
    parse_tokens,
)
from onedva_runtime.stream_report import StreamReport
from onedva_runtime.whole_frames import encode_whole

__all__ = ["StreamEncoder"]

MOST_WAITING = 32  # clips that could not be coded: memory stays bounded where a caller pushes on regardless


class StreamEncoder:
    """Made by `VideoCodec.open_encoder`, for one stream. `push` frames, `flush` at the end."""

    def __init__(
        self,
        engine: Engine,
        *,
        fps: float,
        tokens: int | str,
        max_tokens: int | None,
        keyframe_interval: int,
        cuts: bool,
        clip_frames: int | None,
        time_base: Fraction | None,
        follow_camera: bool,
        batch_size: int,
        deadline_ms: float | None,
        on_report: Callable[[StreamReport], None] | None,
    ) -> None:
        """See `VideoCodec.open_encoder`."""
        longest = engine.manifest.clip.frames
        length = longest if clip_frames is None else check_integer("clip_frames", clip_frames, 1, longest)
        if length % 4 != 1:
            raise ValueError(f"clip_frames must be 1 + 4n, up to {longest}, got {length}")
        check_timestamps(None, 0, time_base)
        most = engine.manifest.max_tokens
        self._engine, self._clip_frames, self._time_base = engine, length, time_base
        self._follow_camera = check_switch("follow_camera", follow_camera)
        self._fps, self._budget = check_fps(fps), parse_tokens(tokens)
        self._limit = most if max_tokens is None else check_integer("max_tokens", max_tokens, 0, 2**31)
        interval = check_integer("keyframe_interval", keyframe_interval, 0, 2**31)
        self._clipper = Clipper(clip_frames=length, keyframe_interval=interval, cuts=cuts)
        self._batch_size, self._waiting = check_integer("batch_size", batch_size, 1, 2**16), list[Clip]()
        self._pace, self._on_report = Pace(check_deadline(deadline_ms)), on_report
        self._closed = False
        self._ready: list[Packet] = []  # coded, but not yet returned
        self._last_tick: int | None = None
        self._arrivals: deque[tuple[int, float]] = deque()  # for reports: number of a push's first frame, when it came

    def push(self, frames: npt.NDArray[np.uint8], timestamps: npt.NDArray[np.int64] | None = None) -> list[Packet]:
        """Take frames (T, H, W, 3) uint8, any T ≥ 1, and return the packets of the clips that are now complete.

        timestamps: presentation times (T,) int64 in ticks of the stream's time_base, rising over all pushes; with every
        push or with none. The packets of one clip, several where the frame is large, come together. Raises TypeError or
        ValueError for other arrays, and for frames of another size than the stream's. Where coding itself fails
        (BackendError), the frames have been taken, and the next call tries again; after MOST_WAITING such clips it
        takes no more.
        """
        self._check_open()
        frames = check_frames(frames)
        ticks = check_timestamps(timestamps, len(frames), self._time_base)
        if (ticks is None) != (self._time_base is None):
            raise ValueError(
                "time stamps come with every push of a stream that was opened with a time_base, or with none"
            )
        if ticks is not None and self._last_tick is not None and ticks[0] <= self._last_tick:
            raise ValueError(f"timestamps must rise from frame to frame, got {ticks[0]} after {self._last_tick}")
        if len(self._waiting) >= self._batch_size + MOST_WAITING:
            waiting = len(self._waiting)
            raise BackendError(
                f"coding failed, {waiting} clips wait, and these frames were not taken: flush() tries again"
            )
        first, now = self._clipper.next_frame, time.perf_counter()
        self._waiting += self._clipper.push(frames, ticks)  # may refuse them: then the stream is as it was
        self._last_tick = None if ticks is None else int(ticks[-1])
        if self._on_report is not None:
            self._arrivals.append((first, now))
        self._encode(least=self._batch_size, waited=1)
        return self._taken()

    def flush(self) -> list[Packet]:
        """Encode the frames of the clip that is not full, if any; more frames may be pushed after."""
        self._check_open()
        self._waiting += self._clipper.flush()
        self._encode(least=1, waited=0)
        return self._taken()

    def request_key(self) -> None:
        """Let the next frame that is pushed begin a key clip, for a decoder that lost a packet. What is held of the
        clip before is coded as a short clip then."""
        self._clipper.request_key()

    def set_tokens(self, tokens: int | str) -> None:
        """Give the clips from the next one on that is coded another number of latents, as `tokens` of `open_encoder`.

        Raises ValueError for what is none.
        """
        self._budget = parse_tokens(tokens)

    def _taken(self) -> list[Packet]:
        """What is ready; where an error came between, it was kept for the next call."""
        packets, self._ready = self._ready, []
        return packets

    def _encode(self, *, least: int, waited: int) -> None:
        """Encode complete clips, as long as there are `least`. waited: frames beyond its own that had to come before a
        clip that is not full could end.

        Where a clip cannot be coded, it stays here for the next call.
        """
        while len(self._waiting) >= least:
            self._encode_batch(self._waiting[: self._batch_size], waited)

    def _encode_batch(self, clips: list[Clip], waited: int) -> None:
        wanted = min(self._limit, self._budget) if isinstance(self._budget, int) else self._limit
        limit = self._pace.tokens(wanted)
        start = time.perf_counter()
        coded = encode_whole(
            self._engine,
            clips,
            clip_frames=self._clip_frames,
            budget=self._budget,
            limit=limit if limit < wanted else self._limit,
            fps=self._fps,
            time_base=self._time_base,
            follow_camera=self._follow_camera,
            batch_size=self._batch_size,
        )
        now = time.perf_counter()
        self._waiting = self._waiting[len(clips) :]
        self._ready += [packet for packets in coded for packet in packets]
        seconds = (now - start) / len(clips)
        late = self._pace.record(fixed_s=seconds)
        for clip, packets in zip(clips, coded, strict=True):
            if self._on_report is None:
                break
            count, full = len(clip.frames), self._clip_frames - (0 if clip.is_key else 1)
            multiple = self._engine.manifest.lengths.length_multiple
            self._on_report(
                StreamReport(
                    first_frame=clip.first_frame,
                    frames=count,
                    timestamps=clip.timestamps,
                    is_key=clip.is_key,
                    tokens=sum(packet.tokens for packet in packets),
                    seconds=seconds,
                    delay_frames=count - 1 + (waited if count < full else 0),
                    latency_s=now - self._arrival(clip.first_frame),
                    late=late,
                    reduced=limit < wanted and any(packet.tokens > limit - multiple for packet in packets),
                )
            )

    def _arrival(self, frame: int) -> float:
        """When the frame was pushed; what came before it is forgotten."""
        while len(self._arrivals) > 1 and self._arrivals[1][0] <= frame:
            self._arrivals.popleft()
        return self._arrivals[0][1]

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this stream was left by its with block: push and flush inside it, or open another")

    def __enter__(self) -> StreamEncoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Warn where frames were pushed and never encoded: nothing is dropped silently."""
        self._closed = True
        held = self._clipper.held + sum(len(clip.frames) for clip in self._waiting)
        held += sum(packet.frames for packet in self._ready if packet.corner == (0, 0))
        if kind is None and held:
            warnings.warn(
                f"{held} pushed frames were not encoded: call flush() at the end",
                RuntimeWarning,
                stacklevel=2,
            )
