"""The facts of a packet: the first section of a PKT2 record's body (container_packet.py).

0      1   flags: 1 key clip, 2 has time stamps, 4 has predicted errors, 8 a tile, 16 its camera was followed
1      2   frames that the clip brings
3      4   number of the first of them in the video
…      2   predicted error of the first latent alone, in 1/256, int16, if flagged
…     16   tile: top, left, height, width, uint32, if flagged
…      8   time stamp of the first frame, int64, if flagged
…      …   of each further frame, if flagged: how much the step from the frame before differs from the step
           before that one (0 before the first), as a varint: low seven bits first, zigzag
…      …   if flagged: the bars at the top, bottom, left and right that the camera leaves alone, as varints; and of
           each frame that the model sees the six numbers of its path (warp.py), less those of the frame before (0
           before the first), as varints
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from onedva_runtime.errors import Corrupt
from onedva_runtime.packet import padded_frames
from onedva_runtime.warp import PATH_NUMBERS

__all__ = ["ERROR_SCALE", "Facts", "pack_facts", "rounded_error", "unpack_facts"]

_FACTS, _TILE, _TIME, _ERROR = (struct.Struct(f) for f in ("<BHI", "<IIII", "<q", "<h"))
_KEY, _TIMES, _ERRORS, _PART, _CAMERA = 1, 2, 4, 8, 16
_FARTHEST = 2**15 - 1  # what fits `Packet.camera`
ERROR_SCALE = 256  # of predicted errors, natural logs of the MSE, as whole numbers


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a packet says of itself beside its latents."""

    is_key: bool
    frames: int
    first_frame: int
    first_error: float | None
    """Predicted error of the first latent alone; None where the packet has no predictions."""
    tile: tuple[int, int, int, int] | None
    """(top, left, height, width) in pixels; None where the packet is the whole frame."""
    timestamps: tuple[int, ...] | None
    camera: tuple[tuple[int, ...], ...] | None = None
    """The bars and, frame by frame, the path of a `Camera`."""

    @property
    def begins_clip(self) -> bool:
        """Whether it is a clip, or the first tile of one: so clips and their frames are counted once."""
        return self.tile is None or self.tile[:2] == (0, 0)


def rounded_error(error: float) -> float:
    """A predicted error as it is stored."""
    return float(np.clip(np.rint(error * ERROR_SCALE), -32768, 32767)) / ERROR_SCALE


def pack_facts(facts: Facts) -> bytes:
    """The section."""
    flags = _KEY * facts.is_key + _TIMES * (facts.timestamps is not None)
    flags += _ERRORS * (facts.first_error is not None) + _PART * (facts.tile is not None)
    flags += _CAMERA * (facts.camera is not None)
    parts = [_FACTS.pack(flags, facts.frames, facts.first_frame)]
    if facts.first_error is not None:
        parts.append(_ERROR.pack(round(facts.first_error * ERROR_SCALE)))
    if facts.tile is not None:
        parts.append(_TILE.pack(*facts.tile))
    if facts.timestamps is not None:
        times = facts.timestamps
        steps = [b - a for a, b in pairwise(times)]
        changes = [b - a for a, b in pairwise([0, *steps])]
        parts += [_TIME.pack(times[0]), b"".join(_varint(change) for change in changes)]
    if facts.camera is not None:
        bars, *path = facts.camera
        parts += map(_varint, bars)
        for before, after in pairwise([(0,) * PATH_NUMBERS, *path]):
            parts += [_varint(b - a) for a, b in zip(before, after, strict=True)]
    return b"".join(parts)


def unpack_facts(data: bytes) -> Facts:
    """Inverse of `pack_facts`; raises Corrupt."""
    try:
        flags, frames, first_frame = _FACTS.unpack_from(data)
        at = _FACTS.size
        first_error = tile = timestamps = camera = None
        if flags & _ERRORS:
            first_error, at = _ERROR.unpack_from(data, at)[0] / ERROR_SCALE, at + _ERROR.size
        if flags & _PART:
            tile, at = _TILE.unpack_from(data, at), at + _TILE.size
        if flags & _TIMES:
            timestamps, at = _unpack_times(data, at, frames)
        if flags & _CAMERA:
            camera, at = _unpack_camera(data, at, padded_frames(frames, is_key=bool(flags & _KEY)))
    except (struct.error, IndexError) as error:
        raise Corrupt("a packet's facts are cut off") from error
    if flags > (_KEY | _TIMES | _ERRORS | _PART | _CAMERA) or at != len(data) or frames == 0:
        raise Corrupt("a packet's facts are damaged")
    if tile is not None and not (tile[2] and tile[3]):
        raise Corrupt("a tile without pixels")
    return Facts(
        is_key=bool(flags & _KEY),
        frames=frames,
        first_frame=first_frame,
        first_error=first_error,
        tile=tile,
        timestamps=timestamps,
        camera=camera,
    )


def _unpack_times(data: bytes, at: int, frames: int) -> tuple[tuple[int, ...], int]:
    times, step = [_TIME.unpack_from(data, at)[0]], 0
    at += _TIME.size
    for _ in range(frames - 1):
        change, at = _unpack_varint(data, at)
        step += change
        times.append(times[-1] + step)
    if min(times) < -(1 << 63) or max(times) >= 1 << 63:
        raise Corrupt("a time stamp is out of range")
    return tuple(times), at


def _unpack_camera(data: bytes, at: int, frames: int) -> tuple[tuple[tuple[int, ...], ...], int]:
    place: tuple[int, ...] = (0,) * PATH_NUMBERS
    bars, at = _unpack_numbers(data, at, 4)
    camera = [bars]
    for _ in range(frames):
        step, at = _unpack_numbers(data, at, PATH_NUMBERS)
        place = tuple(a + b for a, b in zip(place, step, strict=True))
        camera.append(place)
    if max(abs(number) for row in camera for number in row) > _FARTHEST:
        raise Corrupt("a camera's path is out of range")
    return tuple(camera), at


def _unpack_numbers(data: bytes, at: int, count: int) -> tuple[tuple[int, ...], int]:
    """So many varints, and where the next thing begins."""
    numbers = list[int]()
    for _ in range(count):
        number, at = _unpack_varint(data, at)
        numbers.append(number)
    return tuple(numbers), at


def _unpack_varint(data: bytes, at: int) -> tuple[int, int]:
    """Inverse of `_varint`: the number, and where the next thing begins."""
    number = shift = 0
    while data[at] & 128:
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if shift > 63:
            raise Corrupt("a packet's numbers are damaged")
    number |= data[at] << shift
    return (number >> 1) ^ -(number & 1), at + 1


def _varint(number: int) -> bytes:
    """A whole number as low seven bits first, zigzag: 0, −1, 1, −2, … are 0, 1, 2, 3, …"""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)
