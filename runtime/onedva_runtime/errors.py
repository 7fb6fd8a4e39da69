"""The errors a user of the runtime can meet, as types. `str(error)` is one clear line that says what was got, what is
allowed and what to do; the command line prints it and exits 2. Wrong arguments to Python functions are plain ValueError
and TypeError."""

from collections.abc import Generator
from contextlib import contextmanager

__all__ = [
    "BackendError",
    "BundleError",
    "Corrupt",
    "MissingLevels",
    "NotOdva",
    "OneDVAError",
    "OverLimit",
    "PacketError",
    "SandboxError",
    "Truncated",
    "VideoError",
    "WrongModel",
    "naming",
]


class OneDVAError(Exception):
    """Base of every error that onedva raises on purpose about the outside world: files, bundles, backends."""


class VideoError(OneDVAError):
    """The input is not a video we read: refused format, empty, truncated, or over the reader's limits."""


class SandboxError(VideoError):
    """The process that decoded a video in isolation crashed or went over its limits of memory or time."""


class BundleError(OneDVAError):
    """A bundle is missing, damaged, tampered with, or of a schema this version does not know."""


class PacketError(OneDVAError):
    """A packet or an `.odva` file is inconsistent, cannot be written or read, or is one of the kinds below."""


class NotOdva(PacketError):
    """The file is no `.odva` file at all, or of a version of the format that this program does not read."""


class Truncated(PacketError):
    """The file ends early: it was cut off, or is still being written. What was whole has been given out."""


class Corrupt(PacketError):
    """Bytes of the file are not what was written: a checksum does not fit, or they make no sense."""


class MissingLevels(PacketError):
    """No quantiser steps for this kind of clip: they are another model's, or that part of a file is damaged."""


class OverLimit(PacketError):
    """The file asks for more than the reader's `Limits` allow."""


class WrongModel(PacketError):
    """A packet was made by another model than the one that is to decode it."""


class BackendError(OneDVAError):
    """A backend is unknown, not installed or not usable; the message names the `pip install 'onedva[…]'` that brings
    it."""


@contextmanager
def naming(name: str | None) -> Generator[None]:
    """A block whose PacketErrors name a file, once."""
    try:
        yield
    except PacketError as error:
        if name is None or str(error).startswith(f"{name}: "):
            raise
        raise type(error)(f"{name}: {error}") from error
