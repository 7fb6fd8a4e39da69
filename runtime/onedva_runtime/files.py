"""Files on disk: `open_regular` for untrusted input, and `AtomicFile` for output that appears whole or not at all:
written beside its place under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import io
import os
import re
import secrets
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from .errors import OneDVAError
from .limits import Limits

_ADDRESS = re.compile(r"-$|[A-Za-z][A-Za-z0-9+.-]+[:,]")  # also FFmpeg's own: "concat:a|b", "subfile,,start,…"


def open_regular(path: str, limits: Limits, *, error: type[OneDVAError]) -> BinaryIO:
    """Open a regular file of 1 to `limits.max_bytes` bytes for reading, unbuffered; raises `error` for others."""
    try:
        # Non-blocking, so that a pipe without a writer does not hang us before we see that it is one.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as cause:
        hint = " (addresses and stdin are not read: give a local file)" if _ADDRESS.match(path) else ""
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        raise error(f"{path}: {reason}{hint}") from cause
    status = os.fstat(handle)
    problem = None
    if not stat.S_ISREG(status.st_mode):
        problem = "not a regular file (folders, pipes and devices are not read)"
    elif status.st_size == 0:
        problem = "the file is empty"
    elif status.st_size > limits.max_bytes:
        problem = f"{status.st_size} bytes, over the limit of {limits.max_bytes} (Limits.max_bytes)"
    if problem is not None:
        os.close(handle)
        raise error(f"{path}: {problem}")
    return os.fdopen(handle, "rb", buffering=0)


def seekable(file: BinaryIO) -> bool:
    """Whether we can go back in `file`: not in a pipe."""
    try:
        return file.seekable()
    except (AttributeError, ValueError):
        return False


class _Output(io.FileIO):
    """A file whose errors of writing say which file it is: a full disk does not."""

    def __init__(self, handle: int, path: str, error: type[OneDVAError]) -> None:
        super().__init__(handle, "r+")  # reading, too: FFmpeg goes back to what it wrote
        self._path, self._error = path, error

    def write(self, data: Any) -> int:
        """As `io.FileIO.write`; raises `error`."""
        try:
            return super().write(data)
        except OSError as problem:
            raise self._error(f"{self._path}: cannot be written ({problem.strerror})") from problem


def open_output(path: str, *, overwrite: bool, error: type[OneDVAError], shown: str | None = None) -> BinaryIO:
    """Open a file for writing and reading, there at once; raises `error`, and so does writing, saying that it is
    `shown` (`path` by default)."""
    shown = shown or path
    try:
        flags = os.O_RDWR | os.O_CREAT | (os.O_TRUNC if overwrite else os.O_EXCL) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags, 0o666)
    except FileExistsError as problem:
        raise error(f"{shown}: exists already (overwrite=True, or -f, replaces it)") from problem
    except OSError as problem:
        raise error(f"{shown}: cannot be written here ({problem.strerror})") from problem
    file = _Output(handle, shown, error)
    return cast(BinaryIO, io.BufferedRandom(file) if file.seekable() else io.BufferedWriter(file))


def sha256_of(path: Path) -> str:
    """The hash of a file, hex: the identity of weights."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


class AtomicFile:
    """A binary file, open for writing and reading as `.file`, that takes its name only when `commit` is called.

    Leaving the `with` block without `commit`, or `abort`, removes it without a trace.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool, error: type[OneDVAError]) -> None:
        """Raises `error` where `path` exists and `overwrite` is False, or nothing can be written there."""
        self.path = os.fspath(path)
        self._overwrite, self._error = overwrite, error
        self._check_free()
        folder, name = os.path.split(os.path.abspath(self.path))
        self._temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")
        # An interrupt may come when this object is made and no `with` block has it yet: then it goes with the object.
        self._removal = weakref.finalize(self, _remove, self._temporary)
        self.file = open_output(self._temporary, overwrite=False, error=error, shown=self.path)

    def commit(self) -> None:
        """Give the file its name; raises the `error` of the constructor where that fails, and then nothing is left."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self._check_free()
            os.replace(self._temporary, self.path)
        except (OSError, OneDVAError) as problem:
            self.abort()
            if isinstance(problem, OneDVAError):
                raise
            raise self._error(f"{self.path}: cannot be written ({problem.strerror})") from problem
        if os.name == "posix":  # the new name, too, must survive a power cut
            folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def abort(self) -> None:
        """Remove what was written; does nothing after `commit`."""
        try:
            with suppress(OSError, OneDVAError):  # what is still to be written, on a full disk
                self.file.close()
        finally:
            self._removal()

    def _check_free(self) -> None:
        if os.path.isdir(self.path):
            raise self._error(f"{self.path}: is a folder, give a file name")
        if os.path.lexists(self.path) and not self._overwrite:
            raise self._error(f"{self.path}: exists already (overwrite=True, or -f, replaces it)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
