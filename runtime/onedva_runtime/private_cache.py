"""What this machine made for itself and can make again: optimised graphs, compiled models, measured choices. It lies in
`ONEDVA_CACHE`, in folders that nobody else may write to, because what lies there is loaded without the checks that a
bundle goes through."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from onedva_runtime.errors import BackendError
from onedva_runtime.hub import cache_folder

__all__ = ["cache_key", "private_folder", "trim"]

logger = logging.getLogger("onedva")
MAX_BYTES = 2 << 30  # of one kind; what was used longest ago makes room


def cache_key(facts: object) -> str:
    """A name for whatever depends on `facts` (anything JSON can hold, in a fixed order): 32 hex digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def private_folder(kind: str, *names: str) -> Path | None:
    """The folder `kind`/`names`… of the cache, made where it is missing, for this user alone (0700).

    None, with a warning, where it cannot be made: then nothing is kept. Raises BackendError where others own it or may
    write to it.
    """
    top = cache_folder()
    try:
        top.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_top(top)
        for part in (top / kind, *(top.joinpath(kind, *names[: i + 1]) for i in range(len(names)))):
            part.mkdir(exist_ok=True, mode=0o700)
            _check_owner(part)
    except OSError as error:
        _warn(top, error.strerror)
        return None
    return top.joinpath(kind, *names)


@cache  # once in a process: every graph asks for its folder
def _warn(folder: Path, problem: str | None) -> None:
    logger.warning(
        "the cache folder %s cannot be used (%s), so every start takes longer: point ONEDVA_CACHE at one to write to",
        folder,
        problem,
    )


def _check_top(folder: Path) -> None:
    """Raise BackendError where someone else could put another folder in the place of one of ours."""
    status = folder.stat()  # a link is followed: who made it is who chose the place
    # In a folder like /tmp others may write, but not take away what is ours.
    others_write = status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX
    if hasattr(os, "geteuid") and (status.st_uid not in (os.geteuid(), 0) or others_write):
        raise BackendError(_not_ours(folder))


def _check_owner(folder: Path) -> None:
    """Raise BackendError where someone else could put a file into the folder."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise BackendError(f"{folder} must be a folder, not a link or a file: remove it, or change ONEDVA_CACHE")
    if hasattr(os, "geteuid") and (status.st_uid != os.geteuid() or status.st_mode & 0o022):
        raise BackendError(_not_ours(folder))


def _not_ours(folder: Path) -> str:
    return (
        f"{folder} belongs to another user or may be written to by others; what lies there is run: make it yours with "
        "mode 0700, or point ONEDVA_CACHE elsewhere"
    )


def trim(folder: Path, *, max_bytes: int = MAX_BYTES, keep: Iterable[Path] = ()) -> None:
    """Delete files below `folder`, those used longest ago first, until at most `max_bytes` are left.

    keep: folders whose files stay. Files that a process has open or mapped stay readable for it.
    """
    kept = tuple(keep)
    files: list[tuple[float, int, Path]] = []
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except FileNotFoundError:  # another process tidies up too
            continue
        if stat.S_ISREG(status.st_mode):
            files.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= max_bytes:
            break
        if not any(path.is_relative_to(folder) for folder in kept):
            path.unlink(missing_ok=True)
            total -= size
