"""Files on disk: `open_regular` for untrusted input, and `AtomicFile` for output that appears whole or not at all:
written beside its place under a temporary name, synced, then renamed."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

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
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            self.file = os.fdopen(os.open(self._temporary, flags, 0o666), "w+b")
        except OSError as problem:
            raise error(f"{self.path}: cannot be written here ({problem.strerror})") from problem

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
        self.file.close()
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
