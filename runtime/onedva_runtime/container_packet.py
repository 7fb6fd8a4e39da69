"""The body of a PKT2 record, one clip, in sections (container_layout.py), each with a CRC of its own.

    section: facts
           0      1   flags: 1 key clip, 2 has time stamps, 4 has predicted errors, 8 a tile
           1      2   frames that the clip brings
           3      4   number of the first of them in the video
           …      2   predicted error of the first latent alone, in 1/256, int16, if flagged
           …     16   tile: top, left, height, width, uint32, if flagged
           …      8   time stamp of the first frame, int64, if flagged
           …      …   of each further frame, if flagged: how much the step from the frame before differs from the step
                      before that one (0 before the first), as a varint: low seven bits first, zigzag
    section: structural part, coded by latent_coding.py
    section for each segment of the 1D latents, up to 64 of them
           0      1   how many
           1      2   predicted error after the last of them, in 1/256, int16; 0 where facts do not flag it
           3      …   places and integers, coded by latent_coding.py

A segment can be read without the others, so a file is made smaller by leaving out segments from the end.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.container_layout import MAX_CHANNELS, MAX_GROUPS, MAX_LEVELS, Header, fits, section, sections
from onedva_runtime.entropy import Decoder, Encoder, Tables
from onedva_runtime.errors import Corrupt, OverLimit, PacketError
from onedva_runtime.latent_coding import (
    Neighbourhood,
    decode_segment,
    decode_structural,
    encode_segment,
    encode_structural,
)
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet, padded_grid
from onedva_runtime.placement import PATCH_SIZE
from onedva_runtime.quantiser import Quantiser, to_integers, to_values

__all__ = ["SEGMENT", "Coded", "Facts", "Segment", "encode_packet", "join", "split"]

SEGMENT = 64  # latents
_FACTS, _TILE, _TIME, _ERROR, _SEGMENT = (struct.Struct(f) for f in ("<BHI", "<IIII", "<q", "<h", "<Bh"))
_KEY, _TIMES, _ERRORS, _PART = 1, 2, 4, 8
_ERROR_SCALE = 256


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


@dataclass(frozen=True)
class Segment:
    """Up to 64 1D latents, still coded."""

    tokens: int
    error: float
    """Predicted natural log of the MSE when this is the last segment; 0 where the packet has no predictions."""
    data: bytes


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A packet whose latents are still coded: what can be thinned and copied without decoding anything."""

    facts: Facts
    structural: bytes
    segments: tuple[Segment, ...]
    lost: str | None = None
    """What was wrong with the first segment that could not be read; None where all are there."""

    @property
    def tokens(self) -> int:
        """1D latents in all segments."""
        return sum(segment.tokens for segment in self.segments)

    def keep(self, segments: int) -> Coded:
        """The packet with its first `segments` segments."""
        return replace(self, segments=self.segments[:segments])

    def grid(self, header: Header) -> tuple[int, int, int]:
        """(Tg, Hg, Wg) of the clip."""
        height, width = self.facts.tile[2:] if self.facts.tile else (header.height, header.width)
        return padded_grid(self.facts.frames, height, width, is_key=self.facts.is_key)

    def check(self, header: Header, limits: Limits) -> None:
        """Raise OverLimit or Corrupt for what the reader does not want or what cannot be: before any work is done."""
        facts = self.facts
        if facts.tile is not None:
            top, left, height, width = facts.tile
            if top % PATCH_SIZE or left % PATCH_SIZE or top + height > header.height or left + width > header.width:
                tile, frame = f"{width}x{height} at (top, left) = {facts.tile[:2]}", f"{header.width}x{header.height}"
                raise Corrupt(
                    f"a tile of {tile} is not inside the frame of {frame}, or not at a multiple of {PATCH_SIZE}"
                )
        groups, rows, columns = self.grid(header)
        if not 1 <= facts.frames <= limits.max_frames:
            raise OverLimit(f"a packet of {facts.frames} frames; allowed: 1..{limits.max_frames} (Limits.max_frames)")
        if groups > MAX_GROUPS:
            raise Corrupt(f"a clip of {groups} groups of frames; the format holds {MAX_GROUPS}")
        if self.tokens > limits.max_latents:
            raise OverLimit(f"a packet of {self.tokens} latents; allowed: {limits.max_latents} (Limits.max_latents)")
        values = groups * rows * columns * header.structural_channels + self.tokens * header.latent_channels
        if values > limits.max_values:
            raise OverLimit(f"a packet of {values} values; allowed: {limits.max_values} (Limits.max_values)")

    def decode(self, header: Header, quantiser: Quantiser, tables: Tables) -> Packet:
        """The packet. Call `check` first. Raises Corrupt where the bytes make no sense, PacketError without levels."""
        facts, grid = self.facts, self.grid(header)
        levels = quantiser.of((facts.is_key, grid[0]))
        decoder = Decoder(tables, self.structural)
        coded_grid = (levels.shape[0], *grid[1:])
        structural = decode_structural(decoder, coded_grid, header.structural_channels, levels)
        around = Neighbourhood(structural, levels)
        parts = [decode_segment(Decoder(tables, part.data), part.tokens, around) for part in self.segments]
        places = np.concatenate([np.zeros(0, np.int64), *(part[0] for part in parts)])
        latents = np.concatenate([np.zeros((0, header.latent_channels), np.int32), *(part[1] for part in parts)])
        if np.unique(places).size != places.size:
            raise Corrupt("two 1D latents are at one place")
        skipped = (grid[0] - levels.shape[0]) * math.prod(grid[1:])
        empty = Packet(
            structural=np.zeros((*grid, header.structural_channels), np.float32),
            latents=np.zeros((len(places), header.latent_channels), np.float32),
            anchors=places + skipped,
            is_key=facts.is_key,
            frames=facts.frames,
            height=facts.tile[2] if facts.tile else header.height,
            width=facts.tile[3] if facts.tile else header.width,
            corner=facts.tile[:2] if facts.tile else (0, 0),
            frame_size=(header.height, header.width) if facts.tile else None,
            fps=float(header.fps),
            first_frame=facts.first_frame,
            timestamps=None if facts.timestamps is None else np.array(facts.timestamps, np.int64),
            time_base=header.time_base,
            predicted_error=self._errors(),
            model=header.model,
        )
        try:
            return to_values(empty, structural, latents, quantiser).validate()
        except PacketError as error:
            raise Corrupt(str(error)) from error

    def _errors(self) -> NDArray[np.float32] | None:
        """Predicted errors (K,): those that were stored, and lines between them."""
        if self.facts.first_error is None:
            return None
        ends = np.cumsum([segment.tokens for segment in self.segments])
        known = [(1, self.facts.first_error), *zip(ends, [segment.error for segment in self.segments], strict=True)]
        counts, errors = zip(*known, strict=True)
        return np.interp(np.arange(1, self.tokens + 1), counts, errors).astype(np.float32)


def encode_packet(packet: Packet, quantiser: Quantiser, tables: Tables) -> Coded:
    """Quantise and code a packet that `Packet.validate` passes; raises PacketError for what the format cannot hold."""
    groups, channels = packet.grid[0], (packet.structural.shape[-1], packet.latents.shape[-1])
    if groups > MAX_GROUPS or not fits(groups, *channels):
        most = f"{MAX_GROUPS} groups, {MAX_CHANNELS} structural channels and {MAX_LEVELS} channels in all of them"
        raise PacketError(f"packet of {groups} groups of frames of {channels} channels; the format holds {most}")
    levels = quantiser.of((packet.is_key, packet.grid[0]))
    structural, latents = to_integers(packet, quantiser)
    encoder = Encoder(tables)
    encode_structural(encoder, structural, levels)
    around = Neighbourhood(structural, levels)
    places = packet.anchors - (packet.grid[0] - levels.shape[0]) * math.prod(packet.grid[1:])
    errors = packet.predicted_error
    segments: list[Segment] = []
    for start in range(0, packet.tokens, SEGMENT):
        end = min(start + SEGMENT, packet.tokens)
        part = Encoder(tables)
        encode_segment(part, places[start:end], latents[start:end], around)
        segments.append(Segment(end - start, 0.0 if errors is None else _rounded(errors[end - 1]), part.bytes()))
    first = None
    if errors is not None:
        first = _rounded(errors[0]) if packet.tokens else 0.0
    facts = Facts(
        is_key=packet.is_key,
        frames=packet.frames,
        first_frame=packet.first_frame,
        first_error=first,
        tile=None if packet.frame_size is None else (*packet.corner, packet.height, packet.width),
        timestamps=None if packet.timestamps is None else tuple(packet.timestamps.tolist()),
    )
    return Coded(facts=facts, structural=encoder.bytes(), segments=tuple(segments))


def join(coded: Coded) -> bytes:
    """The body of a packet record."""
    segments = (
        section(_SEGMENT.pack(part.tokens, round(part.error * _ERROR_SCALE)) + part.data) for part in coded.segments
    )
    return b"".join([section(_pack_facts(coded.facts)), section(coded.structural), *segments])


def split(body: bytes, *, partial: bool = False) -> Coded:
    """Inverse of `join`; raises Corrupt. partial: a damaged segment ends the packet, `lost` says so."""
    parts = sections(body)
    facts, structural = next(parts, None), next(parts, None)
    if facts is None or structural is None:
        raise Corrupt("a packet is too short")
    segments: list[Segment] = []
    lost = None
    try:
        for part in parts:
            if len(part) < _SEGMENT.size:
                raise Corrupt("a segment is too short")
            tokens, error = _SEGMENT.unpack_from(part)
            if not 1 <= tokens <= SEGMENT:
                raise Corrupt(f"a segment of {tokens} latents; allowed: 1..{SEGMENT}")
            segments.append(Segment(tokens, error / _ERROR_SCALE, part[_SEGMENT.size :]))
    except Corrupt as error:
        if not partial:
            raise
        lost = str(error)
    return Coded(facts=_unpack_facts(facts), structural=structural, segments=tuple(segments), lost=lost)


def _rounded(error: float) -> float:
    return float(np.clip(np.rint(error * _ERROR_SCALE), -32768, 32767)) / _ERROR_SCALE


def _pack_facts(facts: Facts) -> bytes:
    flags = _KEY * facts.is_key + _TIMES * (facts.timestamps is not None)
    flags += _ERRORS * (facts.first_error is not None) + _PART * (facts.tile is not None)
    parts = [_FACTS.pack(flags, facts.frames, facts.first_frame)]
    if facts.first_error is not None:
        parts.append(_ERROR.pack(round(facts.first_error * _ERROR_SCALE)))
    if facts.tile is not None:
        parts.append(_TILE.pack(*facts.tile))
    if facts.timestamps is not None:
        times = facts.timestamps
        steps = [b - a for a, b in pairwise(times)]
        changes = [b - a for a, b in pairwise([0, *steps])]
        parts += [_TIME.pack(times[0]), b"".join(_varint(change) for change in changes)]
    return b"".join(parts)


def _unpack_facts(data: bytes) -> Facts:
    try:
        flags, frames, first_frame = _FACTS.unpack_from(data)
        at = _FACTS.size
        first_error = tile = timestamps = None
        if flags & _ERRORS:
            first_error, at = _ERROR.unpack_from(data, at)[0] / _ERROR_SCALE, at + _ERROR.size
        if flags & _PART:
            tile, at = _TILE.unpack_from(data, at), at + _TILE.size
        if flags & _TIMES:
            timestamps, at = _unpack_times(data, at, frames)
    except (struct.error, IndexError) as error:
        raise Corrupt("a packet's facts are cut off") from error
    if flags > (_KEY | _TIMES | _ERRORS | _PART) or at != len(data) or frames == 0:
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
    )


def _unpack_times(data: bytes, at: int, frames: int) -> tuple[tuple[int, ...], int]:
    times, step = [_TIME.unpack_from(data, at)[0]], 0
    at += _TIME.size
    for _ in range(frames - 1):
        number = shift = 0
        while data[at] & 128:
            number |= (data[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if shift > 63:
                raise Corrupt("a time stamp is damaged")
        number |= data[at] << shift
        at += 1
        step += (number >> 1) ^ -(number & 1)
        times.append(times[-1] + step)
    if min(times) < -(1 << 63) or max(times) >= 1 << 63:
        raise Corrupt("a time stamp is out of range")
    return tuple(times), at


def _varint(number: int) -> bytes:
    """A whole number as low seven bits first, zigzag: 0, −1, 1, −2, … are 0, 1, 2, 3, …"""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    out = bytearray()
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out)
