"""Videos in pipes, most of them uncompressed: what stands between `onedva` and the program before or after it.

Out (`PipeWriter`) as "y4m", which every tool reads and which has a fixed rate and no time stamps; as "nut", FFmpeg's
own container, RGB bit for bit with time stamps; as "raw", the bare bytes of RGB frames; or as "mp4", H.264 in fragments
that browsers play while they come. In, `open_reader` reads y4m, nut, and whatever else it reads of files that need no
going back; `RawReader` reads bare bytes, whose size and rate only the user knows.
"""

# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false
# (PyAV leaves the types of packets open.)

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from .colour import Colour, untagged_matrix
from .errors import VideoError
from .limits import Limits
from .video_info import VideoInfo
from .video_open import reason
from .video_write import BT709, LIMITED, to_yuv

__all__ = ["PIPE_FORMATS", "PipeWriter", "RawFormat", "RawReader"]

logger = logging.getLogger("onedva")
PIPE_FORMATS = ("y4m", "nut", "raw", "mp4")
_MUXERS = {"y4m": ("yuv4mpegpipe", "wrapped_avframe"), "nut": ("nut", "rawvideo"), "mp4": ("mp4", "libx264")}
MP4_CLOCK = Fraction(1, 90_000)  # seconds per tick: mp4 has no room for any clock there may be


@dataclass(frozen=True)
class RawFormat:
    """What is to be known of bare RGB frames."""

    width: int
    height: int
    fps: Fraction

    @classmethod
    def parse(cls, text: str) -> RawFormat:
        """From "WIDTHxHEIGHT@FPS", the rate a number or a fraction: "640x360@30000/1001". Raises ValueError."""
        match = re.fullmatch(r"(\d{1,5})x(\d{1,5})@(\d{1,9}(?:\.\d{1,9}|/\d{1,9})?)", text.strip())
        try:
            if match is None or min(int(match[1]), int(match[2])) < 1 or Fraction(match[3]) <= 0:
                raise ValueError
        except (ValueError, ZeroDivisionError):
            raise ValueError(
                f"a raw format is WIDTHxHEIGHT@FPS, such as 640x360@24 or 640x360@30000/1001; got {text!r}"
            ) from None
        return cls(int(match[1]), int(match[2]), Fraction(match[3]))


class RawReader:
    """Reads bare RGB frames from a stream, as `VideoReader` reads a file. For one thread."""

    info: VideoInfo
    """What was said about the frames; `frames` and `truncated` are final once everything was read."""

    def __init__(self, file: BinaryIO, raw: RawFormat, *, batch: int = 17, limits: Limits | None = None) -> None:
        """file: open for reading, not closed. batch: frames per step. Raises VideoError over `limits`."""
        self._file, self._batch, self._limits = file, batch, limits or Limits()
        if raw.width * raw.height > self._limits.max_pixels:
            most = self._limits.max_pixels
            raise VideoError(f"frames of {raw.width}x{raw.height}, over the limit of {most} pixels (Limits.max_pixels)")
        self.info = VideoInfo(
            width=raw.width,
            height=raw.height,
            frames=None,
            fps=raw.fps,
            time_base=1 / raw.fps,
            duration_s=None,
            colour=Colour("rgb", True, "unknown", "unknown", False),
            codec="rawvideo",
            pixel_format="rgb24",
            rotation=0,
            mirrored=False,
            has_audio=False,
        )

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Yield (frames (n, H, W, 3), timestamps (n,)), n = batch but for the last. A last frame that is cut off is
        dropped, with a warning, and makes `info.truncated`. Raises VideoError for no frame at all, and over the
        limits."""
        shape = self.info.height, self.info.width, 3
        size, first = shape[0] * shape[1] * 3, 0
        while True:
            frames = np.empty((self._batch, *shape), np.uint8)
            view, filled = frames.data.cast("B"), 0
            while filled < len(view):
                count = self._file.readinto(view[filled:])  # type: ignore[attr-defined]
                if not count:
                    break
                filled += count
            whole = filled // size
            if first + whole > self._limits.max_frames:
                raise VideoError(f"more than {self._limits.max_frames} frames (Limits.max_frames)")
            if whole:
                yield frames[:whole], np.arange(first, first + whole, dtype=np.int64)
            first += whole
            if filled == len(view):
                continue
            rest, hint = filled % size, f"where a frame of {shape[1]}x{shape[0]} has {size}: another size?"
            if not first:
                raise VideoError(f"the pipe: {rest or 'no'} bytes in it, {hint}")
            if rest:
                logger.warning("the pipe: cut off, read %d frames; dropped %d bytes after them, %s", first, rest, hint)
            self.info = replace(self.info, frames=first, truncated=rest > 0)
            return

    def close(self) -> None:
        """Nothing to close: the stream is the caller's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PipeWriter:
    """Writes frames to a binary stream, which need not be seekable, as `VideoWriter` writes a file."""

    def __init__(
        self,
        file: BinaryIO,
        *,
        width: int,
        height: int,
        fps: Fraction | float,
        time_base: Fraction | None = None,
        kind: str = "y4m",
    ) -> None:
        """file: open for writing, not closed. width, height, fps, time_base: as `VideoWriter`. kind: see above; y4m
        and mp4 are YUV as video files are, 4:2:0 where both sides are even, else 4:4:4. Raises
        ValueError, VideoError."""
        if kind not in PIPE_FORMATS:
            raise ValueError(f"a pipe carries one of {', '.join(PIPE_FORMATS)}; got {kind!r}")
        self._file, self._kind, self._shape = file, kind, (height, width, 3)
        rate = Fraction(fps).limit_denominator(1_000_000)
        if width < 1 or height < 1 or rate <= 0 or (time_base is not None and time_base <= 0):
            got = f"{width}, {height}, {fps}, {time_base}"
            raise ValueError(f"width, height, fps and time_base must be positive, got {got}")
        self._source_base = time_base or 1 / rate
        self._time_base = {"nut": self._source_base, "mp4": MP4_CLOCK}.get(kind, 1 / rate)
        self._count = 0
        self._first: int | None = None  # of the time stamps
        self._last = -1  # tick that was written last
        self._to_yuv = VideoReformatter()
        self._format = "rgb24" if kind == "nut" else "yuv420p" if width % 2 == height % 2 == 0 else "yuv444p"
        # y4m cannot name a matrix, so readers will take this for it
        self._matrix = "bt709" if kind == "mp4" else untagged_matrix(width, height)
        self._container: Any = None
        if kind == "raw":
            return
        try:
            muxer, encoder = _MUXERS[kind]
            fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if kind == "mp4" else {}
            self._container = av.open(_Forward(file), "w", format=muxer, container_options=fragments)
            # A key frame every second ends a fragment; no B frames, so that none is held back for those after it.
            quality = {"crf": "18", "preset": "veryfast", "bf": "0", "g": str(max(1, round(rate)))} if fragments else {}
            stream: Any = self._container.add_stream(encoder, rate, quality)
            context = stream.codec_context
            context.width, context.height, context.pix_fmt = width, height, self._format
            context.time_base = stream.time_base = self._time_base
            if kind == "mp4":
                context.colorspace = context.color_primaries = context.color_trc = BT709
                context.color_range = LIMITED
            context.open()
            self._stream = stream
        except (FFmpegError, ValueError, LookupError, OverflowError) as error:  # rates beyond what FFmpeg counts in
            raise VideoError(f"the pipe: cannot write {kind} ({reason(error)})") from error

    def write(self, frames: NDArray[np.uint8], timestamps: NDArray[np.int64] | None = None) -> None:
        """Append frames (n, H, W, 3) uint8 RGB with their times (n,) in ticks, which only nut keeps, and mp4 on its
        own clock and from 0. Raises VideoError where nobody reads."""
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            wanted = ", ".join(map(str, self._shape))
            raise ValueError(f"frames must be uint8 of shape (n, {wanted}), got {frames.dtype} of shape {frames.shape}")
        try:
            for index, picture in enumerate(frames):
                if self._container is None:
                    _write_all(self._file, np.ascontiguousarray(picture))
                    continue
                if self._kind == "nut":
                    frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                else:
                    frame = to_yuv(self._to_yuv, picture, self._format, matrix=self._matrix)
                frame.pts = self._tick(None if timestamps is None else int(timestamps[index]))
                frame.time_base = self._time_base
                self._count += 1
                self._container.mux(self._stream.encode(frame))
        except (FFmpegError, OSError, OverflowError) as error:  # time stamps beyond it
            raise VideoError(f"the pipe: writing failed ({reason(error)})") from error

    def _tick(self, timestamp: int | None) -> int:
        """When the next frame is shown, in ticks of what is written."""
        if self._kind == "nut" and timestamp is not None:
            return timestamp
        if self._kind != "mp4":
            return self._count
        if timestamp is None:
            timestamp = self._count
        if self._first is None:
            self._first = timestamp
        tick = round((timestamp - self._first) * self._source_base / MP4_CLOCK)
        self._last = max(self._last + 1, tick)  # two frames within a tick of the clock
        return self._last

    def close(self) -> None:
        """Write what is left; the stream stays open. Raises VideoError where nobody reads."""
        container, self._container = self._container, None
        try:
            if container is not None:
                container.mux(self._stream.encode(None))
                container.close()
            self._file.flush()
        except (FFmpegError, OSError) as error:
            raise VideoError(f"the pipe: writing failed ({reason(error)})") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()


class _Forward:
    """A stream that FFmpeg can only write on to."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        """Write all of it."""
        _write_all(self._file, data)
        return len(data)


def _write_all(file: BinaryIO, data: Any) -> None:
    """An unbuffered pipe takes what it has room for."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]
