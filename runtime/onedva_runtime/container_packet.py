"""The body of a PKT2 record, one clip, in sections (container_layout.py), each with a CRC of its own.

    section: facts, of container_facts.py
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

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.container_facts import ERROR_SCALE, Facts, pack_facts, rounded_error, unpack_facts
from onedva_runtime.container_layout import (
    MAX_CHANNELS,
    MAX_GROUPS,
    MAX_LEVELS,
    Entry,
    Header,
    fits,
    section,
    sections,
)
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
from onedva_runtime.warp import Camera

__all__ = ["SEGMENT", "Coded", "Facts", "Segment", "encode_packet", "join", "split", "store_packet"]

SEGMENT = 64  # latents
_SEGMENT = struct.Struct("<Bh")


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

    def entry(self, offset: int) -> Entry:
        """Its line in the index; offset: of its record in the file."""
        facts = self.facts
        time = facts.timestamps[0] if facts.timestamps else 0
        return Entry(offset, facts.first_frame, facts.frames, int(facts.is_key), self.tokens, time)

    def ends_clip(self, header: Header) -> bool:
        """Whether no tile of its clip can follow: it is the whole frame, or reaches the frame's last pixel."""
        tile = self.facts.tile
        return tile is None or (tile[0] + tile[2], tile[1] + tile[3]) == (header.height, header.width)

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
            camera=None if facts.camera is None else _camera_of(facts.camera),
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
    return _encode(packet, *_integers(packet, quantiser), quantiser, tables)


def store_packet(packet: Packet, quantiser: Quantiser, tables: Tables) -> tuple[Coded, Packet]:
    """As `encode_packet`, and the packet as a reader finds it there, `Quantiser.apply`."""
    integers = _integers(packet, quantiser)
    return _encode(packet, *integers, quantiser, tables), to_values(packet, *integers, quantiser)


def _integers(packet: Packet, quantiser: Quantiser) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    groups, channels = packet.grid[0], (packet.structural.shape[-1], packet.latents.shape[-1])
    if groups > MAX_GROUPS or not fits(groups, *channels):
        most = f"{MAX_GROUPS} groups, {MAX_CHANNELS} structural channels and {MAX_LEVELS} channels in all of them"
        raise PacketError(f"packet of {groups} groups of frames of {channels} channels; the format holds {most}")
    return to_integers(packet, quantiser)


def _encode(
    packet: Packet, structural: NDArray[np.int32], latents: NDArray[np.int32], quantiser: Quantiser, tables: Tables
) -> Coded:
    levels = quantiser.of((packet.is_key, packet.grid[0]))
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
        segments.append(Segment(end - start, 0.0 if errors is None else rounded_error(errors[end - 1]), part.bytes()))
    first = None
    if errors is not None:
        first = rounded_error(errors[0]) if packet.tokens else 0.0
    facts = Facts(
        is_key=packet.is_key,
        frames=packet.frames,
        first_frame=packet.first_frame,
        first_error=first,
        tile=None if packet.frame_size is None else (*packet.corner, packet.height, packet.width),
        timestamps=None if packet.timestamps is None else tuple(packet.timestamps.tolist()),
        camera=None if packet.camera is None else (packet.camera.bars, *map(tuple, packet.camera.path.tolist())),
    )
    return Coded(facts=facts, structural=encoder.bytes(), segments=tuple(segments))


def _camera_of(told: tuple[tuple[int, ...], ...]) -> Camera:
    """A camera as `Facts` tell it."""
    (top, bottom, left, right), *path = told
    return Camera(np.array(path, np.int16), (top, bottom, left, right))


def join(coded: Coded) -> bytes:
    """The body of a packet record."""
    segments = (
        section(_SEGMENT.pack(part.tokens, round(part.error * ERROR_SCALE)) + part.data) for part in coded.segments
    )
    return b"".join([section(pack_facts(coded.facts)), section(coded.structural), *segments])


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
            segments.append(Segment(tokens, error / ERROR_SCALE, part[_SEGMENT.size :]))
    except Corrupt as error:
        if not partial:
            raise
        lost = str(error)
    return Coded(facts=unpack_facts(facts), structural=structural, segments=tuple(segments), lost=lost)
