"""The noise a decode starts from: a pure function of (seed, frame number, y, x, channel).

Each pixel is one counter of Philox4x32-10, so that noise does not depend on how a video was cut into clips, tiles or
batches, and one seed gives the same bits on every machine and backend. `gaussian` is what to call; it runs in C++
(`_sampler`, from cpp_ext/) where that is built, and `reference_gaussian` says in NumPy what it computes.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from statistics import NormalDist
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

TABLE_SIZE = 65536
CHANNELS = 3
_WORD = 2**32
Words = tuple[NDArray[np.uint64], ...]


@cache
def normal_table() -> NDArray[np.float32]:
    """Returns the 65536 standard normal quantiles that the high 16 bits of a random word are looked up in.

    Entry i is the quantile at (i + 0.5) / 65536, rounded to a multiple of 2^-16: no quantile lies close enough to a
    rounding boundary for two machines' logarithms to disagree, and every entry is exact in float32. Read-only.
    """
    quantile = NormalDist().inv_cdf
    upper = [round(quantile((i + 0.5) / TABLE_SIZE) * 2**16) / 2**16 for i in range(TABLE_SIZE // 2, TABLE_SIZE)]
    table = np.array([-value for value in reversed(upper)] + upper, np.float32)
    table.setflags(write=False)
    return table


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Returns the four random words that Philox4x32-10 gives for each counter.

    Args:
        counter: four arrays that broadcast together, uint64 holding 32-bit words.
        key: two 32-bit words.

    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; Random123's test vectors are in
    the tests. Words are kept in uint64, where the 32 × 32 bit products are exact.
    """
    low = np.uint64(_WORD - 1)
    shift = np.uint64(32)
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1 = (product1 >> shift) ^ c1 ^ np.uint64(k0), product1 & low
        c2, c3 = (product0 >> shift) ^ c3 ^ np.uint64(k1), product0 & low
        k0 = (k0 + 0x9E3779B9) % _WORD
        k1 = (k1 + 0xBB67AE85) % _WORD
    return c0, c1, c2, c3


def reference_gaussian(
    seed: int, *, first_frame: int, frames: int, height: int, width: int, top: int = 0, left: int = 0
) -> NDArray[np.float32]:
    """Returns the same noise as `gaussian`, computed in NumPy: the definition that C++ is tested against."""
    _check(seed, first_frame=first_frame, frames=frames, height=height, width=width, top=top, left=left, threads=1)
    table = normal_table()
    frame = np.arange(first_frame, first_frame + frames, dtype=np.uint64)[:, None, None]
    y = np.arange(top, top + height, dtype=np.uint64)[:, None]
    x = np.arange(left, left + width, dtype=np.uint64)
    words = philox4x32((frame, y, x, np.zeros((), np.uint64)), (seed % _WORD, seed // _WORD))
    return np.stack([table[word >> np.uint64(16)] for word in words[:CHANNELS]])  # (3, frames, height, width)


def gaussian(
    seed: int,
    *,
    first_frame: int,
    frames: int,
    height: int,
    width: int,
    top: int = 0,
    left: int = 0,
    threads: int = 1,
) -> NDArray[np.float32]:
    """Returns standard normal noise for a box of pixels of a video, float32 (3, frames, height, width).

    Args:
        seed: 0 … 2^64 − 1.
        first_frame: number in the video of the box's first frame, from 0.
        frames: frames in the box.
        height, width: size of the box in pixels.
        top, left: the box's first pixel in its frame, for a decode in tiles.
        threads: CPU threads to share the work between; does not change the result.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range; frame numbers and positions must stay below 2^32.
    """
    box = {"first_frame": first_frame, "frames": frames, "height": height, "width": width, "top": top, "left": left}
    _check(seed, **box, threads=threads)
    module = native()
    if module is None:
        return reference_gaussian(seed, **box)
    out = np.empty((CHANNELS, frames, height, width), np.float32)
    module.gaussian(out, normal_table(), seed, first_frame=first_frame, top=top, left=left, threads=threads)
    return out


def is_native() -> bool:
    """Says whether the C++ noise is built and used (`onedva info` shows it)."""
    return native() is not None


@cache
def native() -> ModuleType | None:
    """The compiled module, or None where the package runs from a source tree without it."""
    try:
        return import_module("onedva_runtime._sampler")
    except ModuleNotFoundError:
        return None


def _check(seed: int, **box: int) -> None:
    for name, value in {"seed": seed, **box}.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in 0 … 2^64 - 1, got {seed}")
    for name in ("frames", "height", "width", "threads"):
        if box[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {box[name]}")
    for start, length in (("first_frame", "frames"), ("top", "height"), ("left", "width")):
        if box[start] < 0 or box[start] + box[length] > _WORD:
            raise ValueError(
                f"{start} must be at least 0 and {start} + {length} at most 2^32, got {box[start]} + {box[length]}"
            )
