"""The records of an `.odva` file or pipe, each checked before it is given out; and the index, from the file's end or by
looking at every packet. What the records mean is container_read.py's."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from onedva_runtime import container_layout as layout
from onedva_runtime.container_layout import Entry
from onedva_runtime.container_packet import split
from onedva_runtime.container_source import Source
from onedva_runtime.errors import Corrupt, OverLimit, Truncated
from onedva_runtime.limits import Limits

__all__ = ["Gap", "Records"]

_ANY_MARK = re.compile(b"|".join(map(re.escape, layout.MARKS)))
_SETUP_MARK = re.compile(re.escape(layout.SETUP))
_LENGTH = len(layout.SETUP)  # of every mark


@dataclass(frozen=True, kw_only=True)
class Gap:
    """What could not be read, where on_error is "skip"."""

    offset: int
    """Where in the file, bytes from its start."""
    problem: str
    """What was wrong."""
    first_frame: int | None
    """The first frame of the video that is missing for it; None where no clip is missing, only latents of one."""


class Records:
    """A stream of records, of which one that is damaged or not all there can be told from one that is whole."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self.source, self._limits = Source(file), limits
        self.offset = 0
        """Where the record begins that was last asked for."""
        self.mark = b""
        """Its mark, empty where its head is damaged."""

    def open(self) -> None:
        """Take the opening of the file; raises NotOdva."""
        layout.check_opening(self.source.look(layout.OPENING.size))
        self.source.take(layout.OPENING.size)

    def next(self) -> tuple[bytes, bytes]:
        """Mark and body of the next record, taken.

        Truncated, and nothing taken, where it is not all there; Corrupt where none starts here; OverLimit.
        """
        self.offset, self.mark = self.source.offset, b""
        head = self.source.look(layout.RECORD.size)
        if len(head) < layout.RECORD.size:
            raise Truncated("cut off, or still being written: no whole record follows")
        found = layout.record_head(head)
        if found is None:
            raise Corrupt("damaged: no record starts here")
        mark, length = found
        most = self._limits.max_packet_bytes
        if mark == layout.SETUP and length > layout.MAX_SETUP:
            raise Corrupt(f"a setup of {length} bytes; the format holds {layout.MAX_SETUP}")
        if length > most:
            raise OverLimit(f"a record of {length} bytes; allowed: {most} (Limits.max_packet_bytes)")
        missing = len(head) + length - self.source.reach(len(head) + length)
        if missing:
            raise Truncated(f"cut off, or still being written: {missing} bytes of a record are missing")
        body = self.source.look(length, after=len(head))
        self.source.take(len(head) + length)
        self.mark = mark
        return mark, body

    def again(self) -> None:
        """Go back to the record that was last asked for, where that can be done."""
        if self.source.seekable:
            self.source.seek(self.offset)

    @contextmanager
    def elsewhere(self) -> Generator[None]:
        """A block that may go anywhere in a file that can be searched; after it we are where we were."""
        here, offset, mark = self.source.offset, self.offset, self.mark
        try:
            yield
        finally:
            self.source.seek(here)
            self.offset, self.mark = offset, mark

    def resynchronise(self) -> None:
        """After a damaged record, go to the next one that starts whole, or to the end of what there is."""
        if self.source.offset > self.offset:  # only the body was damaged, the next record follows
            return
        while (place := self.source.find(_ANY_MARK, length=_LENGTH, after=1)) is not None:
            self.source.take(place)
            head = self.source.look(layout.RECORD.size)
            if len(head) < layout.RECORD.size or layout.record_head(head) is not None:
                return

    def find_setup(self, *, within: int) -> bytes | None:
        """The body of the next setup record that is whole and begins at most `within` bytes on; None where there is
        none."""
        start = self.source.offset
        while (place := self.source.find(_SETUP_MARK, length=_LENGTH, after=1)) is not None:
            self.source.take(place)
            if self.source.offset - start > within:
                return None
            try:
                return self.next()[1]
            except (Truncated, Corrupt):
                continue
        return None

    def footer(self) -> tuple[bytes, list[Entry]]:
        """The last setup's body and the index of a file that has its end. Moves.

        Raises Truncated, Corrupt, OverLimit."""
        size = self.source.size()
        self.source.seek(max(0, size - layout.END_SIZE))
        mark, body = self.next()
        if mark != layout.END:
            raise Truncated("it has no end record")
        places = layout.unpack_end(body)[:2]
        if max(places) > size:
            raise Corrupt("its end names places outside the file")
        bodies: list[bytes] = []
        for place, wanted in zip(places, (layout.SETUP, layout.INDEX), strict=True):
            self.source.seek(place)
            mark, body = self.next()
            if mark != wanted:
                raise Corrupt("its end does not name its setup and index")
            bodies.append(body)
        return bodies[0], layout.unpack_index(bodies[1], size=size, most=self._limits.max_frames)

    def scan(self, on_setup: Callable[[bytes], None]) -> list[Entry]:
        """The index of a file without an end; what is damaged is not in it. on_setup: called with the body of every
        setup. Raises OverLimit. Moves."""
        self.source.seek(layout.OPENING.size)
        entries: list[Entry] = []
        while True:
            try:
                mark, body = self.next()
                if mark == layout.END:
                    return entries
                if mark == layout.SETUP:
                    on_setup(body)
                elif mark == layout.PACKET:
                    coded = split(body, partial=True)
                    entries.append(coded.entry(self.offset))
            except Truncated:
                return entries
            except Corrupt:
                self.resynchronise()
            if len(entries) > self._limits.max_frames:
                raise OverLimit(f"more than {self._limits.max_frames} packets (Limits.max_frames)")
