"""Colour: what a decoded picture's numbers mean, and how they become RGB.

In: the matrix, range, primaries and transfer that the stream names. Where it names none: YUV is limited range ("yuvj"
formats full), bt709 for HD and bt601 for anything smaller (HD: long side >= 1280 or short side >= 720); grey is full
range. RGB is always full range, whatever its tag says: encoders tag full range RGB as limited. RGB here means
display-referred R'G'B', 0-255 full range, **in the source's own transfer and primaries**: matrix and range are undone,
nothing else is. So SDR video looks as on a player; PQ and HLG (HDR) pictures are not tone-mapped and look flat. Alpha
is composited over black. Out: bt709, limited range, tagged (see video_write).
"""

from dataclasses import dataclass
from typing import cast

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

from .errors import VideoError

_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}  # by AVColorSpace
_UNTAGGED = (2, 3)  # unspecified, and "reserved", which files in the wild use for the same
# What the scaler calls them (SWS_CS_*).
_SCALER_MATRIX = {"bt709": 1, "fcc": 4, "bt601": 5, "smpte240m": 7, "bt2020": 9}
_ACCURATE = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
_PRIMARIES = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 11: "dci-p3", 12: "display-p3"}
_TRANSFERS = {1: "bt709", 6: "smpte170m", 8: "linear", 13: "srgb", 14: "bt2020", 15: "bt2020", 16: "pq", 18: "hlg"}
_LIMITED, _FULL = 1, 2  # AVColorRange


@dataclass(frozen=True)
class Colour:
    """How the source codes its colours."""

    matrix: str
    """"rgb", "gray", "bt601", "bt709", "bt2020", "smpte240m" or "fcc"."""
    full_range: bool
    """True: black is 0 and white 255 (8 bits); False: 16 and 235."""
    primaries: str
    """Named by the stream, else "unknown"."""
    transfer: str
    """Named by the stream, else "unknown"."""
    guessed: bool
    """True where the stream named no matrix, and the size decided."""

    def __str__(self) -> str:
        guess = " (guessed)" if self.guessed else ""
        span = "full" if self.full_range else "limited"
        return f"{self.matrix}{guess}, {span} range, primaries {self.primaries}, transfer {self.transfer}"


@dataclass(frozen=True)
class _Format:
    is_rgb: bool
    is_gray: bool
    has_alpha: bool
    is_full: bool


_formats: dict[str, _Format] = {}  # a cache of facts about pixel formats, by name


def _format(frame: av.VideoFrame) -> _Format:
    name = frame.format.name
    if name not in _formats:
        parts = frame.format.components
        palette = frame.format.has_palette
        gray = not palette and sum(not part.is_alpha for part in parts) == 1 and not frame.format.is_rgb
        alpha = palette or any(part.is_alpha for part in parts)
        _formats[name] = _Format(palette or frame.format.is_rgb, gray, alpha, name.startswith("yuvj"))
    return _formats[name]


def untagged_matrix(width: int, height: int) -> str:
    """The matrix that players assume where none is named: "bt709" for HD, else "bt601"."""
    return "bt709" if max(width, height) >= 1280 or min(width, height) >= 720 else "bt601"


def describe(frame: av.VideoFrame) -> Colour:
    """The colour coding of a decoded frame, guesses included; raises VideoError for a matrix that is not supported."""
    kind, space = _format(frame), frame.colorspace
    primaries = _PRIMARIES.get(frame.color_primaries, "unknown")
    transfer = _TRANSFERS.get(frame.color_trc, "unknown")
    if kind.is_rgb:
        return Colour("rgb", True, primaries, transfer, False)
    full = kind.is_full or frame.color_range == _FULL
    if kind.is_gray:
        return Colour("gray", frame.color_range != _LIMITED, primaries, transfer, False)
    if space in _UNTAGGED:
        return Colour(untagged_matrix(frame.width, frame.height), full, primaries, transfer, True)
    if space not in _MATRICES:
        raise VideoError(f"colour matrix number {space} is not supported ({', '.join(_SCALER_MATRIX)} and RGB are)")
    return Colour(_MATRICES[space], full, primaries, transfer, False)


class ToRGB:
    """Turns decoded frames into RGB. Holds the scaler's state, so one per reader, and not shared between threads."""

    def __init__(self, *, threads: int = 1) -> None:
        self._scaler = VideoReformatter()
        self._threads = threads

    def __call__(self, frame: av.VideoFrame, out: NDArray[np.uint8]) -> None:
        """Write `frame` as RGB into `out` (H, W, 3) uint8; a frame of another size is scaled to it (bicubic).

        Raises VideoError for a colour matrix that is not supported.
        """
        colour, kind = describe(frame), _format(frame)
        height, width = out.shape[:2]
        resized = (frame.height, frame.width) != (height, width)
        matrix = _SCALER_MATRIX.get(colour.matrix)
        # Planar output with these flags is within 0.5 of the exact value; the packed fast path is 0.8 too dark on
        # average, and up to 3. NumPy then interleaves the planes. Both together cost about a fifth of decoding.
        planar = self._scaler.reformat(
            frame,
            width=width,
            height=height,
            format="gbrap" if kind.has_alpha else "gbrp",
            src_colorspace=matrix,
            dst_colorspace=matrix,
            src_color_range=_FULL if colour.full_range else _LIMITED,
            dst_color_range=_FULL,
            interpolation=_ACCURATE | (Interpolation.BICUBIC if resized else Interpolation.BILINEAR),
            threads=self._threads,
        )
        for channel, plane in enumerate((2, 0, 1)):  # planes are G, B, R
            out[..., channel] = _plane(planar, plane)
        if kind.is_gray and not colour.full_range:  # the scaler takes every grey format for full range
            np.take(_expand_range(frame.format.components[0].bits), out, out=out)
        if kind.has_alpha:
            alpha = _plane(planar, 3).astype(np.uint16)[..., None]
            np.copyto(out, (out * alpha + 127) // 255, casting="unsafe")


def _expand_range(bits: int) -> NDArray[np.uint8]:
    """Table (256,) from a limited range level, taken for full range and scaled from `bits` to 8, to its grey."""
    level = np.arange(256, dtype=np.float64) * (
        (2**bits - 1) / 255 / 2 ** (bits - 8)
    )  # on the scale where black is 16 and white 235
    return np.clip(np.rint((level - 16) * (255 / 219)), 0, 255).astype(np.uint8)


def _plane(frame: av.VideoFrame, index: int) -> NDArray[np.uint8]:
    plane = frame.planes[index]
    return np.frombuffer(cast(memoryview, plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
