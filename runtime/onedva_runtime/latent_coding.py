"""The integers of a clip ↔ bytes: which order they are coded in, and what is expected of each.

Latents of a column (all groups of frames at one y, x) are strong together or weak together, so what has been coded of a
column and around it says how large the next ones will be. All of it is integer arithmetic, the same on every machine.

- The structural part: channels of all groups, strongest first (highest level), in passes of eight. Pass p of row y is
  coded together with pass p − 1 of row y + 1, and so on: what the pass before left in the same row and what the same
  pass left in the row above is then known, and a clip takes (passes + rows) steps of whole rows.
- A segment of 1D latents: its channels in passes of eight, from what the structural part left in the latent's column
  and around it, and from the passes before. Segments do not need each other.

One function per part serves both sides: `code` of an encoder returns the integers it is given, of a decoder the next.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.entropy import UNIT, Decoder, Encoder, magnitudes
from onedva_runtime.errors import Corrupt
from onedva_runtime.quantiser import Levels

__all__ = ["Neighbourhood", "decode_segment", "decode_structural", "encode_segment", "encode_structural"]

PASS = 8  # channels
WINDOW = 4  # passes before, that an expectation looks at
GROUP = 16  # latents of the canonical order that are sorted by position

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]


class Coder(Protocol):
    def code(self, expected: Int64, integers: Int32 | None, *, signed: bool = True) -> Int32:
        """Code integers (n,) of the `expected` magnitudes; a decoder gets None."""
        ...


def encode_structural(encoder: Encoder, integers: Int32, levels: Levels) -> None:
    """Code the integers (n, Hg, Wg, Zs) of the n coded groups; levels (n, Zs + Z)."""
    groups, height, width, channels = integers.shape
    flat = integers.transpose(0, 3, 1, 2).reshape(groups * channels, height, width)
    order = _order(levels[:, :channels])
    _structural(encoder, flat[order], magnitudes(levels[:, :channels].reshape(-1)[order]), known=True)


def decode_structural(decoder: Decoder, grid: tuple[int, int, int], channels: int, levels: Levels) -> Int32:
    """Inverse of `encode_structural`: grid (n, Hg, Wg), Zs → integers (n, Hg, Wg, Zs). Raises Corrupt."""
    groups, height, width = grid
    decoder.expect(groups * height * width * channels)
    order = _order(levels[:, :channels])
    coded = np.zeros((groups * channels, height, width), np.int32)
    _structural(decoder, coded, magnitudes(levels[:, :channels].reshape(-1)[order]), known=False)
    decoder.finish()
    flat = np.empty_like(coded)
    flat[order] = coded
    return np.ascontiguousarray(flat.reshape(groups, channels, height, width).transpose(0, 2, 3, 1))


def _order(levels: Levels) -> NDArray[np.intp]:
    """Channels of all groups (n·Zs,), those with the highest level first, ties by group and channel."""
    return np.argsort(-levels.reshape(-1).astype(np.int32), kind="stable")


def _structural(coder: Coder, integers: Int32, expected: Int64, *, known: bool) -> None:
    """Code integers (C, Hg, Wg), channels in order, or fill them; expected (C,): their magnitudes without context."""
    count, height, width = integers.shape
    passes = -(-count // PASS)
    magnitude = np.zeros((passes * PASS, height + 1, width + 2), np.int64)  # a row above, a column on each side
    base = np.zeros(passes * PASS, np.int64)
    base[:count] = expected
    sums = np.zeros((passes + WINDOW, height, width), np.int64)  # of magnitudes, by pass; WINDOW empty passes first
    base_sums = np.concatenate([np.zeros(WINDOW, np.int64), base.reshape(passes, PASS).sum(1)])
    for step in range(height + passes - 1):
        rows = np.arange(max(0, step - passes + 1), min(height, step + 1))
        turn = step - rows  # the pass of each row
        channel = PASS * turn[:, None] + np.arange(PASS)  # (rows, PASS)
        seen = np.stack([sums[turn + back, rows] for back in range(WINDOW)]).sum(0)  # (rows, Wg)
        usual = np.stack([base_sums[turn + back] for back in range(WINDOW)]).sum(0)  # (rows,)
        above = magnitude[channel, rows[:, None]]  # (rows, PASS, Wg + 2): row y of `magnitude` is the one above y
        above = 2 * above[..., 1:-1] + above[..., :-2] + above[..., 2:]  # four times the mean
        own = base[channel]  # (rows, PASS)
        from_column = own[..., None] * UNIT * seen[:, None] // np.maximum(usual, 1)[:, None, None]
        from_above = above * (UNIT // 4)
        top, first = (rows == 0)[:, None, None], (turn == 0)[:, None, None]
        guess = np.where(
            first,
            np.where(top, own[..., None], (own[..., None] + 4 * from_above) // 5),
            np.where(top, (own[..., None] + 15 * from_column) // 16, (19 * from_column + 13 * from_above) // 32),
        )
        real = channel < count
        places = channel[real][:, None], np.broadcast_to(rows[:, None], channel.shape)[real][:, None], np.arange(width)
        values = integers[places] if known else None
        coded = coder.code(guess[real].reshape(-1), None if values is None else values.reshape(-1))
        integers[places] = coded.reshape(-1, width)
        absolute = np.zeros((*channel.shape, width), np.int64)
        absolute[real] = np.abs(integers[places])
        magnitude[channel, rows[:, None] + 1, 1:-1] = absolute
        magnitude[channel, rows[:, None] + 1, 0] = absolute[..., 0]
        magnitude[channel, rows[:, None] + 1, -1] = absolute[..., -1]
        sums[turn + WINDOW, rows] = absolute.sum(1)


class Neighbourhood:
    """How strong the columns of a clip are, from its structural part: what 1D latents are expected by."""

    def __init__(self, structural: Int32, levels: Levels) -> None:
        """structural (n, Hg, Wg, Zs) integers, levels (n, Zs + Z)."""
        groups, height, width, channels = structural.shape
        weak = _order(levels[:, :channels])[-max(1, 2 * groups * channels // 5) :]  # the weaker channels say most
        flat = np.abs(structural).transpose(0, 3, 1, 2).reshape(groups * channels, height, width)
        usual = int(magnitudes(levels[:, :channels].reshape(-1)[weak]).sum())
        self.own = UNIT * UNIT * flat[weak].sum(0, dtype=np.int64) // usual  # (Hg, Wg), 1/64 of the usual
        wide = np.pad(self.own, 1, mode="edge")
        self.around = (wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:]) // 4
        self.shape = (groups, height, width)
        self.magnitudes = magnitudes(levels[:, channels:])  # (n, Z)


def encode_segment(encoder: Encoder, places: Int64, integers: Int32, around: Neighbourhood) -> None:
    """Code places (K,): which layer of which column, counted over the n coded groups; and integers (K, Z)."""
    canonical = _is_canonical(places)
    encoder.code(np.array([UNIT // 4]), np.array([int(canonical)], np.int32), signed=False)
    _places(encoder, places, len(places), around.shape, canonical=canonical)
    _segment(encoder, places, integers, around, known=True)


def decode_segment(decoder: Decoder, count: int, around: Neighbourhood) -> tuple[Int64, Int32]:
    """Inverse of `encode_segment` for `count` latents: places (K,), integers (K, Z). Raises Corrupt."""
    channels = around.magnitudes.shape[1]
    decoder.expect(count * channels)
    canonical = bool(decoder.code(np.array([UNIT // 4]), signed=False)[0])
    places = _places(decoder, None, count, around.shape, canonical=canonical)
    integers = np.zeros((count, channels), np.int32)
    _segment(decoder, places, integers, around, known=False)
    decoder.finish()
    return places, integers


def _segment(coder: Coder, places: Int64, integers: Int32, around: Neighbourhood, *, known: bool) -> None:
    """Code integers (K, Z) of latents at `places` (K,), or fill them."""
    _, height, width = around.shape
    channels = integers.shape[1]
    layer, column = np.divmod(places, height * width)
    base = around.magnitudes[layer]  # (K, Z)
    own, near = (part.reshape(-1)[column][:, None] for part in (around.own, around.around))
    for start in range(0, channels, PASS):
        window = slice(max(0, start - WINDOW * PASS), start)
        now = base[:, start : start + PASS]
        if start == 0:
            guess = now * (11 * own + 5 * near) // (16 * UNIT)
        else:
            seen = np.abs(integers[:, window]).sum(1, dtype=np.int64)[:, None]
            so_far = UNIT * UNIT * seen // base[:, window].sum(1)[:, None]
            guess = now * (4 * own + near + 11 * so_far) // (16 * UNIT)
        values = integers[:, start : start + PASS].reshape(-1) if known else None
        coded = coder.code(guess.reshape(-1), values)
        integers[:, start : start + PASS] = coded.reshape(now.shape)


def _is_canonical(places: Int64) -> bool:
    """Whether every group of GROUP is sorted, as `placement.place` leaves them."""
    rises = np.diff(places) > 0
    rises[GROUP - 1 :: GROUP] = True
    return bool(rises.all())


def _places(coder: Coder, places: Int64 | None, count: int, shape: tuple[int, int, int], *, canonical: bool) -> Int64:
    """Code places (K,), each below the product of `shape`: in canonical order the gaps, else each by itself."""
    positions = shape[0] * shape[1] * shape[2]
    starts = np.arange(0, count, GROUP) if canonical else np.arange(count)
    lengths = np.diff(np.append(starts, count))
    typical = UNIT * positions // (np.repeat(lengths, lengths) + 1)
    gaps = None
    if places is not None:
        before = np.concatenate([[-1], places[:-1]])
        before[starts] = -1
        gaps = (places - before - 1).astype(np.int32)
    coded = coder.code(typical, gaps, signed=False).astype(np.int64)
    if places is not None:
        return places
    ends = np.cumsum(coded + 1)
    found = ends - np.repeat(np.concatenate([[0], ends])[starts], lengths) - 1
    if found.max(initial=0) >= positions or np.unique(found).size != count:
        raise Corrupt("the places of 1D latents are damaged")
    return found
