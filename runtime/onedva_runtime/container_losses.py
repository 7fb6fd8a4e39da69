"""What is missing of an `.odva` file that was read past damage: how many frames, and when they were shown, as far as
the index and the packets around them tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.container_layout import Entry
from onedva_runtime.container_read import PacketReader
from onedva_runtime.errors import OverLimit
from onedva_runtime.packet import Packet

__all__ = ["Lost", "with_losses"]

Knot = tuple[int, int]
"""Number of a frame and its time stamp."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Lost:
    """Frames in a row of which nothing could be read."""

    first_frame: int
    """Number of the first of them in the video."""
    frames: int
    """How many."""
    timestamps: NDArray[np.int64] | None
    """When they were shown (frames,), in ticks of the file's time base: exact for the first frame of each clip that an
    index tells of, spread evenly between such frames; None where the file has no times."""


def with_losses(reader: PacketReader) -> Iterator[Packet | Lost]:
    """The packets of a file, and in the place of what is missing a `Lost`: before the first packet that can be read,
    between two, and, where the index tells of it, after the last. Nothing at all where no packet can be read.

    Raises as the reader does, and OverLimit for more frames that are missing in a row than its Limits allow.
    """
    following: int | None = None  # number of the frame that comes next
    last: Knot | None = None
    for packet in reader:
        if following is None:  # without an index, videos begin with frame 0
            clips = reader.clips() if reader.gaps else None
            following = clips[0].first_frame if clips else 0 if reader.gaps else packet.first_frame
        if packet.first_frame > following:  # only then the index is looked for, which may take a moment
            clips = reader.clips() if reader.gaps else None
            after = None if packet.timestamps is None else (packet.first_frame, int(packet.timestamps[0]))
            yield _lost(following, packet.first_frame, last, after, clips, reader)
        yield packet
        following = packet.first_frame + packet.frames
        last = None if packet.timestamps is None else (following - 1, int(packet.timestamps[-1]))
    clips = reader.clips() if reader.gaps else None
    if following is not None and clips and clips[-1].first_frame + clips[-1].frames > following:
        yield _lost(following, clips[-1].first_frame + clips[-1].frames, last, None, clips, reader)


def _lost(
    start: int, end: int, before: Knot | None, after: Knot | None, clips: Sequence[Entry] | None, reader: PacketReader
) -> Lost:
    header, most = reader.header, reader.limits.max_frames
    if end - start > most:
        raise OverLimit(f"{end - start} frames are missing from frame {start} on; allowed: {most} (Limits.max_frames)")
    if header.time_base is None:
        return Lost(first_frame=start, frames=end - start, timestamps=None)
    knots = [] if before is None else [before]
    knots += [(clip.first_frame, clip.time) for clip in clips or () if start <= clip.first_frame < end]
    knots += [] if after is None else [after]
    step = 1 / float(header.fps * header.time_base)
    return Lost(first_frame=start, frames=end - start, timestamps=_ticks(start, end, knots, step))


def _ticks(start: int, end: int, knots: Sequence[Knot], step: float) -> NDArray[np.int64] | None:
    """Times of the frames from `start` to before `end`: on straight lines between the knots, `step` ticks apart outside
    of them, or closer where that would begin before 0."""
    if not knots:
        return None
    numbers = np.arange(start, end)
    (first, first_tick), (last, last_tick) = knots[0], knots[-1]
    ticks = np.interp(numbers, [number for number, _ in knots], [tick for _, tick in knots])
    earlier = min(step, first_tick / (first - start)) if first > start and first_tick >= 0 else step
    ticks = np.where(numbers < first, first_tick - (first - numbers) * earlier, ticks)
    ticks = np.where(numbers > last, last_tick + (numbers - last) * step, ticks)
    return np.rint(ticks).astype(np.int64)
