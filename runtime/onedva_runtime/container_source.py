"""Bytes of a file or a pipe, looked at before they are taken: what a reader of records needs, in flat memory. A file
that is still being written gives more when it is asked again."""

from __future__ import annotations

import io
from typing import BinaryIO

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
        self.seekable = _can_seek(file)
        self._origin = file.tell() if self.seekable else 0

    @property
    def offset(self) -> int:
        """Bytes taken so far, or where `seek` went."""
        return self._start + self._at

    def look(self, count: int, *, after: int = 0) -> bytes:
        """The next `count` bytes, `after` others, without taking them; fewer where the stream ends.

        Memory is taken as bytes arrive, not as `count` asks.
        """
        while self._at + after + count > len(self._window):
            data = self._read(_CHUNK)
            if not data:
                break
            if self._at > _CHUNK:  # forget what was taken
                del self._window[: self._at]
                self._start, self._at = self._start + self._at, 0
            self._window += data
        start = self._at + after
        return bytes(self._window[start : start + count])

    def take(self, count: int) -> None:
        """Go on by `count` bytes that have been looked at."""
        assert self._at + count <= len(self._window), "only what was looked at can be taken"
        self._at += count

    def find(self, marks: tuple[bytes, ...], *, after: int) -> int | None:
        """How many bytes on from here the first of `marks` starts, at least `after`; None where none comes. Takes the
        bytes on the way: the answer counts from where we are then."""
        overlap = max(map(len, marks)) - 1
        while True:
            data = self.look(_CHUNK, after=after)
            found = [place for place in map(data.find, marks) if place >= 0]
            if found:
                return after + min(found)
            self.take(max(0, after + len(data) - overlap))
            if len(data) < _CHUNK:
                return None
            after = 0

    def seek(self, offset: int) -> None:
        """Go to `offset`, counted from where reading began. Only where `seekable`."""
        self._file.seek(self._origin + offset)
        self._window.clear()
        self._start, self._at = offset, 0

    def size(self) -> int:
        """Bytes from where reading began to the end of the stream as it is now. Only where `seekable`."""
        return self._file.seek(0, io.SEEK_END) - self._origin


def _can_seek(file: BinaryIO) -> bool:
    try:
        return file.seekable()
    except (AttributeError, ValueError):
        return False
