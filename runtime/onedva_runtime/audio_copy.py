"""Sound of one file copied into another as it is, packet by packet, in step with the pictures
(`VideoWriter(audio=…)`)."""

# pyright: reportUnknownMemberType=false
# (PyAV leaves the types of packets open.)

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet

from .errors import VideoError
from .files import open_regular
from .limits import Limits
from .video_open import nameless, open_container, reason

__all__ = ["AudioCopy"]


class AudioCopy:
    """Copies every audio stream of a file, for one thread."""

    def __init__(self, source: str, output: OutputContainer, target: str, *, limits: Limits | None = None) -> None:
        """source: a video or audio file. output: where to, before anything was written to it; target: its name.

        Raises VideoError where there is no sound in it, or none that such a file can hold.
        """
        self._source, self._output = source, output
        self._limits = limits or Limits()
        self._file = open_regular(source, self._limits, error=VideoError)
        try:
            self._container = open_container(nameless(self._file), source, self._limits, audio=True)
            streams = list(self._container.streams.audio)
            if not streams:
                raise VideoError(f"{source}: no sound in it to copy")
            self._streams = {stream.index: self._add(stream, target) for stream in streams}
            self._shift_s = self._before_zero()
            self._packets = self._demux(streams)
            self._next: Packet[Any] | None = next(self._packets, None)
        except BaseException:
            self.close()
            raise

    def copy(self, *, until_s: float | None = None) -> None:
        """Write what sounds up to a time in seconds, or all that is left. Raises VideoError where that fails."""
        while self._next is not None and (until_s is None or self._time_s(self._next) <= until_s):
            packet, self._next = self._next, next(self._packets, None)
            packet.stream = self._streams[packet.stream.index]
            try:
                self._output.mux(packet)
            except (FFmpegError, ValueError) as error:
                raise VideoError(f"{self._source}: its sound cannot be copied ({reason(error)})") from error

    def close(self) -> None:
        """Close the source; safe to call twice."""
        if hasattr(self, "_container"):
            self._container.close()
        self._file.close()

    def _add(self, stream: AudioStream, target: str) -> Any:
        name = stream.codec_context.name
        supported = self._output.supported_codecs
        if stream.codec_context.codec.canonical_name not in supported:
            raise VideoError(f"{self._source}: its sound is {name}, which {target} cannot hold; write .mkv")
        try:
            return self._output.add_stream_from_template(stream)
        except (FFmpegError, ValueError) as error:
            raise VideoError(f"{self._source}: its sound, {name}, cannot go into {target} ({reason(error)})") from error

    def _before_zero(self) -> float:
        """Seconds by which the pictures were moved to start at 0, as `encode` does where a video starts before it."""
        for stream in self._container.streams.video:
            start = stream.start_time
            if start is not None and stream.time_base is not None:
                return -min(0.0, float(start * stream.time_base))
        return 0.0

    def _demux(self, streams: list[AudioStream]) -> Iterator[Packet[Any]]:
        try:
            for packet in self._container.demux(streams):
                if packet.dts is None:  # the decoder's flush, which has no data
                    continue
                base = packet.time_base or Fraction(1, 1)
                ticks = round(Fraction(self._shift_s).limit_denominator(10**9) / base)
                packet.dts = packet.dts + ticks
                if packet.pts is not None:
                    packet.pts = packet.pts + ticks
                yield packet
        except FFmpegError as error:
            raise VideoError(f"{self._source}: its sound is damaged ({reason(error)})") from error

    def _time_s(self, packet: Packet[Any]) -> float:
        return float((packet.dts or 0) * (packet.time_base or Fraction(1, 1)))
