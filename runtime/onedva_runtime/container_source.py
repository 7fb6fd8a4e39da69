"""Bytes of a file or a pipe, looked at before they are taken: what a reader of records needs, in flat memory. A file
that is still being written gives more when it is asked again."""

from __future__ import annotations

import io
import re
from typing import BinaryIO

from onedva_runtime.files import seekable

__all__ = ["Source"]

_CHUNK = 1 << 18


class Source:
    """A binary stream with a window to look ahead in. Does not own the stream."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._read = getattr(file, "read1", file.read)  # of a pipe what is there, without waiting for all we ask
        self._window = bytearray()
        self._start = 0  # where the window begins in the stream, from where we began to read
        self._at = 0  # where we are in the window
        self.seekable = seekable(file)
        self._origin = file.tell() if self.seekable else 0

    @property
    def offset(self) -> int:
        """Bytes taken so far, or where `seek` went."""
        return self._start + self._at

    def reach(self, count: int) -> int:
        """How many of the next `count` bytes there are; less than `count` where the stream ends.

        Memory is taken as bytes arrive, not as `count` asks.
        """
        while self._at + count > len(self._window):
            data = self._read(_CHUNK)
            if not data:
                break
            if self._at > _CHUNK:  # forget what was taken
                del self._window[: self._at]
                self._start, self._at = self._start + self._at, 0
            self._window += data
        return min(count, len(self._window) - self._at)

    def look(self, count: int, *, after: int = 0) -> bytes:
        """The next `count` bytes, `after` others, without taking them; fewer where the stream ends."""
        self.reach(after + count)
        start = self._at + after
        return bytes(self._window[start : start + count])

    def take(self, count: int) -> None:
        """Go on by `count` bytes that have been looked at."""
        assert self._at + count <= len(self._window), "only what was looked at can be taken"
        self._at += count

    def find(self, pattern: re.Pattern[bytes], *, length: int, after: int) -> int | None:
        """How many bytes on from here `pattern`, of `length` bytes, comes first, at least `after`; None where it does
        not come. Takes the bytes on the way: the answer counts from where we are then. Waits for no more than it needs.
        """
        start = self.offset + after
        while True:
            found = pattern.search(self._window, max(0, start - self._start))
            if found is not None:
                return self._start + found.start() - self.offset
            left = len(self._window) - self._at
            self.take(max(0, left - length + 1))
            start = max(start, self.offset)
            left = len(self._window) - self._at
            if self.reach(left + 1) == left:
                return None

    def seek(self, offset: int) -> None:
        """Go to `offset`, counted from where reading began. Only where `seekable`."""
        self._file.seek(self._origin + offset)
        self._window.clear()
        self._start, self._at = offset, 0

    def size(self) -> int:
        """Bytes from where reading began to the end of the stream as it is now. Only where `seekable`."""
        return self._file.seek(0, io.SEEK_END) - self._origin
