"""Smaller streams without encoding again: segments of 1D latents are left out from the end of clips.

    thin_file("in.odva", "out.odva", max_kbps=200)           # what is kept is copied byte for byte
    packets = thin_packets(packets, tokens=64)               # the same on packets in memory

A budget of bits is shared so that the last bit spent on any clip earns the same: each clip's segments come in falling
order of predicted squared error saved per byte (the packets' `predicted_error`, over all its pixels), a segment that
saves more than the one before it only together with that one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate

from onedva_runtime import container_layout as layout
from onedva_runtime.container import PacketWriter, header_of, open_packets
from onedva_runtime.container_layout import Header
from onedva_runtime.container_packet import SEGMENT, Coded, encode_packet, join
from onedva_runtime.entropy_tables import TABLES
from onedva_runtime.errors import PacketError
from onedva_runtime.files import AtomicFile
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet
from onedva_runtime.quantiser import Quantiser

__all__ = ["Thinned", "thin_file", "thin_packets"]

_SECTION = 8  # bytes that a section has around its content


@dataclass(frozen=True)
class Clip:
    """What sharing bits must know of one packet."""

    base: int
    """Bytes of its record without segments."""
    sizes: tuple[int, ...]
    """Bytes of each segment."""
    tokens: tuple[int, ...]
    """Latents of each segment."""
    errors: tuple[float, ...] | None
    """Predicted squared error with 0, 1, … segments, summed over the pixels; None where none is predicted."""


@dataclass(frozen=True)
class Thinned:
    """What `thin_file` did."""

    clips: int
    """Each may be in several packets, its tiles."""
    bytes_before: int
    bytes: int
    tokens_before: list[int]
    """1D latents of each packet."""
    tokens: list[int]


def thin_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_kbps: float | None = None,
    tokens: int | None = None,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> Thinned:
    """Write a smaller copy of an `.odva` file, whole or not at all.

    Give one of: max_kbps, the mean rate of the whole file in 1000 bits per second; tokens, the most 1D latents per clip
    (whole segments of 64 only are kept). Raises ValueError unless exactly one is given and at least 0; PacketError as
    reading and writing do, where even no 1D latents are too many bits, and for max_kbps where the file has no predicted
    errors.
    """
    _check(max_kbps, tokens)
    name = os.fspath(source)
    with open_packets(source, limits=limits) as reader:
        size = os.stat(source).st_size  # now: it may be the target, too
        clips: list[Clip] = []
        entries: list[layout.Entry] = []
        frames = count = 0
        for coded in reader.coded():
            clips.append(clip_of(coded, reader.header))
            entries.append(coded.entry(reader.offset))
            if coded.facts.begins_clip:
                frames, count = frames + coded.facts.frames, count + 1
        header, quantiser, tables = reader.header, reader.quantiser, reader.tables
    setup = layout.record(layout.SETUP, layout.pack_setup(header, tables, quantiser.levels.items()))
    index = len(layout.pack_index(entries)) + 2 * len(clips) + 100  # ours may pack worse
    around = (1 + len(quantiser.levels)) * len(setup) + index
    while True:
        if tokens is not None:
            kept = [_within(clip, tokens) for clip in clips]
        else:
            kept = share(clips, _budget(max_kbps or 0, frames, header.fps, clips, around, source=name), source=name)
        with (
            AtomicFile(target, overwrite=overwrite, error=PacketError) as output,
            open_packets(source, limits=limits) as reader,
        ):
            writer = PacketWriter(output.file, quantiser=quantiser, tables=tables)
            for coded, segments in zip(reader.coded(), kept, strict=True):
                writer.write_coded(coded.keep(segments), header)
            written = writer.finish()
            over = 0 if max_kbps is None else written - int(125 * max_kbps * frames / float(header.fps))
            if over <= 0:
                output.commit()
                break
        around += over
    before = [sum(clip.tokens) for clip in clips]
    after = [sum(clip.tokens[:segments]) for clip, segments in zip(clips, kept, strict=True)]
    return Thinned(clips=count, bytes_before=size, bytes=written, tokens_before=before, tokens=after)


def thin_packets(
    packets: Iterable[Packet], *, quantiser: Quantiser, max_kbps: float | None = None, tokens: int | None = None
) -> list[Packet]:
    """Packets of one video, cut to what `thin_file` would keep of them.

    quantiser: the one that they are to be saved with, for what they take. max_kbps counts the packets alone, without
    what a file has around them. Else as `thin_file`.
    """
    _check(max_kbps, tokens)
    listed = list(packets)
    if tokens is not None or not listed:
        return [packet.thin(_whole_segments(packet.tokens, tokens or 0)) for packet in listed]
    header = header_of(listed[0], quantiser)
    clips = [clip_of(encode_packet(packet.validate(), quantiser, TABLES), header) for packet in listed]
    frames = sum(packet.frames for packet in listed if packet.corner == (0, 0))
    kept = share(clips, _budget(max_kbps or 0, frames, header.fps, clips, 0, source="packets"), source="packets")
    return [packet.thin(sum(clip.tokens[:count])) for packet, clip, count in zip(listed, clips, kept, strict=True)]


def clip_of(coded: Coded, header: Header) -> Clip:
    """What sharing bits must know of a packet."""
    facts = coded.facts
    errors = None
    if facts.first_error is not None:
        height, width = facts.tile[2:] if facts.tile else (header.height, header.width)
        logs = [facts.first_error, *(segment.error for segment in coded.segments)]
        errors = tuple(facts.frames * height * width * math.exp(log) for log in logs)
    return Clip(
        base=layout.RECORD.size + len(join(coded.keep(0))),
        sizes=tuple(_SECTION + 3 + len(segment.data) for segment in coded.segments),
        tokens=tuple(segment.tokens for segment in coded.segments),
        errors=errors,
    )


def share(clips: Sequence[Clip], budget: int, *, source: str) -> list[int]:
    """How many segments each clip keeps so that all packets take at most `budget` bytes, or none where that cannot be.

    Raises PacketError where errors are not predicted.
    """
    left = budget - sum(clip.base for clip in clips)
    offers: list[tuple[float, int, int, int]] = []  # saved per byte, clip, segments after it, bytes
    for number, clip in enumerate(clips):
        if clip.errors is None:
            raise PacketError(f"{source}: it has no predicted errors to share bits by; thin it to a number of tokens")
        offers += [(gain, number, count, size) for gain, count, size in _hull(clip.sizes, clip.errors)]
    kept, closed = [0] * len(clips), [False] * len(clips)
    for _, number, count, size in sorted(offers, key=lambda offer: (-offer[0], offer[1], offer[2])):
        if closed[number] or size > left:
            closed[number] = True  # a prefix only: what comes after a segment that is left out is left out too
            continue
        left -= size
        kept[number] = count
    return kept


def _hull(sizes: Sequence[int], errors: Sequence[float]) -> list[tuple[float, int, int]]:
    """Steps (error saved per byte, segments after it, bytes) in which a clip's segments are worth taking, each worth
    less per byte than the one before. A prediction that rises counts as one that stays: the next may make up for it."""
    steps: list[tuple[float, int, int]] = []
    lowest = list(accumulate(errors, min))
    for count, size in enumerate(sizes, start=1):
        saved = lowest[count - 1] - lowest[count]
        while steps and saved * steps[-1][2] >= steps[-1][0] * steps[-1][2] * size:  # as good as the step before it
            gain, _, before = steps.pop()
            saved, size = saved + gain * before, size + before
        steps.append((saved / size, count, size))
    return steps


def _budget(max_kbps: float, frames: int, fps: Fraction, clips: Sequence[Clip], around: int, *, source: str) -> int:
    """Bytes that the records of packets may take, beside `around` others; PacketError where they take more without any
    segments."""
    per_second = float(fps) / frames
    budget, least = int(125 * max_kbps / per_second) - around, sum(clip.base for clip in clips)
    if least > budget:
        rate = (least + around) * per_second / 125
        raise PacketError(
            f"{source}: without any 1D latents it takes {rate:.1f} kbit/s, allowed are {max_kbps:g}: allow more, or "
            "encode with a larger quantiser step"
        )
    return budget


def _within(clip: Clip, tokens: int) -> int:
    """How many segments hold at most `tokens` latents."""
    total = count = 0
    while count < len(clip.tokens) and total + clip.tokens[count] <= tokens:
        total, count = total + clip.tokens[count], count + 1
    return count


def _whole_segments(available: int, tokens: int) -> int:
    return available if tokens >= available else tokens // SEGMENT * SEGMENT


def _check(max_kbps: float | None, tokens: int | None) -> None:
    if (max_kbps is None) == (tokens is None):
        raise ValueError(f"thin to a rate or to a number of tokens, one of them; got {max_kbps} and {tokens}")
    value = max_kbps if max_kbps is not None else tokens
    if value is None or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"thin to at least 0, got {value}")
