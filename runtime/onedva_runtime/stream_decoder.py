"""Live decoding: packets in, frames out, in order and without a hole. Memory stays that of one clip and one frame.

A packet that is missing shows as a gap between frame numbers. What it held is concealed, and named in a report: the
last frame is repeated. A continuation clip after a loss does not go on from what its encoder assumed; until the next
key clip (`needs_key`: ask the encoder for one) frames are held, or decoded as well as may be, as the caller chose.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Literal

import numpy as np
import numpy.typing as npt

from onedva_runtime.clip_coding import Engine
from onedva_runtime.errors import PacketError
from onedva_runtime.limits import Limits
from onedva_runtime.pace import Pace
from onedva_runtime.packet import FRAME_NUMBERS, Packet
from onedva_runtime.prepare import check_deadline, check_integer, check_packet
from onedva_runtime.stream_report import StreamReport
from onedva_runtime.tiles import check_tiles, same_clip
from onedva_runtime.whole_frames import decode_whole, ends_clip

__all__ = ["Conceal", "StreamDecoder"]

Uint8 = npt.NDArray[np.uint8]
GREY = 128  # where nothing was shown yet
Conceal = Literal["hold", "continue", "raise"]


class StreamDecoder:
    """Made by `VideoCodec.open_decoder`, for one stream. `push` packets, `flush` at the end."""

    def __init__(
        self,
        engine: Engine,
        *,
        num_steps: int,
        seed: int,
        conceal: Conceal,
        deadline_ms: float | None,
        on_report: Callable[[StreamReport], None] | None,
    ) -> None:
        """See `VideoCodec.open_decoder`."""
        self._max_steps = engine.manifest.sampler.max_steps
        self.set_steps(num_steps)
        self._seed = check_integer("seed", seed, 0, 2**64 - 1)
        if conceal not in ("hold", "continue", "raise"):
            raise ValueError(f"conceal must be 'hold', 'continue' or 'raise', got {conceal!r}")
        self._conceal: Conceal = conceal
        self._pace, self._on_report = Pace(check_deadline(deadline_ms)), on_report
        self._stages: dict[str, float] = {}
        self._timing = engine.on_timing
        self._engine = replace(engine, on_timing=self._note_stage)
        self._next_frame: int | None = None  # number of the next frame to show; None before the first packet
        self._last: Uint8 | None = None  # the frame shown last
        self._size: tuple[int, int] | None = None  # (height, width) of the frames
        self._ready: list[Uint8] = []  # shown, but not yet returned
        self._last_tick: int | None = None
        self._tiles: list[Packet] = []  # of a clip that is not complete yet
        self._begun = 0.0  # when the first of them came
        self._closed = False
        self._broken = True  # whether a continuation clip lacks what it goes on from

    @property
    def needs_key(self) -> bool:
        """Whether only a key clip can be decoded exactly now: before the first packet, and after a loss."""
        return self._broken

    def set_steps(self, num_steps: int) -> None:
        """Take another number of steps from the next clip on, as `num_steps` of `open_decoder`. Raises ValueError."""
        self._num_steps = check_integer("num_steps", num_steps, 1, self._max_steps)

    def push(self, packet: Packet) -> list[Uint8]:
        """Take a packet and return the frames that are ready, as arrays (T, H, W, 3) uint8, those that conceal a gap
        before it among them; the tiles of a large frame wait for the last of their clip. Arrays of repeated frames are
        read-only.

        Raises PacketError for a packet that is damaged, of another model or frame size, over the limits, or comes twice
        or too late, and for a gap where `conceal` is "raise". The stream then stands as before the call. Where decoding
        itself fails (BackendError), frames before it come with the next call, and the packet may be pushed again; if it
        is not, it counts as lost.
        """
        self._check_open()
        check_packet(packet, self._engine.manifest, self._engine.limits)
        if self._size is not None and packet.whole_size != self._size:
            (height, width), (old_height, old_width) = packet.whole_size, self._size
            raise PacketError(
                f"a stream's frames have one size; got a packet of {width}x{height} after {old_width}x{old_height}"
            )
        follows = bool(self._tiles) and same_clip(self._tiles[-1], packet)
        shown = self._next_frame if self._next_frame is not None else packet.first_frame
        due = shown + (self._tiles[0].frames if self._tiles and not follows else 0)
        missing = 0 if follows else packet.first_frame - due
        if missing < 0:
            raise PacketError(
                f"the packet from frame {packet.first_frame} on is late or comes twice: next is frame {due}"
            )
        ends = ends_clip(packet)
        # Before the last of them with the one before only: many tiles would else be gone through as many times.
        whole = check_tiles([*(self._tiles[0 if ends else -1 :] if follows else ()), packet])
        if not follows:
            self._check_loss(packet, missing)
        if ends and not whole and self._conceal == "raise":
            raise PacketError(f"a tile of the clip from frame {packet.first_frame} on did not come")
        if self._tiles and not follows:
            self._end_clip()
        self._size = packet.whole_size
        if missing:
            self._hold(missing, "lost", packet)
        if not self._tiles:
            self._begun = time.perf_counter()
        self._next_frame = packet.first_frame
        self._tiles.append(packet)
        if ends:
            self._end_clip()
        return self._taken()

    def lost(
        self,
        frames: int,
        *,
        timestamps: npt.NDArray[np.int64] | None = None,
        first_frame: int | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> list[Uint8]:
        """Say that the next `frames` frames (≥ 1) will not come, and get what conceals them, without waiting for the
        packet after them.

        timestamps: when they are shown (frames,), for the report. first_frame, frame_size: number of the first of them
        and (height, width), where that is before the first packet; they are grey then. Raises PacketError where neither
        is known.
        """
        self._check_open()
        count = check_integer("frames", frames, 1, (self._engine.limits or Limits()).max_frames)
        if timestamps is not None and timestamps.shape != (count,):
            raise ValueError(f"timestamps must be of shape ({count},), one per lost frame, got {timestamps.shape}")
        if self._next_frame is None:
            if first_frame is None or frame_size is None:
                raise PacketError("nothing was shown yet: push the first packet, or give first_frame and frame_size")
            self._next_frame = check_integer("first_frame", first_frame, 0, FRAME_NUMBERS - count)
            self._size = frame_size
        self._end_clip()
        self._hold(count, "lost", None, timestamps)
        return self._taken()

    def flush(self) -> list[Uint8]:
        """The frames held back: those of a clip whose last tiles did not come, the last frame in the place of these."""
        self._check_open()
        self._end_clip()
        return self._taken()

    def _taken(self) -> list[Uint8]:
        """What is ready; where an error came between, it was kept for the next call."""
        outputs, self._ready = self._ready, []
        return outputs

    def _end_clip(self) -> None:
        """Decode or conceal the clip whose tiles wait, if any."""
        if not self._tiles:
            return
        clip = self._tiles
        complete = check_tiles(clip)
        concealed = "" if complete else "tiles lost"
        if not clip[0].is_key and self._broken:
            if self._conceal != "continue" or self._last is None:
                self._tiles = []
                self._hold(clip[0].frames, "after a loss", clip[0])
                return
            concealed = "after a loss"
        self._tiles = []  # where decoding fails, they are lost, and the packet may be pushed again
        frames, report = self._decode(clip)
        self._broken = not complete or (self._broken and not clip[0].is_key)
        self._show(frames, replace(report, concealed=concealed))

    def _decode(self, clip: list[Packet]) -> tuple[Uint8, StreamReport]:
        """The frames of one clip, with as many steps and latents as the deadline allows."""
        asked = max(packet.tokens for packet in clip)
        steps, tokens = self._pace.steps(self._num_steps), self._pace.tokens(asked)
        self._stages.clear()
        start = time.perf_counter()
        thin = [packet.thin(tokens) for packet in clip]
        (frames,) = decode_whole(self._engine, [thin], [self._last], num_steps=steps, seed=self._seed)
        now = time.perf_counter()
        measured = "velocity" in self._stages  # one step in one graph cannot be told from the rest
        in_steps = self._stages["velocity"] if measured else min(self._pace.step_s, now - start)
        late = self._pace.record(fixed_s=now - start - in_steps, steps_s=in_steps, steps=steps if measured else 0)
        return frames, StreamReport(
            first_frame=clip[0].first_frame,
            frames=len(frames),
            timestamps=clip[0].timestamps,
            is_key=clip[0].is_key,
            tokens=sum(packet.tokens for packet in thin),
            num_steps=steps,
            seconds=now - start,
            latency_s=now - self._begun,
            late=late,
            reduced=steps < self._num_steps or tokens < asked,
        )

    def _hold(self, count: int, why: str, after: Packet | None, ticks: npt.NDArray[np.int64] | None = None) -> None:
        """Show the last frame, `count` times, without taking memory for each; grey where nothing was shown yet.

        after: the packet that the held frames stand before, or in the place of, for their times, if not given as
        `ticks`.
        """
        assert self._next_frame is not None and self._size is not None
        if self._last is None:
            self._last = np.full((*self._size, 3), GREY, np.uint8)
        self._broken = True
        if after is not None and after.timestamps is not None:
            ticks = after.timestamps
            if after.first_frame > self._next_frame:  # spread between the frames on both sides
                start = int(ticks[0]) - count - 1 if self._last_tick is None else self._last_tick
                ticks = start + np.arange(1, count + 1) * (int(ticks[0]) - start) // (count + 1)
        frames = np.broadcast_to(self._last, (count, *self._last.shape))
        self._show(frames, StreamReport(first_frame=self._next_frame, frames=count, timestamps=ticks, concealed=why))

    def _show(self, frames: Uint8, report: StreamReport) -> None:
        self._next_frame = report.first_frame + report.frames
        self._last = frames[-1].copy()
        self._ready.append(frames)
        if report.timestamps is not None:
            self._last_tick = int(report.timestamps[-1])
        if self._on_report is not None:
            self._on_report(report)

    def _check_loss(self, packet: Packet, missing: int) -> None:
        """Raise PacketError where too much, or with conceal="raise" anything, was lost before the packet."""
        most = (self._engine.limits or Limits()).max_frames
        if missing > most:
            raise PacketError(
                f"{missing} frames are missing before the packet, over the limit of {most} (Limits.max_frames)"
            )
        if self._conceal != "raise":
            return
        what = f"{missing} frames" if missing else "tiles" if self._tiles else "the key clip" if self._broken else ""
        if what and (what != "the key clip" or not packet.is_key):
            raise PacketError(
                f"{what} before the packet from frame {packet.first_frame} on did not come; go on from a key clip, "
                "lost() conceals what is missing, conceal='hold' does so by itself"
            )

    def _note_stage(self, stage: str, seconds: float) -> None:
        self._stages[stage] = self._stages.get(stage, 0.0) + seconds
        if self._timing is not None:
            self._timing(stage, seconds)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("this stream was left by its with block: push and flush inside it, or open another")

    def __enter__(self) -> StreamDecoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Warn where tiles were pushed and never shown: nothing is dropped silently. The codec owns the sessions."""
        self._closed = True
        if kind is None and self._tiles:
            held, first = self._tiles[0].frames, self._tiles[0].first_frame
            warnings.warn(
                f"{held} frames from {first} on, whose last tiles did not come, were not shown: flush() at the end",
                RuntimeWarning,
                stacklevel=2,
            )
