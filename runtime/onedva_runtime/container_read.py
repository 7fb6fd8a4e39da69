"""Reading `.odva` files and pipes, packet by packet. Made by `open_packets`; the bytes: container_layout.py.

Every record is checked before it is used, and every claim against the reader's `Limits` before memory or work is spent
on it. A damaged record raises a typed error, or, with on_error="skip", becomes a `Gap` and reading goes on at the next
record that is whole; continuation clips after a gap are left out up to the next key clip, since nothing could be done
with them.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import BinaryIO, Literal, Self

from onedva_runtime import container_layout as layout
from onedva_runtime.container_index import clips_of, key_before
from onedva_runtime.container_layout import Entry, Header
from onedva_runtime.container_packet import Coded, split
from onedva_runtime.container_records import Gap, Records
from onedva_runtime.entropy import Tables
from onedva_runtime.errors import Corrupt, MissingLevels, NotOdva, OverLimit, PacketError, Truncated, naming
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet
from onedva_runtime.quantiser import Quantiser

__all__ = ["Gap", "OnError", "PacketReader"]

OnError = Literal["raise", "skip"]
MOST_GAPS = 10_000
_SEARCHED = 1 << 20  # bytes of a file with a damaged start, in which a setup record may come


class PacketReader:
    """Yields the packets of one file in order. Use it in a `with` block.

    Iterating again goes on where it stopped: at a file that is still being written, `Truncated` says that no whole
    packet follows yet.
    """

    limits: Limits
    """The reader's own."""
    header: Header
    """What the packets share."""
    quantiser: Quantiser
    """Steps of the clips so far: what saves packets of this file again without changing them."""
    tables: Tables
    """Tables of the entropy coder, which travel with the packets."""
    gaps: list[Gap]
    """What was left out so far, where on_error is "skip"."""
    complete: bool
    """Whether the end of the file has been reached and was whole."""
    _told: list[Entry] | None

    def __init__(self, file: BinaryIO, name: str, *, limits: Limits, on_error: OnError, close: bool) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        self._file, self._name, self.limits, self._close = file, name, limits, close
        self._records, self._skip = Records(file, limits), on_error == "skip"
        self.gaps, self.complete = [], False
        self._next_frame, self._frames, self._packets = 0, 0, 0
        self._waits_for_key, self._from_start = False, True
        self._searched, self._told = False, None
        self._cut_off: int | None = None  # where the record begins that was not all there
        try:
            with naming(name):
                self._open()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[Packet]:
        for coded in self.coded():
            try:
                with naming(self._name):
                    packet = self._decode(coded)
            except (Corrupt, MissingLevels) as error:
                if not self._skip:
                    raise
                self._packets -= 1
                self._lose(error, coded.facts.first_frame)
                continue
            yield packet

    def coded(self) -> Iterator[Coded]:
        """As iterating, but the packets' latents stay coded: for copying and thinning."""
        while True:
            with naming(self._name):
                coded = self._next()
            if coded is None:
                return
            yield coded

    @property
    def offset(self) -> int:
        """Where in the file the record of the last packet begins, bytes from its start."""
        return self._records.offset

    def seek(self, *, frame: int | None = None, seconds: float | None = None) -> None:
        """Go to the last key clip that starts at or before a frame, or a time since the start of the video.

        Raises PacketError for a pipe, and what reading raises; ValueError unless exactly one of both is given.
        """
        if (frame is None) == (seconds is None) or not math.isfinite(seconds or 0):
            raise ValueError(f"seek wants a frame or a finite time, got frame={frame} and seconds={seconds}")
        chosen = key_before(self.index(), self.header, frame=frame, seconds=seconds)
        if chosen is None:
            raise PacketError(f"{self._name}: no key clip in it to start at")
        self._records.source.seek(chosen.offset)
        self._next_frame, self._frames = chosen.first_frame, 0
        self._waits_for_key = self._from_start = self.complete = False

    def index(self) -> list[Entry]:
        """Every packet's place, from the file's footer; where it has none, or a damaged one, by looking at all packets.

        Raises PacketError for a pipe, OverLimit for more packets than Limits.max_frames, and what reading raises.
        """
        if not self._records.source.seekable:
            raise PacketError(f"{self._name}: a pipe cannot be searched")
        with self._records.elsewhere(), naming(self._name):
            return self._index()

    def clips(self) -> list[Entry] | None:
        """What the index tells of every clip, those that are damaged among them; of one in tiles, of its first. None
        where there is no index to believe, or not yet: of a pipe it comes at the end."""
        if self._told is None and self._records.source.seekable:
            with self._records.elsewhere(), suppress(PacketError):
                self._told = clips_of(self._records.footer()[1])
        return self._told

    def expect_losses(self) -> None:
        """Packets may be missing, as what is sent over a network may: the count at the end is not held against it."""
        self._from_start = False

    def close(self) -> None:
        """Close the file, unless it was given as an object; safe to call twice."""
        if self._close:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        try:
            self._records.open()
            mark, body = self._records.next()
            if mark != layout.SETUP:
                raise Corrupt(f"starts with a {mark.decode()} record")
            self._set_up(body)
        except (Corrupt, NotOdva) as error:
            if not self._skip:
                raise
            self._find_setup(error)

    def _index(self) -> list[Entry]:
        """The index; takes setups on the way, since those that packets need may be damaged. Moves."""
        try:
            setup, entries = self._records.footer()
            self._set_up(setup)
        except (Truncated, Corrupt):
            return self._records.scan(self._try_setup)
        return entries

    def _find_setup(self, cause: PacketError) -> None:
        """Take the setup from the end of the file, or from further on, and read on from the first record where the file
        can be searched; raises `cause` where there is none."""
        records = self._records
        offset = 0 if isinstance(cause, NotOdva) else records.offset
        start = records.source.offset
        if records.source.seekable:
            with suppress(Truncated, Corrupt):
                self._set_up(records.footer()[0])
            records.source.seek(start)
        while not hasattr(self, "header"):
            body = records.find_setup(within=_SEARCHED - (records.source.offset - start))
            if body is None:
                raise cause
            self._try_setup(body)
        first = None if records.source.seekable else 0
        if first is None:
            records.source.seek(layout.OPENING.size)
        self._waits_for_key = first is not None  # clips went by on the way
        self.gaps.append(Gap(offset=offset, problem=str(cause), first_frame=first))

    def _try_setup(self, body: bytes) -> None:
        with suppress(Corrupt):
            self._set_up(body)

    def _set_up(self, body: bytes) -> None:
        header, tables, quantiser = layout.unpack_setup(body)
        if header.width * header.height > self.limits.max_pixels:
            size, limit = f"{header.width}x{header.height}", self.limits.max_pixels
            raise OverLimit(f"frames of {size}, over the limit of {limit} pixels (Limits.max_pixels)")
        if hasattr(self, "header"):
            if header != self.header:
                raise Corrupt("it changes its header on the way")
            quantiser = replace(quantiser, levels={**self.quantiser.levels, **quantiser.levels})
        self.header, self.tables, self.quantiser = header, tables, quantiser

    def _decode(self, coded: Coded) -> Packet:
        try:
            return coded.decode(self.header, self.quantiser, self.tables)
        except MissingLevels:
            if self._searched or not (self._skip and self._records.source.seekable):
                raise
        self._searched = True
        self.index()  # the setup that brought them may be damaged: there is another at the end
        return coded.decode(self.header, self.quantiser, self.tables)

    def _next(self) -> Coded | None:
        """The next packet; None at the end of the file, or of what can be read of it."""
        while not self.complete:
            try:
                mark, body = self._records.next()
                if self._cut_off == self._records.offset:  # it has grown since
                    self.gaps[:] = [gap for gap in self.gaps if gap.offset != self._cut_off]
                self._cut_off = None
                coded = self._take_record(mark, body)
            except Truncated as error:
                if not self._skip:
                    raise
                if self._cut_off != self._records.offset:
                    self._cut_off = self._records.offset
                    self._tell(str(error), self._next_frame)
                return None
            except Corrupt as error:
                if not self._skip:
                    self._records.again()
                    raise
                self._lose(error, self._next_frame)
                self._records.resynchronise()
            else:
                if coded is not None:
                    return coded
        return None

    def _take_record(self, mark: bytes, body: bytes) -> Coded | None:
        """What a whole record says: a packet to give out, or nothing."""
        if mark == layout.PACKET:
            return self._take_packet(split(body, partial=self._skip))
        if mark == layout.SETUP:
            self._set_up(body)
        elif mark == layout.INDEX:  # for those who search; here its checksum, and in a damaged pipe what it tells
            deque(layout.sections(body), maxlen=0)
            size, most = self._records.offset, self.limits.max_frames
            with suppress(PacketError):
                self._told = clips_of(layout.unpack_index(body, size=size, most=most)) if self.gaps else None
        else:
            _, _, count = layout.unpack_end(body)
            if self._from_start and not self.gaps and self._packets != count:
                raise Corrupt(f"its end counts {count} packets, there are {self._packets}")
            if self._records.source.seekable and self._records.source.look(1):  # a pipe may stay open, and silent
                raise Corrupt("bytes follow after its end")
            if self._from_start and self._packets == count:  # then what was damaged at the end was no clip
                self._nothing_missing()
            self.complete = True
        return None

    def _take_packet(self, coded: Coded) -> Coded | None:
        facts = coded.facts
        coded.check(self.header, self.limits)
        self._packets += 1
        if self._waits_for_key:
            follows = facts.begins_clip and facts.first_frame == self._next_frame
            if not follows and not (facts.is_key and facts.begins_clip):
                return None
            self._waits_for_key = False
            if follows:
                self._nothing_missing()
        self._frames += facts.frames if facts.begins_clip else 0
        if self._frames > self.limits.max_frames:
            raise OverLimit(f"more than {self.limits.max_frames} frames (Limits.max_frames)")
        if coded.lost is not None:
            self._tell(coded.lost, None)
        self._next_frame = facts.first_frame + (facts.frames if coded.ends_clip(self.header) else 0)
        return coded

    def _nothing_missing(self) -> None:
        """The gaps since the last packet were no clips: what follows goes on from it."""
        for index, gap in enumerate(self.gaps):
            if gap.first_frame == self._next_frame:
                self.gaps[index] = replace(gap, first_frame=None)

    def _lose(self, error: PacketError, first_frame: int) -> None:
        offset, clip = self._records.offset, self._records.mark in (b"", layout.PACKET)  # b"": it may have been one
        self._waits_for_key |= clip
        self._next_frame = first_frame
        if not self.gaps or self.gaps[-1].offset != offset:  # `_find_setup` may have told of it
            self._tell(str(error), first_frame if clip else None)

    def _tell(self, problem: str, first_frame: int | None) -> None:
        if len(self.gaps) >= MOST_GAPS:
            raise Corrupt(f"damaged in more than {MOST_GAPS} places: {problem}")
        self.gaps.append(Gap(offset=self._records.offset, problem=problem, first_frame=first_frame))
