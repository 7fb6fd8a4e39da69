"""Frames brought to another size for a measurement or a demo; the codec itself never resizes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["fit_frames", "parse_size", "size_within"]


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) in pixels of a text like 256x144; ValueError for anything else."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise ValueError(f"a size is WIDTHxHEIGHT in pixels, such as 256x256; got {text!r}")
    return int(parts[0]), int(parts[1])


def size_within(width: int, height: int, *, pixels: int, positions: int) -> tuple[int, int]:
    """The largest (width, height) of about this aspect ratio that fits; unchanged where it does, else multiples of 16.

    pixels: most pixels per frame. positions: most 16×16 blocks per frame, counting those cut by the edge.
    """
    wide, high, scale = width, height, 1.0
    while wide * high > pixels or -(-wide // 16) * -(-high // 16) > positions:
        scale *= 0.99
        wide, high = max(16, 16 * int(width * scale / 16)), max(16, 16 * int(height * scale / 16))
    return wide, high


def fit_frames(frames: npt.NDArray[np.uint8], *, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Cover width × height by area averaging and crop the middle.

    frames: (T, H, W, 3) uint8 → (T, height, width, 3) uint8.
    """
    import av
    import numpy as np

    if frames.shape[1:3] == (height, width):
        return frames
    scale = max(width / frames.shape[2], height / frames.shape[1])
    wide, high = max(width, round(frames.shape[2] * scale)), max(height, round(frames.shape[1] * scale))
    left, top = (wide - width) // 2, (high - height) // 2
    fitted = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        scaled = image.reformat(width=wide, height=high, interpolation="AREA").to_ndarray(format="rgb24")
        fitted[index] = scaled[top : top + height, left : left + width]
    return fitted
