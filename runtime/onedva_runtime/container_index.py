"""What the index of an `.odva` file is good for: where to start reading."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from onedva_runtime.container_layout import Entry, Header

__all__ = ["key_before"]


def key_before(
    entries: Sequence[Entry], header: Header, *, frame: int | None = None, seconds: float | None = None
) -> Entry | None:
    """The last key clip that starts at or before a frame, or a time since the first key clip; the first one where all
    start later. Of a clip in tiles its first tile. None where there is no key clip."""
    keys = [entry for entry in entries if entry.is_key]
    if not keys:
        return None
    if seconds is not None and header.time_base is not None:
        wanted = keys[0].time + int(seconds / header.time_base)
        place = bisect_right([entry.time for entry in keys], wanted)
    else:
        wanted = frame if frame is not None else int((seconds or 0) * header.fps)
        place = bisect_right([entry.first_frame for entry in keys], wanted)
    place = max(1, place)
    while place > 1 and keys[place - 2].first_frame == keys[place - 1].first_frame:
        place -= 1
    return keys[place - 1]
