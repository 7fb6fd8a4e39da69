"""Large frames as overlapping tiles: how a frame is divided, and how decoded tiles become a frame again.

Each tile is a packet of its own. All tiles share the one noise of the video (a function of frame, y and x) and are
mixed in pixels, by linear ramps over their overlaps. Tiles are made small enough for full-length clips rather than
clips short enough for large tiles: the transform along time is worth more than a border now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt

from onedva_runtime.clipper import Clip
from onedva_runtime.errors import PacketError
from onedva_runtime.packet import Packet, padded_grid
from onedva_runtime.placement import PATCH_SIZE

__all__ = ["Tile", "blend", "check_tiles", "plan_tiles", "same_clip", "split"]

Uint8 = npt.NDArray[np.uint8]
OVERLAP = 2  # grid positions that neighbours share at least, 32 pixels: what a position sees of the 8 around it, twice
LEAST_SIDE = 2 * OVERLAP  # below, a tile would consist of overlaps only


@dataclass(frozen=True)
class Tile:
    """A box of pixels of a frame; top and left are multiples of 16."""

    top: int
    left: int
    height: int
    width: int


def plan_tiles(height: int, width: int, *, positions: int) -> list[Tile]:
    """Tiles of a frame in raster order: one, the frame itself, where that is at most `positions` positions of 16×16.

    Else rows and columns of tiles of nearly one size, with the fewest positions in all, the squarest where that ties.
    Raises ValueError where `positions` is too few for any tile.
    """
    _, rows, columns = padded_grid(1, height, width)
    if rows * columns <= positions:
        return [Tile(0, 0, height, width)]
    choices: list[tuple[int, int, int, int]] = []  # positions in all, perimeter, rows and columns of a tile
    for down in range(1, rows + 1):
        tall = _side(rows, down)
        if (tall < LEAST_SIDE and down > 1) or positions // tall < min(LEAST_SIDE, columns):
            continue
        across = next(n for n in range(1, columns + 1) if _side(columns, n) <= positions // tall)
        wide = _side(columns, across)
        if wide >= min(LEAST_SIDE, columns):
            choices.append((down * across * tall * wide, tall + wide, tall, wide))
    if not choices:
        least = LEAST_SIDE**2
        raise ValueError(
            f"frames of {width}x{height} are {rows * columns} grid positions, more than the {positions} that a clip of "
            f"this model may have per group, and tiles need {least} of them: scale the video down, or use shorter clips"
        )
    _, _, tall, wide = min(choices)
    return [
        Tile(PATCH_SIZE * y, PATCH_SIZE * x, min(PATCH_SIZE * tall, height - 16 * y), min(16 * wide, width - 16 * x))
        for y in _starts(rows, tall)
        for x in _starts(columns, wide)
    ]


def _side(length: int, count: int) -> int:
    """Positions of each of `count` tiles that cover `length` positions and overlap."""
    return -(-(length + (count - 1) * OVERLAP) // count)


def _starts(length: int, side: int) -> list[int]:
    """First positions of the fewest tiles of `side` that cover `length` with overlaps, evenly spread."""
    count = 1 if side >= length else -(-(length - OVERLAP) // (side - OVERLAP))
    return [round(index * (length - side) / max(1, count - 1)) for index in range(count)]


def split(clip: Clip, tiles: Sequence[Tile]) -> list[Clip]:
    """The tiles of a whole clip as clips; the clip itself where there is one tile."""
    if len(tiles) == 1:
        return [clip]
    height, width = clip.frames.shape[1:3]
    parts: list[Clip] = []
    for tile in tiles:
        box = np.s_[..., tile.top : tile.top + tile.height, tile.left : tile.left + tile.width, :]
        context = None if clip.context_frame is None else clip.context_frame[box]
        corner = tile.top, tile.left
        parts.append(
            replace(clip, frames=clip.frames[box], context_frame=context, corner=corner, frame_size=(height, width))
        )
    return parts


def same_clip(a: Packet, b: Packet) -> bool:
    """Whether two packets are tiles of one clip, b anywhere after a in raster order."""
    shared = (a.first_frame, a.frames, a.is_key, a.frame_size) == (b.first_frame, b.frames, b.is_key, b.frame_size)
    return shared and a.frame_size is not None and a.corner < b.corner


def check_tiles(packets: Sequence[Packet]) -> bool:
    """Whether the packets of one clip cover its frame.

    Raises PacketError unless they are one whole frame, or tiles in raster order in rows of one top and height.
    """
    height, width = packets[0].whole_size
    bottom, complete = 0, True
    for top, group in groupby(packets, key=lambda packet: packet.corner[0]):
        row = list(group)
        if len({packet.height for packet in row}) != 1:
            raise PacketError(f"tiles at row {top} have several heights: {sorted({packet.height for packet in row})}")
        right = 0
        for packet in row:
            complete &= packet.corner[1] <= right
            right = max(right, packet.corner[1] + packet.width)
        complete &= right == width and top <= bottom
        bottom = max(bottom, top + row[0].height)
    for before, after in pairwise(packets):
        if not same_clip(before, after):
            raise PacketError(
                f"packets at {before.corner} and {after.corner} are not tiles of one clip in raster order"
            )
    return complete and bottom == height


def blend(packets: Sequence[Packet], decoded: Sequence[Uint8], canvas: Uint8) -> None:
    """Write the decoded tiles of one clip (T, h, w, 3) into `canvas` (T, H, W, 3).

    packets: as `check_tiles` wants them. Where no tile lies, the canvas stays as it was.
    """
    frame_bottom = 0
    pairs = list(zip(packets, decoded, strict=True))
    for top, group in groupby(pairs, key=lambda pair: pair[0].corner[0]):
        row = list(group)
        bottom = top + row[0][0].height
        shared = max(0, min(frame_bottom, bottom) - top)
        above = canvas[:, top : top + shared].copy()
        strip, right = canvas[:, top:bottom], 0
        for packet, frames in row:
            left = packet.corner[1]
            overlap = min(max(0, right - left), packet.width)
            strip[:, :, left : left + overlap] = _mix(
                strip[:, :, left : left + overlap], frames[:, :, :overlap], _ramp(overlap)[:, None]
            )
            strip[:, :, left + overlap : left + packet.width] = frames[:, :, overlap:]
            right = max(right, left + packet.width)
        strip[:, :shared] = _mix(above, strip[:, :shared], _ramp(shared)[:, None, None])
        frame_bottom = max(frame_bottom, bottom)


def _ramp(count: int) -> npt.NDArray[np.float32]:
    """Share of the later tile at each of the `count` pixels of an overlap."""
    return (np.arange(count, dtype=np.float32) + np.float32(0.5)) / np.float32(max(count, 1))


def _mix(a: Uint8, b: Uint8, share: npt.NDArray[np.float32]) -> Uint8:
    mixed = a.astype(np.float32)
    mixed += share * (b.astype(np.float32) - mixed)
    return np.rint(mixed).astype(np.uint8)
