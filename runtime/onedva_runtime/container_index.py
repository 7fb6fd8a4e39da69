"""What the index of an `.odva` file is good for: where to start reading, and what there was before it was damaged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from onedva_runtime.container_layout import MAX_FRAMES, RECORD, Entry, Header

__all__ = ["clips_of", "key_before"]


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


def clips_of(entries: Sequence[Entry]) -> list[Entry] | None:
    """The entries of a video's clips, the first tile of each; None unless they follow each other without a hole, and
    claim no more than their records may hold: then the index is not to be believed."""
    clips: list[Entry] = []
    for entry in entries:
        if not clips or entry.first_frame != clips[-1].first_frame:
            clips.append(entry)
    follow = all(b.first_frame == a.first_frame + a.frames for a, b in pairwise(clips))
    apart = all(b.offset - a.offset > RECORD.size for a, b in pairwise(entries))
    hold = all(1 <= clip.frames <= MAX_FRAMES for clip in clips)
    return clips if clips and follow and apart and hold else None
