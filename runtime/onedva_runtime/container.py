"""The plain latent file: the packets of one video, 16-bit, checked, without pickle. Its bytes: container_layout.py.

    save_packets("clip.odva", packets)                 # whole or not at all
    with open_packets("clip.odva") as reader:          # one by one, in flat memory
        for packet in reader: ...
    file = load_packets("clip.odva")                   # all at once: file.header, file.packets

The limits are the reader's, and are checked before memory is taken.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from . import container_layout as layout
from .container_layout import Header
from .errors import PacketError
from .files import AtomicFile, open_regular
from .limits import Limits
from .packet import Packet

__all__ = ["Header", "PacketFile", "PacketReader", "load_packets", "open_packets", "save_packets"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PacketFile:
    """A whole latent file in memory."""

    header: Header
    """What the packets share: size, rate, time base, model, channels, colour."""
    packets: list[Packet]
    """In the order of the file, at least one."""

    @property
    def frames(self) -> int:
        """Frames of the video: the sum over the packets."""
        return sum(packet.frames for packet in self.packets)

    @property
    def timestamps(self) -> NDArray[np.int64] | None:
        """Time stamps (frames,) in ticks of header.time_base, None where a packet has none."""
        times = [packet.timestamps for packet in self.packets if packet.timestamps is not None]
        return np.concatenate(times) if len(times) == len(self.packets) else None


def save_packets(
    path: str | os.PathLike[str],
    packets: Iterable[Packet],
    *,
    fps: Fraction | None = None,
    colour: str = "",
    overwrite: bool = False,
) -> int:
    """Write the packets of one video to `path`, whole or not at all; return its size in bytes.

    `packets`: at least one, all of one size, rate, time base, model and channel counts; an iterator is used up one by
    one, in flat memory. `fps`: the exact rate, within 0.1 % of the packets' float. `colour`: for people. Raises
    PacketError where the file exists and `overwrite` is False, cannot be written, or the packets are not valid or do
    not belong together.
    """
    name, header, count = os.fspath(path), None, 0
    with AtomicFile(name, overwrite=overwrite, error=PacketError) as output:
        try:
            for packet in packets:
                own = _header_of(packet.validate(), fps=fps, colour=colour)
                if header is None:
                    header = own
                    output.file.write(layout.pack_header(header))
                own = replace(own, time_base=header.time_base) if packet.timestamps is None else own
                if own != header:
                    raise PacketError(f"{name}: packet {count} is of another video: {own}, the first is {header}")
                output.file.write(layout.pack_packet(packet))
                count += 1
            if count == 0:
                raise PacketError(f"{name}: no packets, so there is nothing to save")
            output.file.write(layout.with_crc(layout.RECORD.pack(layout.END_MARK, count)))
            size = output.file.tell()
        except OSError as error:
            raise PacketError(f"{name}: cannot be written ({error.strerror})") from error
        output.commit()
    return size


def load_packets(path: str | os.PathLike[str], *, limits: Limits | None = None) -> PacketFile:
    """Read a whole latent file; raises PacketError where it is damaged, cut off, of another kind, or over `limits`."""
    with open_packets(path, limits=limits) as reader:
        return PacketFile(header=reader.header, packets=list(reader))


def open_packets(path: str | os.PathLike[str], *, limits: Limits | None = None) -> PacketReader:
    """Open a latent file for reading packet by packet; it and its steps raise PacketError as `load_packets` does."""
    return PacketReader(os.fspath(path), limits=limits or Limits())


class PacketReader:
    """Yields the packets of one file in order, once, each checked. Made by `open_packets`; use it in a `with` block."""

    header: Header
    """What the packets share."""

    def __init__(self, path: str, *, limits: Limits) -> None:
        self._path, self._limits = path, limits
        self._file = io.BufferedReader(open_regular(path, limits, error=PacketError))  # type: ignore[arg-type]
        try:
            self._left = os.fstat(self._file.fileno()).st_size
            self.header = self._read_header()
        except PacketError:
            self.close()
            raise

    def __iter__(self) -> Iterator[Packet]:
        count = frames = 0
        while True:
            prefix = self._take(layout.RECORD.size)
            mark, number = layout.RECORD.unpack(prefix)
            if mark == layout.END_MARK:
                break
            if mark != layout.PACKET_MARK:
                self._fail(f"damaged, packet {count} starts with {mark!r}")
            body = self._take(number)
            self._check(prefix, body)
            try:
                packet = layout.unpack_packet(body, self.header, self._limits)
            except PacketError as error:
                raise PacketError(f"{self._path}: {error}") from error
            count, frames = count + 1, frames + packet.frames
            if frames > self._limits.max_frames:
                self._fail(f"more than {self._limits.max_frames} frames (Limits.max_frames)")
            yield packet
        self._check(prefix)
        if number != count or count == 0 or self._left:
            self._fail(f"its end counts {number} packets, there are {count}, and {self._left} bytes follow")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_header(self) -> Header:
        prefix = self._take(layout.PREFIX.size)
        magic, version, zero, length = layout.PREFIX.unpack(prefix)
        if magic != layout.MAGIC:
            self._fail("not a latent file of onedva (its first bytes are others)")
        if version != layout.VERSION:
            self._fail(f"version {version} of the format, this program reads version {layout.VERSION}")
        if zero or length > layout.MAX_HEADER:
            self._fail("its header is damaged")
        text = self._take(length)
        self._check(prefix, text)
        try:
            header = layout.parse_header(text)
        except PacketError as error:
            raise PacketError(f"{self._path}: {error}") from error
        if header.width * header.height > self._limits.max_pixels:
            size, limit = f"{header.width}x{header.height}", self._limits.max_pixels
            self._fail(f"frames of {size}, over the limit of {limit} pixels (Limits.max_pixels)")
        return header

    def _take(self, count: int) -> bytes:
        """The next `count` bytes; what the file does not hold is never asked for, whatever its lengths claim."""
        if count > self._left:
            self._fail(f"cut off or damaged: {count} more bytes were announced, {self._left} are left")
        self._left -= count
        data = self._file.read(count)
        if len(data) != count:
            self._fail("it became shorter while it was read")
        return data

    def _check(self, prefix: bytes, rest: bytes = b"") -> None:
        (crc,) = layout.CRC.unpack(self._take(layout.CRC.size))
        if crc != zlib.crc32(rest, zlib.crc32(prefix)):
            self._fail("damaged: a checksum does not fit")

    def _fail(self, problem: str) -> NoReturn:
        raise PacketError(f"{self._path}: {problem}")


def _header_of(packet: Packet, *, fps: Fraction | None, colour: str) -> Header:
    rate = fps or Fraction(packet.fps).limit_denominator(1_000_000)
    if not abs(float(rate) / packet.fps - 1) <= 1e-3:
        raise PacketError(f"a packet of {packet.fps} frames per second does not belong to a video of {rate}")
    return Header(
        width=packet.width,
        height=packet.height,
        fps=rate,
        time_base=packet.time_base if packet.timestamps is not None else None,
        model=packet.model,
        structural_channels=packet.structural.shape[-1],
        latent_channels=packet.latents.shape[-1],
        colour=colour,
    )
