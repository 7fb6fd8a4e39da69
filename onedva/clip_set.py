"""All clips of a split: decoded at once in worker processes, or, where the cache has a limit, when one is first used.

What cannot be read is left out, counted and reported, never fatal.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from onedva.cache import Clip, cache_folder, cached_path, facts, load_clip, open_cached, sweep
from onedva.sources import SHORT_SIDE, Skipped, Source, Split, find_sources
from onedva.workers import each
from onedva_runtime.errors import VideoError

__all__ = ["ClipSet", "centre_clip", "load_clips"]

logger = logging.getLogger("onedva")
MOST_LINES = 20  # of videos that were left out, in the log; `ClipSet.skipped` has them all
REPORT_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class Entry:
    """One usable video: where it comes from, where its frames are cached, and what is known of it."""

    source: Source
    target: Path
    frames: int
    fps: float


class ClipSet(Sequence[Clip]):
    """Clips by number, mapped when asked for and decoded again where the cache has lost them.

    It holds names, not frames, so that it can be sent to worker processes and memory does not grow with the set.
    """

    def __init__(self, entries: Sequence[Entry], *, skipped: Sequence[Skipped] = (), limit: int | None = None) -> None:
        self.entries, self.limit = tuple(entries), limit
        self.skipped = tuple(skipped)
        """What was left out, and why."""
        self.frame_counts: NDArray[np.int64] = np.array([entry.frames for entry in entries], dtype=np.int64)
        """Frames of each clip, without opening it; where the cache has a limit, as the videos announce them."""

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> ClipSet: ...
    def __getitem__(self, index: int | slice) -> Clip | ClipSet:
        """A clip, or a part of the set. Raises VideoError or OSError where its video has become unreadable."""
        if isinstance(index, slice):
            return ClipSet(self.entries[index], limit=self.limit)
        entry = self.entries[index]
        frames = open_cached(entry.target)
        if frames is None:
            return load_clip(entry.source, limit=self.limit)
        return Clip(entry.source.name, frames, entry.fps)


def load_clips(
    where: str | Path,
    *,
    split: Split,
    minimum_frames: int = 17,
    workers: int = 0,
    cache_limit: int | None = None,
    short_side: int = SHORT_SIDE,
) -> ClipSet:
    """The clips of a split; unreadable and too short videos are reported and left out (`ClipSet.skipped`).

    where: a folder of videos or shards, a shard, or a brace pattern of shards; see `sources.find_sources`. workers:
    processes that decode, 0 for this one. cache_limit: bytes for the decoded frames of all sets in `ONEDVA_CACHE`; then
    nothing is decoded before it is used, and what was used longest ago makes room. Without, all is decoded now.
    short_side: pixels that frames are scaled to. Raises FileNotFoundError when nothing usable is there; CacheError when
    the disk is full.
    """
    sweep(cache_folder())
    sources, skipped = find_sources(where, split=split, workers=workers)
    sources = [replace(source, short_side=short_side) for source in sources]
    known = [_known(source, lazily=cache_limit is not None) for source in sources]
    missing = [source for source, entry in zip(sources, known, strict=True) if entry is None]
    prepared = iter(_prepare_all(missing, workers=workers, cache_limit=cache_limit))
    entries: list[Entry] = []
    for entry in known:
        found = next(prepared) if entry is None else entry
        if isinstance(found, Entry) and found.frames < minimum_frames:
            found = Skipped(found.source.name, f"{found.frames} frames, {minimum_frames} needed")
        if isinstance(found, Entry):
            entries.append(found)
        else:
            skipped.append(found)
    _report(skipped, used=len(entries), split=split)
    if not entries:
        raise FileNotFoundError(f"no usable video of split {split!r} in {where}")
    return ClipSet(entries, skipped=skipped, limit=cache_limit)


def centre_clip(clip: Clip, *, frames: int = 17, size: int = 256) -> NDArray[np.uint8]:
    """The evaluation view: `frames` frames from the middle, centre crop of size × size: (frames, size, size, 3)."""
    total, height, width, _ = clip.frames.shape
    start = (total - frames) // 2
    top, left = (height - size) // 2, (width - size) // 2
    return np.array(clip.frames[start : start + frames, top : top + size, left : left + size])


def _known(source: Source, *, lazily: bool) -> Entry | None:
    """The entry of a video that need not be opened for it."""
    try:
        target = cached_path(source)
        if lazily:
            if source.fps is None or source.frames is None:
                return None
            return Entry(source, target, source.frames, source.fps)
        if source.fps is None and not target.with_suffix(".json").exists():
            return None
        frames = open_cached(target)
        return None if frames is None else Entry(source, target, len(frames), facts(source, target).fps)
    except (VideoError, OSError):
        return None  # `_prepare` meets it again, and says what it is


def _prepare_all(sources: Sequence[Source], *, workers: int, cache_limit: int | None) -> Iterable[Entry | Skipped]:
    prepare = partial(_prepare, cache_limit=cache_limit)
    reported = time.monotonic()
    for count, found in enumerate(each(prepare, sources, workers=workers, crashed=_crashed), start=1):
        if time.monotonic() - reported > REPORT_EVERY:
            reported = time.monotonic()
            logger.info("read %d of %d videos", count, len(sources))
        yield found


def _prepare(source: Source, *, cache_limit: int | None) -> Entry | Skipped:
    """Decode a video, or with a limit only ask it for its length; runs in workers."""
    try:
        target = cached_path(source)
        if cache_limit is not None:
            # What a video announces, though it may be wrong: what was decoded earlier must not change what is drawn.
            known = facts(source, target)
            if known.frames is not None:
                return Entry(source, target, known.frames, known.fps)
        clip = load_clip(source, limit=cache_limit)
        return Entry(source, target, len(clip.frames), clip.fps)
    except (VideoError, OSError) as error:
        return Skipped(source.name, _reason(source, error))


def _crashed(source: Source) -> Skipped:
    return Skipped(source.name, "decoding it ended the process that tried")


def _reason(source: Source, error: Exception) -> str:
    """What went wrong, without the name that the report gives anyway."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.removeprefix(f"{source.path}: ").removeprefix(f"{source.name}: ")


def _report(skipped: Sequence[Skipped], *, used: int, split: Split) -> None:
    for one in skipped[:MOST_LINES]:
        logger.warning("skipped %s", one)
    if len(skipped) > MOST_LINES:
        kinds = Counter(one.reason.split("(")[0].strip() for one in skipped[MOST_LINES:])
        rest = "; ".join(f"{count}× {reason}" for reason, count in kinds.most_common(5))
        logger.warning("skipped %d more: %s", len(skipped) - MOST_LINES, rest)
    if skipped:
        logger.warning("%s: %d videos used, %d skipped", split, used, len(skipped))
