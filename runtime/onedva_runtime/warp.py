"""Frames of a clip drawn onto a canvas on which their scene stands still, and back from it.

A `Camera` tells how the scene moves in the picture. The canvas has the size of the picture and holds all that any
frame shows: it is drawn smaller by the share that the camera moves, so nothing is lost but the finest detail, and
nothing lies outside it on the way back. What a frame does not show of the canvas is taken from the frame nearest in
time that does: so it stands still, which costs no latents.
(Panoramas of a shot, or sprites, are old in video coding: Sikora, "The MPEG-4 video standard verification model", IEEE
Trans. CSVT 7(1), 1997.)

Pictures are read between pixels through windowed sincs, along rows and then along columns (Catmull & Smith, "3-D
transformations of images in scanline order", SIGGRAPH 1980).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import usable_cores
from onedva_runtime.noise import native

__all__ = [
    "LARGEST_SWING",
    "PARTS",
    "PATH_NUMBERS",
    "SWING",
    "UNITS",
    "Camera",
    "draw",
    "follow",
    "hold_still",
    "scene_views",
    "shrinkage",
]

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Path = npt.NDArray[np.int16]

PATH_NUMBERS = 6  # of a frame: `Camera.path`
PARTS = 16  # of a pixel that a path is told in
SWING = 2**14  # parts of one that zoom, turn and shear are told in
LARGEST_SWING = SWING // 4  # of each of their four numbers: any such path has a way back
UNITS = np.array([PARTS] * 2 + [SWING] * 4)  # of a path's numbers in one pixel, or in one

TAPS, FEW_TAPS = 16, 4  # pixels that a place between pixels is made of, and where it is only looked at
PHASES = 128  # places between two pixels that there are filters for
SHARPNESS = 3.0  # of Kaiser's window over them
BITS = 32  # of a fraction of a pixel in a map
HALF = 1 << (BITS - 1)


@dataclass(frozen=True, eq=False)
class Camera:
    """How the scene of a clip moves in its picture, whose middle is the frame's or, between black bars, theirs."""

    path: Path
    """(T, 6) int16, of each frame: where the middle of the scene is, down and right of where it is in the middle frame,
    in sixteenths of a pixel; then how much further down, for each pixel down and for each pixel right, and how much
    further right, for each pixel down and for each pixel right, a place of the scene is than in the middle frame, in
    16384ths. So what is at (y, x) from the middle there is at `y + down + a·y + b·x`, `x + right + c·y + d·x` here."""
    bars: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels at the top, bottom, left and right of the frame that are not of the picture, and stay where they are."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Camera) and self.bars == other.bars and np.array_equal(self.path, other.path)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # as of arrays


def hold_still(frames: Uint8, camera: Camera) -> Uint8:
    """The first frames of a clip (N, H, W, C), N ≤ T, on the canvas of its camera: (N, H, W, C)."""
    picture = _picture(frames, camera)
    views, scale = _views(camera.path, *picture.shape[1:3])
    return _framed(draw(picture, views[: len(frames)], scale), frames, camera)


def follow(frames: Uint8, camera: Camera) -> Uint8:
    """The frames (T, H, W, C) that a canvas of each time shows: the way back from `hold_still`."""
    picture = _picture(frames, camera)
    views, _ = _views(camera.path, *picture.shape[1:3])
    return _framed(_warped(picture, _inverse(views), np.ones(2), TAPS), frames, camera)


def shrinkage(camera: Camera, height: int, width: int) -> float:
    """The share of its area that the scene of frames of height × width keeps on the canvas of a camera, in (0, 1]."""
    top, bottom, left, right = camera.bars
    return float(_views(camera.path, height - top - bottom, width - left - right)[1].prod())


def _picture(frames: Uint8, camera: Camera) -> Uint8:
    """What of frames is not bars; a view."""
    top, bottom, left, right = camera.bars
    return frames[:, top : frames.shape[1] - bottom, left : frames.shape[2] - right]


def _framed(picture: Uint8, frames: Uint8, camera: Camera) -> Uint8:
    """The frames with that picture between their bars."""
    if not any(camera.bars):
        return picture
    out = frames.copy()
    _picture(out, camera)[:] = picture
    return out


def draw(frames: Uint8, views: Float64, scale: Float64, *, taps: int = TAPS) -> Uint8:
    """A canvas for each frame (T, H, W, C), of its size, that shows the frame through its view and what lies beyond it
    from others.

    views (T, 2, 3): of a pixel (x, y, 1) of the canvas, where it is in a frame, (x, y). scale (2,): pixels of the
    canvas for one of a frame, across and down, at most 1: detail that is finer is filtered out.
    """
    canvas, module = _warped(frames, views, scale, taps), native()
    if module is None:
        reference_fill(canvas, _fixed(views))
    else:
        module.fill(canvas, _fixed(views))
    return canvas


def _views(path: Path, height: int, width: int) -> tuple[Float64, Float64]:
    """The view (T, 2, 3) of each frame of a path onto its canvas, and the scale (2,) of it: as `draw` takes them."""
    size = np.array([width, height], np.float64)
    frames = scene_views(path / UNITS, height, width)
    corners = np.array([[-0.5, size[0] - 0.5, -0.5, size[0] - 0.5], [-0.5, -0.5, size[1] - 0.5, size[1] - 0.5]])
    outline = _seen(_inverse(frames), corners)  # (T, 2, 4)
    first, last = outline.min(axis=(0, 2)), outline.max(axis=(0, 2))
    scale = size / (last - first)
    canvas = np.array([[1 / scale[0], 0, first[0] + 0.5 / scale[0]], [0, 1 / scale[1], first[1] + 0.5 / scale[1]]])
    return _after(frames, canvas), scale


def scene_views(moves: Float64, height: int, width: int) -> Float64:
    """Where a pixel of the middle frame is in others, (T, 2, 3); moves: a path (T, 6) in pixels and shares of one."""
    down, right, down_by_y, down_by_x, right_by_y, right_by_x = moves.T
    y, x = (height - 1) / 2, (width - 1) / 2  # the middle
    across = [1 + right_by_x, right_by_y, right - right_by_x * x - right_by_y * y]
    along = [down_by_x, 1 + down_by_y, down - down_by_x * x - down_by_y * y]
    return np.stack([np.stack(across, axis=1), np.stack(along, axis=1)], axis=1)


def _inverse(views: Float64) -> Float64:
    """Views the other way."""
    (a, b, right), (c, d, down) = views.transpose(1, 2, 0)
    whole = a * d - b * c
    across = [d / whole, -b / whole, (b * down - d * right) / whole]
    along = [-c / whole, a / whole, (c * right - a * down) / whole]
    return np.stack([np.stack(across, axis=1), np.stack(along, axis=1)], axis=1)


def _after(views: Float64, first: Float64) -> Float64:
    """Views (T, 2, 3) of what is seen through `first` (2, 3)."""
    turned = views[:, :, :1] * first[0] + views[:, :, 1:2] * first[1]
    turned[:, :, 2] += views[:, :, 2]
    return turned


def _seen(views: Float64, places: Float64) -> Float64:
    """Where places (2, N) are through views (T, 2, 3): (T, 2, N)."""
    return views[:, :, :1] * places[0] + views[:, :, 1:2] * places[1] + views[:, :, 2:]


def _fixed(numbers: Float64) -> Int64:
    """Numbers in 2^-32."""
    return np.ascontiguousarray(np.rint(numbers * 2.0**BITS).astype(np.int64))


def _warped(frames: Uint8, views: Float64, scale: Float64, taps: int) -> Uint8:
    """Frames (T, H, W, C) read where their views say, each as large as it was; beyond their edges, these."""
    (a, b, right), (c, d, down) = views.transpose(1, 2, 0)
    # row v of a frame is read for all columns of the canvas: there it is at y = (v − c·x − down) / d
    rows = [right - b * down / d, a - b * c / d, b / d]
    columns = [down, d, c]
    maps = _fixed(np.stack([np.stack(rows, axis=1), np.stack(columns, axis=1)], axis=1))
    filters = [_filters(float(part), taps) for part in scale]
    module = native()
    if module is None:
        return reference_warp(frames, maps, *filters)
    out = np.empty_like(frames, order="C")
    module.warp(out, np.ascontiguousarray(frames), maps, *filters, usable_cores())
    return out


@lru_cache(maxsize=16)
def _filters(scale: float, count: int) -> Float32:
    """Windowed sincs (128, `count`) that read a line between the two pixels in their middle, so many 128ths further on,
    without detail finer than `scale` of what it can hold."""
    away = np.arange(count) - (count // 2 - 1) - np.arange(PHASES)[:, None] / PHASES
    window = np.i0(SHARPNESS * np.sqrt(np.maximum(0, 1 - (away / (count / 2)) ** 2)))
    taps = np.sinc(min(scale, 1.0) * away) * window
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)


def reference_warp(frames: Uint8, maps: Int64, rows: Float32, columns: Float32) -> Uint8:
    """What the C++ does, in NumPy: maps (T, 2, 3) of frames (T, H, W, C), in 2^-32 pixels; where a row is read at its
    start, by column and by row, then where a column is, at its start, by row and by column. Filters as of `_filters`.
    """
    out = np.empty_like(frames)
    for t, (along_rows, along_columns) in enumerate(maps):
        for channel in range(frames.shape[3]):
            wide = _read(frames[t, :, :, channel].astype(np.float32), along_rows, rows)
            tall = _read(wide.T, along_columns, columns).T
            out[t, :, :, channel] = np.rint(np.clip(tall, 0, 255)).astype(np.uint8)
    return out


def _read(lines: Float32, where: Int64, filters: Float32) -> Float32:
    """Lines (N, L), each read at L places; where (3,): the first, how far it is to the next, and to the next line's."""
    count, length = lines.shape
    places = where[0] + where[1] * np.arange(length) + where[2] * np.arange(count)[:, None]
    places = np.clip(places, -HALF, (length << BITS) - HALF)
    parts = PHASES.bit_length() - 1
    rounded = (places + (1 << (BITS - parts - 1))) >> (BITS - parts)
    taps = filters.shape[1]
    wide = np.pad(lines, ((0, 0), (taps // 2, taps // 2)), mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(wide, taps, axis=1)
    sums = windows[np.arange(count)[:, None], (rounded >> parts) + 1] * filters[rounded & (PHASES - 1)]
    while sums.shape[2] > 1:
        half = sums.shape[2] // 2
        sums = sums[:, :, :half] + sums[:, :, half:]
    return sums[:, :, 0]


def reference_fill(frames: Uint8, views: Int64) -> None:
    """What the C++ does, in NumPy: views (T, 2, 3) in 2^-32 pixels; `frames` (T, H, W, C) are changed."""
    count, height, width, _ = frames.shape
    x, y = np.arange(width), np.arange(height)[:, None]
    shown = np.empty((count, height, width), bool)
    for t, view in enumerate(views):
        across, down = (row[0] * x + row[1] * y + row[2] for row in view)
        inside = (across >= -HALF) & (across < (width << BITS) - HALF)
        shown[t] = inside & (down >= -HALF) & (down < (height << BITS) - HALF)
    for t in range(count):
        nearest = sorted(range(count), key=lambda other: (abs(other - t), other))
        missing = ~shown[t]
        for other in nearest[1:]:
            taken = missing & shown[other]
            frames[t][taken] = frames[other][taken]
            missing &= ~taken
