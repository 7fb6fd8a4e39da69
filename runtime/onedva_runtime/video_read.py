"""Video files in: `probe`, `open_reader` (flat memory) and `read_video` (all in one array).

    with open_reader("in.mp4", batch=17) as reader:
        for frames, timestamps in reader: ...      # (n, H, W, 3) uint8 RGB, (n,) int64 ticks of reader.info.time_base

Rotation in the metadata is applied, sample aspect ratio ignored, no frame dropped or repeated; colour as colour.py
says. A picture size that changes on the way is scaled to the first one. A file that ends early or has broken parts
gives what can be decoded, a warning on the logger "onedva", and `info.truncated`. What may be opened at all:
video_open.py.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import BinaryIO, NoReturn, Self

import numpy as np
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .colour import Colour, ToRGB, describe
from .errors import VideoError
from .files import open_regular
from .limits import Limits
from .video_info import Video, VideoInfo
from .video_open import nameless, open_container, orientation, video_stream

logger = logging.getLogger("onedva")


class VideoReader:
    """Reads one video file front to back, for one thread. Made by `open_reader`; close it or use it in `with`."""

    info: VideoInfo
    """What is known about the file; `frames` and `truncated` are final once everything was read."""

    def __init__(self, source: str | BinaryIO, *, limits: Limits, batch: int, threads: int) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1 frame, got {batch}")
        self._limits, self._batch = limits, batch
        if isinstance(source, str):
            self._path = path = source
            self._file = open_regular(path, limits, error=VideoError)
        else:
            self._path = path = "the pipe"
            self._file = source
        self._owned = isinstance(source, str)
        try:
            self._source = nameless(self._file)
            self._container = open_container(self._source, path, limits)
            self._begin(threads)
        except BaseException:
            self.close()
            raise

    def _begin(self, threads: int) -> None:
        stream = self._stream = video_stream(self._container, self._path)
        context = stream.codec_context
        self._check_size(context.width, context.height)
        announced = stream.frames or None
        if announced is not None and announced > self._limits.max_frames:
            self._fail(f"{announced} frames, over the limit of {self._limits.max_frames} (Limits.max_frames)")
        context.options = {"max_pixels": str(self._limits.max_pixels)}  # holds for sizes that change on the way, too
        context.thread_count, context.thread_type = threads, "AUTO"
        self._rgb = ToRGB(threads=threads)
        self._count = self._packets = self._errors = self._end_of_packets = 0
        self._last: int | None = None
        self._decoded = self._decode()
        first = self._first = next(self._decoded, None)
        if first is None:
            self._fail("no frame of its video could be decoded (no frames in it, or cut off too early)")
        self._turns, self._mirrored = orientation(first)
        self._stored_shape = first.height, first.width, 3
        sides = (first.height, first.width) if self._turns % 2 else (first.width, first.height)
        duration = stream.duration * stream.time_base if stream.duration and stream.time_base else None
        if duration is None and self._container.duration:
            duration = Fraction(self._container.duration, 1_000_000)
        self.info = VideoInfo(
            width=sides[0],
            height=sides[1],
            frames=announced,
            fps=Fraction(stream.average_rate or stream.guessed_rate or 25),
            time_base=Fraction(first.time_base or stream.time_base or Fraction(1, 90000)),
            duration_s=None if duration is None else float(duration),
            colour=self._describe(first),
            codec=context.name,
            pixel_format=first.format.name,
            rotation=90 * self._turns,
            mirrored=self._mirrored,
            has_audio=bool(self._container.streams.audio),
        )
        if self.info.colour.transfer in ("pq", "hlg"):
            logger.warning("%s: HDR (%s) is read without tone mapping", self._path, self.info.colour.transfer)

    def read_into(self, frames: NDArray[np.uint8], timestamps: NDArray[np.int64]) -> int:
        """Fill `frames` (n, H, W, 3) and `timestamps` (n,) with the next frames; return how many: less than n at the
        end only.

        Raises VideoError where the file breaks `Limits`.
        """
        for index in range(len(frames)):
            frame, self._first = self._first or next(self._decoded, None), None
            if frame is None:
                return index
            if self._count == self._limits.max_frames:
                self._fail(f"more than {self._limits.max_frames} frames (Limits.max_frames)")
            self._check_size(frame.width, frame.height)
            self._describe(frame)
            if self._turns or self._mirrored:
                stored = np.empty(self._stored_shape, np.uint8)
                self._rgb(frame, stored)
                frames[index] = np.rot90(stored[:, ::-1] if self._mirrored else stored, -self._turns)
            else:
                self._rgb(frame, frames[index])
            timestamps[index] = self._timestamp(frame)
            self._count += 1
        return len(frames)

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield (frames (n, H, W, 3), timestamps (n,)), n = batch but for the last; every yield is a new array."""
        while True:
            frames = np.empty((self._batch, self.info.height, self.info.width, 3), np.uint8)
            timestamps = np.empty(self._batch, np.int64)
            count = self.read_into(frames, timestamps)
            if count:
                yield frames[:count], timestamps[:count]
            if count < self._batch:
                return

    def more(self) -> bool:
        """True where there is another frame to read."""
        self._first = self._first or next(self._decoded, None)
        return self._first is not None

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._first = None
        if hasattr(self, "_container"):
            self._container.close()
        if self._owned:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _decode(self) -> Iterator[VideoFrame]:
        """The frames in presentation order; broken packets are counted and skipped, as every player does."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (FFmpegError, OSError) as error:
                if isinstance(error, MemoryError):  # av's own kind is both: no fault of the file
                    raise
                self._errors += 1  # the file cannot be read on: only what the decoder still holds
                yield from self._frames_of(None)
                break
            if packet is None:
                break
            if packet.size and packet.pos is not None:
                self._end_of_packets = packet.pos + packet.size
            self._packets += packet.size > 0 or packet.dts is not None  # what is left out is the decoder's flush
            yield from self._frames_of(packet)
        self._end()

    def _frames_of(self, packet: Packet[VideoStream] | None) -> Iterator[VideoFrame]:
        try:
            frames = self._stream.decode(packet)  # pyright: ignore[reportUnknownMemberType]  (PyAV leaves it open)
        except FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            self._errors += 1
            return
        for frame in frames:
            self._errors += frame.is_corrupt
            yield frame

    def _end(self) -> None:
        self._source.check()
        self._errors += self._source.problem is not None
        if not hasattr(self, "info"):
            return
        rest = 0
        if self._container.format.name == "yuv4mpegpipe":  # FFmpeg drops the start of a frame without a word
            rest = self._source.size - self._end_of_packets
        missing = self.info.frames is not None and self._packets < self.info.frames
        if self._container.format.name.startswith("mov"):  # its index names every packet, edit lists already applied
            missing = self._packets < len(self._stream.index_entries)
        elif self.info.frames is None and self.info.duration_s and self._last is not None and not self.info.has_audio:
            # A quarter of a second for the length of the last frame, which may be longer than the others.
            last_s = float(self._last * self.info.time_base) - (self._container.start_time or 0) / 1e6
            missing = self.info.duration_s - last_s > 0.25 + 1 / float(self.info.fps)
        truncated = missing or self._errors > 0 or rest > 0
        if truncated:
            of = self.info.frames or "?"
            dropped = f"; dropped {rest} bytes of one more" if rest > 0 else ""
            logger.warning("%s: damaged or cut off, read %d frames of %s%s", self._path, self._count, of, dropped)
        self.info = replace(self.info, frames=self._count, truncated=truncated)

    def _timestamp(self, frame: VideoFrame) -> int:
        """The frame's time in ticks of info.time_base: its own where it has one, always after the one before."""
        step = max(1, round(1 / (self.info.fps * self.info.time_base)))
        ticks = 0 if self._last is None else self._last + step
        if frame.pts is not None:
            ticks = frame.pts
            if frame.time_base is not None and frame.time_base != self.info.time_base:
                ticks = round(frame.pts * frame.time_base / self.info.time_base)
        if self._last is not None and ticks <= self._last:
            ticks = self._last + 1
        self._last = ticks
        return ticks

    def _describe(self, frame: VideoFrame) -> Colour:
        try:
            return describe(frame)
        except VideoError as error:
            self._fail(str(error))

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            limit = self._limits.max_pixels
            self._fail(f"frames of {width}x{height}, over the limit of {limit} pixels (Limits.max_pixels)")

    def _fail(self, problem: str) -> NoReturn:
        raise VideoError(f"{self._path}: {problem}")


def open_reader(
    path: str | os.PathLike[str] | BinaryIO, *, limits: Limits | None = None, batch: int = 17, threads: int = 0
) -> VideoReader:
    """Open a video file, or a binary stream that need not be seekable, for reading in batches, with flat memory.

    `path`: a stream given here is not closed. `batch`: frames per step, at least 1. `threads`: threads that decode, 0
    for as many as the machine has. Raises VideoError: not a video, a refused format, empty, no frame in it, over
    `limits`.
    """
    source = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    return VideoReader(source, limits=limits or Limits(), batch=batch, threads=threads)


def probe(path: str | os.PathLike[str], *, limits: Limits | None = None) -> VideoInfo:
    """What a video file says about itself; one frame is decoded to be sure. Raises VideoError as `open_reader` does."""
    with open_reader(path, limits=limits, threads=1) as reader:
        return reader.info


def read_video(
    path: str | os.PathLike[str], *, limits: Limits | None = None, max_frames: int | None = None, threads: int = 0
) -> Video:
    """Read a whole video, or its first `max_frames` (at least 1) frames, into one array.

    Raises VideoError as `open_reader` does, and where the frames would take more memory than `limits.max_bytes`.
    """
    limits = limits or Limits()
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1, got {max_frames}")
    with open_reader(path, limits=limits, threads=threads) as reader:
        info = reader.info
        affordable = limits.max_bytes // (info.width * info.height * 3)
        wanted = max_frames or limits.max_frames
        size, count = min(wanted, info.frames or 64), 0  # what the file announces is only where to start
        frames, timestamps = np.empty((0, info.height, info.width, 3), np.uint8), np.empty(0, np.int64)
        while True:
            if size > affordable:
                raise VideoError(
                    f"{os.fspath(path)}: more than {affordable} frames of {info.width}x{info.height} do not fit into "
                    f"{limits.max_bytes} bytes (Limits.max_bytes); read with open_reader, or fewer with max_frames"
                )
            if count:
                frames.resize((size, *frames.shape[1:]), refcheck=False)  # in place, so never twice in memory
                timestamps.resize(size, refcheck=False)
            else:
                frames, timestamps = np.empty((size, *frames.shape[1:]), np.uint8), np.empty(size, np.int64)
            count += reader.read_into(frames[count:], timestamps[count:])
            if count < size or count == wanted or not reader.more():
                break
            size = min(wanted, 2 * size, max(affordable, size + 1))
        frames.resize((count, *frames.shape[1:]), refcheck=False)
        timestamps.resize(count, refcheck=False)
        return Video(frames, timestamps, info.time_base, info.fps, reader.info)
