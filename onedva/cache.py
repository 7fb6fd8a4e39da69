"""Decoded videos, kept as memory-mapped uint8 files in the cache folder (`ONEDVA_CACHE`, default ~/.cache/onedva).

A video is decoded once, frame by frame into its file, its short side scaled to what its source says. The name of the
file comes from the video's place, size and time stamp, so that a changed video is decoded anew. With a limit, the files
that were used longest ago make room; one that is mapped somewhere stays readable there until it is let go.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from onedva.sources import Source, on_disk
from onedva.workers import is_worker
from onedva_runtime.errors import OneDVAError, VideoError
from onedva_runtime.video_io import open_reader, probe

__all__ = ["CacheError", "Clip", "Facts", "cache_folder", "load_clip", "scale_short_side"]

CACHE_VERSION = 1
STALE = 3600.0  # seconds after which a temporary file that nothing wrote to belongs to a process that was killed

ATTEMPTS = 10  # another process may make room between our decoding and our reading


class CacheError(OneDVAError):
    """The cache folder is full: no fault of the video that was being decoded."""


@dataclass(frozen=True)
class Clip:
    """One decoded video: frames (T, H, W, 3) uint8, memory-mapped, and its rate."""

    name: str
    frames: NDArray[np.uint8]
    fps: float


@dataclass(frozen=True)
class Facts:
    """What is known of a video without decoding it."""

    fps: float
    """Frames per second."""
    frames: int | None
    """Frames it announces, or its length times its rate; None where it says neither."""


def cache_folder() -> Path:
    root = os.environ.get("ONEDVA_CACHE") or Path.home() / ".cache" / "onedva"
    return Path(root) / "clips"


def load_clip(source: Path | Source, *, limit: int | None = None) -> Clip:
    """The frames of one video; decoded into the cache on first use, or where the cached file is gone or damaged.

    limit: bytes that all cached files may take together. Raises VideoError or OSError for a video that cannot be read,
    or is larger than the limit; CacheError for a full disk.
    """
    if isinstance(source, Path):
        source = Source(source.name, source)
    target = cached_path(source)
    rate = facts(source, target).fps
    for _ in range(ATTEMPTS):
        frames = open_cached(target)
        if frames is not None:
            return Clip(source.name, frames, rate)
        decode(source, target, limit=limit)
    raise CacheError(f"cached frames vanish before they are read: the cache limit of {limit} bytes is too small")


def cached_path(source: Source) -> Path:
    """Where the frames of a video are kept, or would be. Raises OSError when the video is gone."""
    stat = source.path.stat()
    key = f"{CACHE_VERSION}:{source.path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{source.short_side}"
    if source.offset is not None:
        key += f":{source.offset}:{source.size}"
    stem = "".join(letter if letter.isalnum() or letter in "-_ " else "-" for letter in Path(source.name).stem)
    return cache_folder() / f"{stem[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def open_cached(target: Path) -> NDArray[np.uint8] | None:
    """The mapped frames, marked as used now; None where they are not there. A damaged file is removed."""
    try:
        frames = np.load(target, mmap_mode="r")
        os.utime(target)
    except FileNotFoundError:
        return None
    except (ValueError, EOFError):
        target.unlink(missing_ok=True)
        return None
    if frames.ndim != 4 or frames.dtype != np.uint8 or not len(frames):
        target.unlink(missing_ok=True)
        return None
    return frames


def facts(source: Source, target: Path) -> Facts:
    """Rate and announced length: from the shard, else from a small file beside the cached frames, else the video."""
    if source.fps is not None:
        return Facts(source.fps, source.frames)
    kept = target.with_suffix(".json")
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        known = json.loads(kept.read_text())
        return Facts(float(known["fps"]), known["frames"])
    with full_disk_is_no_fault_of_the_video(), on_disk(source, scratch=target.parent) as path:
        info = probe(path)
        announced = info.frames or (round(info.duration_s * info.fps) if info.duration_s else None)
        found = Facts(float(info.fps), announced)
        with _temporary(kept) as temporary:
            temporary.write_text(json.dumps({"fps": found.fps, "frames": found.frames}))
    return found


def decode(source: Source, target: Path, *, limit: int | None = None) -> None:
    """Decode a video into its file, which appears whole or not at all; memory does not grow with the video."""
    shape, count = (0, 0, 0), 0
    with (
        full_disk_is_no_fault_of_the_video(),
        on_disk(source, scratch=target.parent) as path,
        _temporary(target) as temporary,
    ):
        with open_reader(path, threads=1 if is_worker() else 0) as reader, temporary.open("wb") as file:
            for frames, _ in reader:
                scaled = scale_short_side(frames, source.short_side)
                if not count:
                    shape = scaled.shape[1:]
                    _write_header(file, (0, *shape))
                count += len(scaled)
                if limit is not None and count * scaled[0].nbytes > limit:
                    raise VideoError(f"{source.name}: decoded, it takes more than the cache limit of {limit} bytes")
                file.write(scaled.data)
            if not count:
                raise VideoError(f"{source.name} has no frames")
            file.seek(0)
            _write_header(file, (count, *shape))
        if limit is not None:
            make_room(target.parent, limit - temporary.stat().st_size)


def make_room(folder: Path, limit: int) -> None:
    """Remove the cached frames that were used longest ago until the rest take at most `limit` bytes."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob("*.npy"):
        with suppress(FileNotFoundError):  # another process makes room too
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            return
        with suppress(PermissionError):  # Windows: it is mapped
            path.unlink(missing_ok=True)
            total -= size


def sweep(folder: Path) -> None:
    """Remove what killed processes have left behind."""
    for path in folder.glob("*.tmp"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink()


def scale_short_side(frames: NDArray[np.uint8], size: int, *, multiple: int = 1) -> NDArray[np.uint8]:
    """(T, H, W, 3) scaled so that min(H, W) = size: bicubic, antialiased. multiple: of what the long side shall be."""
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    tall, wide = (max(size, multiple * round(side * scale / multiple)) for side in (height, width))
    shape = tall, wide
    if shape == (height, width):
        return frames
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    video = F.interpolate(video, size=shape, mode="bicubic", antialias=True)
    return np.ascontiguousarray(video.permute(0, 2, 3, 1).numpy())


@contextmanager
def full_disk_is_no_fault_of_the_video() -> Iterator[None]:
    """Turn a full disk into a CacheError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CacheError(
            f"the disk of the clip cache is full ({cache_folder()}): point ONEDVA_CACHE at a folder with more room, or "
            "set a cache limit"
        ) from error


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A name beside `target` to write to; renamed to it at the end, removed after an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    """The .npy header; NumPy leaves room in it for the first axis to grow, so it can be written again at the end."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
