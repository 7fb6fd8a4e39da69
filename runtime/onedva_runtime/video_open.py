"""Opening untrusted video files and pipes. We open the path ourselves, as a regular file, and hand FFmpeg its bytes
without a name, under a white list of formats that hold their pictures themselves. FFmpeg may open nothing: a playlist,
a concat list or an external reference that names another file is refused, whatever the extension says, and so are
network addresses, devices, pipes and folders.
"""

from __future__ import annotations

import io
from typing import BinaryIO, NoReturn, cast

import av
import numpy as np
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .errors import VideoError
from .files import seekable
from .limits import Limits

_CONTAINERS = ("mov", "matroska", "avi", "gif", "apng", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf", "nut", "ivf")
_RAW_STREAMS = ("yuv4mpegpipe", "h264", "hevc", "m4v", "mpegvideo", "obu")
_AUDIO = ("wav", "mp3", "aac", "flac")
_READS = "mp4, mov, mkv, webm, avi, gif, apng, ts, mpg, ogv, flv, wmv, mxf, nut, ivf, y4m and raw h264, hevc, mpeg, av1"


def open_container(source: Nameless, path: str, limits: Limits, *, audio: bool = False) -> InputContainer:
    """Open a file or pipe under the white list; raises VideoError, naming `path`, where it is not a video we read.
    audio: files that hold nothing but audio may be opened, too."""
    formats = _CONTAINERS + (_AUDIO if audio else _RAW_STREAMS)
    try:
        container = av.open(
            source,
            "r",
            options={"max_pixels": str(limits.max_pixels)},
            container_options={"format_whitelist": ",".join(formats), "protocol_whitelist": "none"},
            metadata_errors="replace",
            buffer_size=1 << 18,  # fewer trips from FFmpeg into Python
            io_open=_refuse_to_open,
        )
    except (FFmpegError, ValueError, OSError) as error:
        source.check()
        if isinstance(error, MemoryError):  # av's own kind is both: no fault of the file
            raise
        if source.problem is not None:
            raise VideoError(f"{path}: cannot be read ({reason(source.problem)})") from source.problem
        if isinstance(error, ArgumentError):  # what the white list answers
            raise VideoError(f"{path}: this format is not read as video (allowed: {_READS})") from error
        raise VideoError(f"{path}: not a video, or damaged (FFmpeg says: {reason(error)})") from error
    try:
        source.check()
    except BaseException:
        container.close()
        raise
    return container


def video_stream(container: InputContainer, path: str) -> VideoStream:
    """The video stream a player would choose; cover pictures do not count. Raises VideoError where there is none."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams})
        raise VideoError(f"{path}: no video in it ({', '.join(kinds) or 'nothing at all'})")
    best = container.streams.best("video")
    stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
    if cast("object", stream.codec_context) is None:  # PyAV's types do not say so
        raise VideoError(f"{path}: its video is in a codec that is not known here")
    return stream


def orientation(frame: VideoFrame) -> tuple[int, bool]:
    """(clockwise quarter turns, mirrored): flip left to right if mirrored, then turn, to see the picture upright.

    From the display matrix of the frame (ISO/IEC 14496-12, 8.2.2: x' = a x + c y, y' = b x + d y, y down); angles
    between the quarters are rounded to the nearest.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return 0, False
    a, b, _, c, d, _, _, _, _ = np.frombuffer(bytes(data), np.int32).astype(np.float64)
    mirrored = bool(a * d - b * c < 0)
    if mirrored:  # matrix = turn . flip, and flip negates the first column
        a, b = -a, -b
    return round(float(np.degrees(np.arctan2(b, a))) / 90) % 4, mirrored


def reason(error: BaseException) -> str:
    """FFmpeg's own words for what went wrong, on one line."""
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def nameless(file: BinaryIO) -> Nameless:
    """What FFmpeg may have of a file or pipe: its bytes, but not its name."""
    return _NamelessFile(file) if seekable(file) else Nameless(file)


class Nameless:
    """A stream without the name that FFmpeg would take a format or a pattern from; it can only be read on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # Of a pipe what is there, without waiting for all that is asked: frames must not wait for those after them.
        self._read = getattr(file, "read1", file.read)
        self._count = 0
        self.problem: BaseException | None = None
        """What ended reading before the end, if anything did."""

    @property
    def size(self) -> int:
        """Bytes in all; of a pipe, those that came so far."""
        return self._count

    def read(self, size: int) -> bytes:
        """Up to `size` bytes. What goes wrong, an interrupt above all, would be lost in FFmpeg, which then asks again:
        it is told of an end, and `check` raises."""
        try:
            data = b"" if self.problem is not None else self._read(size) or b""
        except BaseException as error:
            self.problem = error
            return b""
        self._count += len(data)
        return data

    def check(self) -> None:
        """Raise what ended reading, unless it was the system, which a file that is damaged looks like."""
        if self.problem is not None and not isinstance(self.problem, OSError):
            raise self.problem


class _NamelessFile(Nameless):
    """The same, and it can be gone back in."""

    @property
    def size(self) -> int:
        here = self._file.tell()
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(here)
        return end

    def tell(self) -> int:
        """Where we are."""
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to `offset`; -1, FFmpeg's sign for an error, where a damaged file sends us to a place that cannot be."""
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise VideoError(f"the video refers to another file or address, which is not followed: {url!r}")
