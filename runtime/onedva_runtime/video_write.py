"""Video files out: `VideoWriter`, RGB frames to a file that appears whole or not at all.

    with VideoWriter("out.mp4", width=512, height=288, fps=Fraction(24)) as writer:
        writer.write(frames)                       # (n, H, W, 3) uint8 RGB, as often as you like

RGB is coded with the bt709 matrix in limited range, and tagged so. Chroma is 4:2:0 where both sides are even, which
every player reads, and 4:4:4 where one is odd, the only way to keep the exact size. Time stamps are kept to the tick
in mp4 and mov, and to the millisecond in mkv and webm, which know nothing finer.
"""

# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false
# (PyAV leaves the types of packets open.)

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise
from types import TracebackType
from typing import Self, cast

import av
import numpy as np
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from .audio_copy import AudioCopy
from .errors import VideoError
from .files import AtomicFile
from .video_open import reason

# Extension -> (FFmpeg's muxer, default encoder).
CONTAINERS = {
    ".mp4": ("mp4", "libx264"),
    ".mov": ("mov", "libx264"),
    ".mkv": ("matroska", "libx264"),
    ".webm": ("webm", "libvpx-vp9"),
}
PRESET = "veryfast"  # of libx264: at this quality, files of about the size of its default's in half the time
BT709, LIMITED, _FULL = 1, 1, 2  # AVCOL_SPC/PRI/TRC_BT709 and SWS_CS_ITU709 are all 1; AVColorRange
_SWS_BT601, _BT601 = 5, 6  # SWS_CS_ITU601; AVCOL_SPC/PRI/TRC_SMPTE170M
_ACCURATE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


def to_yuv(
    reformatter: VideoReformatter, picture: NDArray[np.uint8], pixel_format: str, *, matrix: str = "bt709"
) -> VideoFrame:
    """A picture (H, W, 3) uint8 RGB as a frame in a YUV format in limited range, tagged so. matrix: "bt709" or
    "bt601"."""
    numbers = {"bt709": (BT709, BT709), "bt601": (_SWS_BT601, _BT601)}  # libswscale's, AVColorSpace's
    scaler, space = numbers[matrix]
    rgb = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    frame = reformatter.reformat(
        rgb,
        format=pixel_format,
        src_colorspace=scaler,
        dst_colorspace=scaler,
        src_color_range=_FULL,
        dst_color_range=LIMITED,
        interpolation=_ACCURATE,
    )
    frame.colorspace = frame.color_primaries = frame.color_trc = space
    frame.color_range = LIMITED
    return frame


class VideoWriter:
    """Writes one video file, for one thread. Closing publishes it; leaving a `with` block by an error removes it."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        width: int,
        height: int,
        fps: Fraction | float,
        time_base: Fraction | None = None,
        codec: str | None = None,
        crf: int = 16,
        overwrite: bool = False,
        audio: str | os.PathLike[str] | None = None,
    ) -> None:
        """Open `path` for writing; its extension (.mp4, .mov, .mkv, .webm) names the container.

        `width`, `height`: pixels, kept exactly, odd ones too. `fps`: frames per second, above 0. `time_base`: seconds
        per tick of the time stamps given to `write`; 1/fps where None. `codec`: FFmpeg's name of an encoder; libx264,
        in .webm libvpx-vp9. `crf`: constant quality, 0 (best) to 51 (63 for libvpx-vp9). `audio`: a file whose sound
        is copied as it is, in step with the pictures. Raises VideoError where the file exists and `overwrite` is False,
        cannot be written, the extension or codec is not known, or the sound cannot be read or stand in such a file;
        ValueError for numbers out of range.
        """
        self._path, self._shape = os.fspath(path), (height, width, 3)
        extension = os.path.splitext(self._path)[1].lower()
        if extension not in CONTAINERS:
            raise VideoError(f"{self._path}: cannot write {extension!r} files, use one of {', '.join(CONTAINERS)}")
        fps = Fraction(fps).limit_denominator(1_000_000)
        if width < 1 or height < 1 or fps <= 0 or (time_base is not None and time_base <= 0):
            got = f"{width}, {height}, {fps}, {time_base}"
            raise ValueError(f"width, height, fps and time_base must be positive, got {got}")
        if not 0 <= crf <= 63:
            raise ValueError(f"crf must be from 0 (best) to 63, got {crf}")
        muxer, encoder = CONTAINERS[extension]
        self._fps, self._time_base = fps, time_base or 1 / fps
        self._step = max(1, round(1 / (fps * self._time_base)))
        self._count = self._shift = 0
        self._last: int | None = None
        self._to_yuv = VideoReformatter()
        self._format = "yuv420p" if width % 2 == 0 and height % 2 == 0 else "yuv444p"
        self._output = AtomicFile(self._path, overwrite=overwrite, error=VideoError)
        self._container: OutputContainer | None = None
        self._audio: AudioCopy | None = None
        try:
            self._container = av.open(self._output.file, "w", format=muxer)
            self._stream = self._add_stream(codec or encoder, crf, uneven=time_base is not None)
            if audio is not None:
                self._audio = AudioCopy(os.fspath(audio), self._container, self._path)
        except (FFmpegError, ValueError, LookupError, OverflowError) as error:  # rates beyond what FFmpeg counts in
            self.abort()
            what = f"{codec or encoder} in {extension}"
            raise VideoError(f"{self._path}: cannot write {what} ({reason(error)})") from error
        except BaseException:
            self.abort()
            raise

    def _add_stream(self, codec: str, crf: int, *, uneven: bool) -> VideoStream:
        assert self._container is not None
        options = {"crf": str(crf), "b": "0"}
        if codec == "libx264":
            options["preset"] = PRESET
        if uneven:
            # FFmpeg's mp4 takes a track's length from decoding times, which B frames shift: it would be too short.
            options["bf"] = "0"
        stream = cast(VideoStream, self._container.add_stream(codec, self._fps, options))
        context = stream.codec_context
        context.height, context.width = self._shape[:2]
        context.pix_fmt, context.time_base = self._format, self._time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        stream.time_base = self._time_base  # what mp4 takes for its track's clock
        context.open()
        return stream

    def write(self, frames: NDArray[np.uint8], timestamps: NDArray[np.int64] | None = None) -> None:
        """Append `frames` (n, H, W, 3) uint8 RGB, 0-255, with `timestamps` (n,) in ticks of time_base, rising.

        Without time stamps each frame lasts 1/fps; a first one below 0 moves them all, to start at 0.
        Raises TypeError or ValueError for another type, shape or order, VideoError where encoding or the disk fails.
        """
        if getattr(frames, "dtype", None) != np.uint8:
            raise TypeError(f"frames must be a uint8 array, got {getattr(frames, 'dtype', type(frames).__name__)}")
        if frames.ndim != 4 or frames.shape[1:] != self._shape:
            raise ValueError(f"frames must have shape (n, {', '.join(map(str, self._shape))}), got {frames.shape}")
        ticks = self._ticks(len(frames), timestamps)
        try:
            for picture, tick in zip(frames, ticks, strict=True):
                self._encode(self._yuv(picture, tick))
                self._last, self._count = tick, self._count + 1
        except (FFmpegError, OSError, OverflowError) as error:  # time stamps beyond it
            raise VideoError(f"{self._path}: writing failed ({reason(error)})") from error

    def _ticks(self, count: int, timestamps: NDArray[np.int64] | None) -> list[int]:
        if timestamps is None:
            return [round(Fraction(self._count + i) / (self._fps * self._time_base)) for i in range(count)]
        ticks = [int(tick) for tick in timestamps]
        if self._last is None and ticks:
            self._shift = max(0, -ticks[0])  # players skip what comes before 0
        ticks = [tick + self._shift for tick in ticks]
        before = [] if self._last is None else [self._last]
        if len(ticks) != count or any(a >= b for a, b in pairwise(before + ticks)):
            raise ValueError(f"timestamps must be {count} ticks that rise, after {self._last}, got {ticks[:8]}")
        return ticks

    def _yuv(self, picture: NDArray[np.uint8], tick: int) -> VideoFrame:
        frame = to_yuv(self._to_yuv, picture, self._format)
        frame.pts, frame.time_base, frame.duration = tick, self._time_base, self._step
        return frame

    def _encode(self, frame: VideoFrame | None) -> None:
        assert self._container is not None
        if self._audio is not None and frame is not None and frame.pts is not None:
            self._audio.copy(until_s=float(frame.pts * self._time_base))
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Finish the file and give it its name; raises VideoError where that fails or no frame was written."""
        if self._container is None:
            return
        if self._count == 0:
            self.abort()
            raise VideoError(f"{self._path}: no frames were written, so there is no video")
        try:
            self._encode(None)
            if self._audio is not None:
                self._audio.copy()
            self._container.close()
        except (FFmpegError, OSError, OverflowError) as error:
            self.abort()
            raise VideoError(f"{self._path}: writing failed ({reason(error)})") from error
        except BaseException:
            self.abort()
            raise
        self._container = None
        self._close_audio()
        self._output.commit()

    def abort(self) -> None:
        """Give up: nothing is left on the disk."""
        container, self._container = self._container, None
        try:
            if container is not None:
                container.close()
        except (FFmpegError, OSError, VideoError):
            pass  # the reason for giving up is on its way already
        finally:
            self._close_audio()
            self._output.abort()

    def _close_audio(self) -> None:
        if self._audio is not None:
            self._audio.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()
