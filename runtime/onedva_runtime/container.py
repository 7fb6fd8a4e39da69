"""The `.odva` file: the packets of one video, quantised, entropy coded, checked, without pickle. docs/odva.md has its
bytes.

    save_packets("clip.odva", packets, quantiser=codec.quantiser())    # one by one, in flat memory
    with open_packets("clip.odva") as reader:                          # a file or a pipe, one by one
        for packet in reader: ...
    file = load_packets("clip.odva")                                   # all at once: file.header, file.packets

The limits are the reader's, and are checked before memory is taken.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from onedva_runtime import container_layout as layout
from onedva_runtime.container_layout import Entry, Header
from onedva_runtime.container_packet import Coded, encode_packet, join
from onedva_runtime.container_read import Gap, OnError, PacketReader
from onedva_runtime.entropy import Tables
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import PacketError, naming
from onedva_runtime.files import AtomicFile, open_output, open_regular
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet, as_packet
from onedva_runtime.quantiser import Kind, Levels, Quantiser

__all__ = [
    "Gap",
    "Header",
    "PacketFile",
    "PacketReader",
    "PacketWriter",
    "load_packets",
    "open_packets",
    "save_packets",
]


@dataclass(frozen=True, eq=False, kw_only=True)
class PacketFile:
    """A whole `.odva` file in memory."""

    header: Header
    """What the packets share: size, rate, time base, model, channels, colour, step."""
    packets: list[Packet]
    """In the order of the file, at least one."""
    quantiser: Quantiser
    """What saves these packets again without changing them."""

    @property
    def frames(self) -> int:
        """Frames of the video: the sum over the clips, of which each may be in several tiles."""
        return sum(packet.frames for packet in self.packets if packet.corner == (0, 0))

    @property
    def timestamps(self) -> NDArray[np.int64] | None:
        """Time stamps (frames,) in ticks of header.time_base, None where a packet has none."""
        whole = [packet for packet in self.packets if packet.corner == (0, 0)]
        times = [packet.timestamps for packet in whole if packet.timestamps is not None]
        return np.concatenate(times) if len(times) == len(whole) else None


class PacketWriter:
    """Writes packets to a binary stream as they come. `finish` at the end writes the index; without it the file can
    still be read."""

    def __init__(
        self,
        file: BinaryIO,
        *,
        quantiser: Quantiser,
        fps: Fraction | None = None,
        colour: str = "",
        tables: Tables = TABLES,
    ) -> None:
        """file: need not be seekable. Options as `save_packets`."""
        self._file, self._fps, self._colour, self._tables = file, fps, colour, tables
        self._quantiser = quantiser
        self._header: Header | None = None
        self._levels: dict[Kind, Levels] = {}
        self._entries: list[Entry] = []
        self.size = 0
        """Bytes written so far."""

    def write(self, packet: Packet) -> None:
        """Append a packet. Raises PacketError for one that is not valid or of another video, OSError."""
        own = header_of(as_packet(packet).validate(), self._quantiser, fps=self._fps, colour=self._colour)
        header = self._header or own
        own = replace(own, time_base=header.time_base) if packet.timestamps is None else own
        if own != header:
            raise PacketError(f"packet {len(self._entries)} is of another video: {own}, the first is {header}")
        self.write_coded(encode_packet(packet, self._quantiser, self._tables), header)

    def write_coded(self, coded: Coded, header: Header) -> None:
        """Append a packet as another file has it. header: that file's, whose quantiser and tables are this writer's."""
        kind = coded.facts.is_key, coded.grid(header)[0]
        if kind not in self._levels:
            levels = {**self._levels, kind: self._quantiser.of(kind)}
            setup = self._setup(header, levels)  # may refuse: then nothing was written
            self._put((layout.opening() if self._header is None else b"") + setup)
            self._levels = levels
        self._header = header
        entry = coded.entry(self.size)
        self._put(layout.record(layout.PACKET, join(coded)))
        self._file.flush()
        self._entries.append(entry)

    def finish(self) -> int:
        """Write the end of the file; return its size in bytes. Raises PacketError where there were no packets."""
        if self._header is None:
            raise PacketError("no packets, so there is nothing to save")
        setup = self._put(self._setup(self._header, self._levels))
        index = self._put(layout.record(layout.INDEX, layout.pack_index(self._entries)))
        self._put(layout.record(layout.END, layout.pack_end(setup, index, len(self._entries))))
        self._file.flush()
        return self.size

    def _setup(self, header: Header, levels: dict[Kind, Levels]) -> bytes:
        return layout.record(layout.SETUP, layout.pack_setup(header, self._tables, levels.items()))

    def _put(self, data: bytes) -> int:
        """Write all of `data`; return where it begins."""
        start = self.size
        view = memoryview(data)
        while view:  # an unbuffered pipe takes what it has room for
            written = self._file.write(view)
            view = view[written:]
        self.size += len(data)
        return start


def save_packets(
    target: str | os.PathLike[str] | BinaryIO,
    packets: Iterable[Packet],
    *,
    quantiser: Quantiser,
    fps: Fraction | None = None,
    colour: str = "",
    overwrite: bool = False,
    live: bool = False,
) -> int:
    """Write the packets of one video to a file or a binary stream; return how many bytes.

    `target`: a path, or an object that is open for writing and need not be seekable. A path appears whole or not at
    all; `live`: it appears at once and grows by whole packets, so that others can read along, and is left as it is
    where the packets break off. `packets`: at least one, all of one size, rate, time base, model and channels; used up
    one by one, in flat memory. `quantiser`: `VideoCodec.quantiser()`, or a reader's, which changes nothing. `fps`: the
    exact rate, within 0.1 % of the packets' float. `colour`: for people. Raises PacketError where the file exists and
    `overwrite` is False, cannot be written, or the packets are not valid or do not belong together.
    """
    if not isinstance(target, str | os.PathLike):
        return _write(target, packets, None, quantiser=quantiser, fps=fps, colour=colour)
    name = os.fspath(target)
    if live:
        with open_output(name, overwrite=overwrite, error=PacketError) as file:
            return _write(file, packets, name, quantiser=quantiser, fps=fps, colour=colour)
    with AtomicFile(name, overwrite=overwrite, error=PacketError) as output:
        size = _write(output.file, packets, name, quantiser=quantiser, fps=fps, colour=colour)
        output.commit()
        return size


def _write(
    file: BinaryIO,
    packets: Iterable[Packet],
    name: str | None,
    *,
    quantiser: Quantiser,
    fps: Fraction | None,
    colour: str,
) -> int:
    """Write all; errors of writing name the file, those of the packets' source pass as they are."""
    writer = PacketWriter(file, quantiser=quantiser, fps=fps, colour=colour)
    for packet in packets:
        with naming(name):
            writer.write(packet)
    with naming(name):
        return writer.finish()


def load_packets(source: str | os.PathLike[str] | BinaryIO, *, limits: Limits | None = None) -> PacketFile:
    """Read a whole file; raises PacketError, and by kind NotOdva, Truncated, Corrupt, OverLimit."""
    with open_packets(source, limits=limits) as reader:
        packets = list(reader)
        return PacketFile(header=reader.header, packets=packets, quantiser=reader.quantiser)


def open_packets(
    source: str | os.PathLike[str] | BinaryIO, *, limits: Limits | None = None, on_error: OnError = "raise"
) -> PacketReader:
    """Open a file or a binary stream for reading packet by packet.

    `source`: a path, or an object that is open for reading and need not be seekable; it is not closed. `on_error`:
    "raise" raises at the first damage; "skip" leaves out what is damaged, up to the next key clip at most, and lists it
    in `reader.gaps`. Opening and reading raise as `load_packets` does.
    """
    limits = limits or Limits()
    if not isinstance(source, str | os.PathLike):
        name = getattr(source, "name", None)
        name = name if isinstance(name, str) else "stream"
        return PacketReader(source, name, limits=limits, on_error=on_error, close=False)
    name = os.fspath(source)
    file = open_regular(name, limits, error=PacketError)
    return PacketReader(file, name, limits=limits, on_error=on_error, close=True)


def header_of(packet: Packet, quantiser: Quantiser, *, fps: Fraction | None = None, colour: str = "") -> Header:
    """The header of a file of this packet and others like it; options as `save_packets`."""
    rate = fps or Fraction(packet.fps).limit_denominator(1_000_000)
    if not abs(float(rate) / packet.fps - 1) <= 1e-3:
        raise PacketError(f"a packet of {packet.fps} frames per second does not belong to a video of {rate}")
    height, width = packet.whole_size
    return Header(
        width=width,
        height=height,
        fps=rate,
        time_base=packet.time_base if packet.timestamps is not None else None,
        model=packet.model,
        structural_channels=packet.structural.shape[-1],
        latent_channels=packet.latents.shape[-1],
        step=float(quantiser.step),
        colour=colour,
    )
