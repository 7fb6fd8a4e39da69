"""What is known of a video file (`VideoInfo`), and a whole video in memory (`Video`)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from .colour import Colour


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video file after its first frame was decoded."""

    width: int
    """Pixels per row, after rotation."""
    height: int
    """Rows, after rotation."""
    frames: int | None
    """Frames the file announces, None where it does not; once everything was read, the number that was decoded."""
    fps: Fraction
    """Average frame rate, frames per second."""
    time_base: Fraction
    """Seconds per tick of the timestamps."""
    duration_s: float | None
    """Length in seconds, where the file says."""
    colour: Colour
    """How the source codes its colours."""
    codec: str
    """FFmpeg's name of the codec."""
    pixel_format: str
    """FFmpeg's name of the pixel format that the decoder gives."""
    rotation: int
    """Degrees clockwise by which the stored picture was turned: 0, 90, 180 or 270."""
    mirrored: bool
    """True where it was flipped left to right, before turning."""
    has_audio: bool
    """True where there is an audio stream (it is not read)."""
    truncated: bool = False
    """True once reading found that the file ends early, or that parts of it cannot be decoded."""


@dataclass(frozen=True, eq=False)
class Video:
    """A whole video in memory."""

    frames: NDArray[np.uint8]
    """(T, H, W, 3) RGB, 0-255."""
    timestamps: NDArray[np.int64]
    """(T,) presentation times in ticks of `time_base`, strictly increasing."""
    time_base: Fraction
    """Seconds per tick."""
    fps: Fraction
    """Average frame rate, frames per second."""
    info: VideoInfo
    """What the file says about itself."""
