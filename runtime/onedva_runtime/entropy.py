"""Entropy coding of integers, most of them small: the part of the `.odva` format between integers and bytes.

A range coder (the library `constriction`) and a family of *tables*, one for each class of expected magnitude. Whoever
codes says what magnitude to expect of each integer, from what both sides already know; that picks the table. Tables are
whole numbers that travel in the file, and the coder is given them exactly, so every machine reads the same integers.

An integer is coded as min(magnitude >> shift, ESCAPE) by its table, the rest of a magnitude that escapes, the `shift`
low bits and the sign as plain bits.
"""

from __future__ import annotations

import zlib
from functools import cached_property
from typing import Any, cast

import constriction
import numpy as np
from numpy.typing import NDArray

from onedva_runtime.errors import Corrupt, PacketError

__all__ = ["LARGEST", "UNIT", "Decoder", "Encoder", "Tables", "classes_of", "inflate", "magnitudes"]

UNIT = 64  # expected magnitudes are whole numbers of 1/64
SYMBOLS, TOTAL = 18, 1 << 16  # of a table: how many symbols, and what their frequencies sum up to
ESCAPE = SYMBOLS - 1
MOST = TOTAL - 256  # of one symbol: so no integer is cheaper than 1/178 bit, and bytes bound what they can hold
INTEGERS_PER_BYTE = 8 * 178
# Lowest expected magnitude, in 1/64, of classes 1, 2, …: a third of an octave each. From 256 on (four), shift doubles.
BOUNDS = np.array([4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 51, 64, 81, 102, 128, 161, 203])
CLASSES = len(BOUNDS) + 1
_DOUBLE = 256
LARGEST = (1 << 20) - 1  # of a magnitude
_LENGTHS = 21  # of log2 of what escapes, plus one
_CAP = 1 << 26  # of an expected magnitude
# 64·E|round(x)| of a Laplacian x of standard deviation 2^(level/8), level = −16 … 47; beyond, it doubles with every
# octave, and below it counts as 4.
_FIRST_LEVEL = -16
_MAGNITUDES = np.array(
    [
        4, 5, 6, 7, 9, 10, 12, 14, 17, 19, 21, 24, 27, 30, 34, 38,
        42, 46, 51, 56, 61, 67, 74, 81, 89, 97, 106, 116, 127, 138, 151, 165,
        180, 197, 214, 234, 255, 279, 304, 331, 362, 394, 430, 469, 512, 558, 609, 664,
        724, 789, 861, 939, 1024, 1117, 1218, 1328, 1448, 1579, 1722, 1878, 2048, 2233, 2435, 2656,
    ]
)  # fmt: skip


def magnitudes(levels: NDArray[np.int16]) -> NDArray[np.int64]:
    """What magnitude, in 1/64, to expect of integers whose values have unit variance: (…) → (…)."""
    level = levels.astype(np.int64)
    octaves = np.maximum(0, (level - _FIRST_LEVEL - len(_MAGNITUDES)) // 8 + 1)
    return _MAGNITUDES[np.maximum(level - 8 * octaves - _FIRST_LEVEL, 0)].astype(np.int64) << octaves


class Tables:
    """Frequencies (CLASSES, SYMBOLS) of the symbols in each class of expected magnitude."""

    def __init__(self, frequencies: NDArray[np.int64]) -> None:
        """Raises Corrupt unless all are from 1 to MOST and each row sums to TOTAL."""
        self.frequencies = frequencies
        fits = frequencies.shape == (CLASSES, SYMBOLS) and bool((frequencies.sum(1) == TOTAL).all())
        if not fits or frequencies.min() < 1 or frequencies.max() > MOST:
            raise Corrupt("its tables of frequencies are damaged")

    def pack(self) -> bytes:
        """The tables as bytes: uint16 frequencies by class, deflated."""
        return zlib.compress(self.frequencies.astype("<u2").T.tobytes(), 9)

    @classmethod
    def unpack(cls, data: bytes) -> Tables:
        """Inverse of `pack`; raises Corrupt."""
        size = 2 * CLASSES * SYMBOLS
        return cls(np.frombuffer(inflate(data, size), "<u2").reshape(SYMBOLS, CLASSES).T.astype(np.int64))

    @cached_property
    def weights(self) -> NDArray[np.float32]:
        """The tables as the coder takes them: it gives each of n symbols 1 of 2^24 parts and shares out the others in
        proportion. 256·frequency − 1 sum to exactly those others, so each gets 256·frequency parts, without rounding.
        """
        return (256 * self.frequencies - 1).astype(np.float32)


_stream: Any = cast(Any, constriction).stream  # its modules are compiled in, type checkers do not see them
_FAMILY = _stream.model.Categorical(perfect=False)


def classes_of(expected: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Class and shift of integers of an expected magnitude (n,) in 1/64."""
    shifts = np.zeros(expected.shape, np.int64)
    rest = np.minimum(expected, _CAP)
    while True:
        large = rest >= _DOUBLE
        if not large.any():
            return np.searchsorted(BOUNDS, rest, side="right"), shifts
        shifts += large
        rest = np.where(large, rest >> 1, rest)


class Encoder:
    """Integers to bytes. `code` them in an order that the decoder can follow, then take `bytes`."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._coder = _stream.queue.RangeEncoder()

    def code(
        self, expected: NDArray[np.int64], integers: NDArray[np.int32] | None, *, signed: bool = True
    ) -> NDArray[np.int32]:
        """Append integers (n,) of which magnitudes `expected` (n,), in 1/64, are expected; returns them. signed: where
        not, none is below 0. PacketError for one that is too large."""
        assert integers is not None, "there is nothing to encode"
        if len(integers) == 0:
            return integers
        classes, shifts = classes_of(expected)
        magnitude = np.abs(integers.astype(np.int64))
        if magnitude.max() > LARGEST:  # the gap between two places, where a clip has millions of them
            raise PacketError(f"an integer to be coded reaches {magnitude.max()}; the format holds {LARGEST}")
        high = magnitude >> shifts
        symbols = np.minimum(high, ESCAPE)
        self._coder.encode(symbols.astype(np.int32), _FAMILY, self._tables.weights[classes])
        self._escapes(high[symbols == ESCAPE] - ESCAPE)
        for shift in range(1, int(shifts.max()) + 1):
            self._plain(magnitude[shifts == shift] & ((1 << shift) - 1), 1 << shift)
        if signed:
            self._plain((integers < 0)[magnitude > 0], 2)
        return integers

    def bytes(self) -> bytes:
        """What was coded so far, in words of four bytes."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def _escapes(self, values: NDArray[np.int64]) -> None:
        lengths = np.frexp((values + 1).astype(np.float64))[1] - 1  # whole part of log2
        self._plain(lengths, _LENGTHS)
        for length in range(1, int(lengths.max(initial=0)) + 1):
            self._plain((values + 1 - (1 << length))[lengths == length], 1 << length)

    def _plain(self, values: NDArray[np.generic], size: int) -> None:
        if len(values):
            self._coder.encode(values.astype(np.int32), _stream.model.Uniform(size))


class Decoder:
    """Bytes to integers, the way they were coded."""

    def __init__(self, tables: Tables, data: bytes) -> None:
        """Raises Corrupt where `data` are no whole words."""
        if len(data) % 4:
            raise Corrupt(f"coded integers are words of four bytes, there are {len(data)} bytes")
        self._tables, self._size = tables, len(data)
        self._coder = _stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
        self._count = 0

    def expect(self, count: int) -> None:
        """Raise Corrupt where the bytes cannot hold `count` integers: before memory is taken for them."""
        if count > INTEGERS_PER_BYTE * (self._size + 4):
            raise Corrupt(f"{self._size} bytes cannot hold the {count} integers that are announced")

    def code(
        self, expected: NDArray[np.int64], integers: NDArray[np.int32] | None = None, *, signed: bool = True
    ) -> NDArray[np.int32]:
        """The next integers (n,), of which magnitudes `expected` (n,) are expected. Raises Corrupt."""
        if len(expected) == 0:
            return np.zeros(0, np.int32)
        classes, shifts = classes_of(expected)
        try:
            symbols = self._coder.decode(_FAMILY, self._tables.weights[classes])
            magnitude = symbols.astype(np.int64)
            escaped = symbols == ESCAPE
            magnitude[escaped] += self._escapes(int(escaped.sum()))
            magnitude <<= shifts
            for shift in range(1, int(shifts.max()) + 1):
                low = shifts == shift
                magnitude[low] += self._plain(int(low.sum()), 1 << shift)
            negative = np.zeros(len(magnitude), bool)
            if signed:
                other = magnitude > 0
                negative[other] = self._plain(int(other.sum()), 2) != 0
        except AssertionError as error:  # what the library answers to words that no encoder writes
            raise Corrupt("coded integers are damaged") from error
        if magnitude.max() > LARGEST:
            raise Corrupt(f"a coded integer reaches {magnitude.max()}; allowed: {LARGEST}")
        return np.where(negative, -magnitude, magnitude).astype(np.int32)

    def finish(self) -> None:
        """Raise Corrupt where more was coded than has been asked for."""
        if not self._coder.maybe_exhausted():
            raise Corrupt("bytes are left after the last coded integer")

    def _escapes(self, count: int) -> NDArray[np.int64]:
        lengths = self._plain(count, _LENGTHS)
        values = (np.int64(1) << lengths) - 1
        for length in range(1, int(lengths.max(initial=0)) + 1):
            chosen = lengths == length
            values[chosen] += self._plain(int(chosen.sum()), 1 << length)
        return values

    def _plain(self, count: int, size: int) -> NDArray[np.int64]:
        if count == 0:
            return np.zeros(0, np.int64)
        return self._coder.decode(_stream.model.Uniform(size), count).astype(np.int64)


def inflate(data: bytes, size: int) -> bytes:
    """Undo zlib.compress where that gives exactly `size` bytes; raises Corrupt, and never makes more."""
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise Corrupt(f"compressed bytes are damaged ({error})") from error
    if len(result) != size or not stream.eof or stream.unused_data:
        raise Corrupt(f"compressed bytes do not hold the {size} that they should")
    return result
