"""A moving camera, taken out of a clip before it is encoded and put back after it is decoded.

Latents of a column describe what one place of the picture does over a clip. What a pan moves through the picture is
new in every column, although nothing happened. So a clip whose camera moves is turned, frame by frame, until its scene
stands still; what leaves at one edge comes in at the opposite one. The way of the camera, in eighths of a pixel, goes
with the latents. By whole pixels the way back is exact but for the outermost pixels of a frame, which join its edges;
fractions go through long filters, forth and back within 45 to 60 dB.

The way is found by phase correlation of frames that follow each other (Kuglin & Hines, "The phase correlation image
alignment method", 1975) and then refined against the mean of the frames (Lucas & Kanade, "An iterative image
registration technique", 1981). It is used only where it pays: energies along time must fall.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import usable_cores
from onedva_runtime.noise import native

__all__ = ["PARTS", "camera_path", "follow", "hold_still", "reference_resample"]

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Path = npt.NDArray[np.int16]

PARTS = 8  # of a pixel that a way is told in
REACH = 8  # pixels on each side that a fraction of a pixel is made of
SHARPNESS = 3.0  # of Kaiser's window over them

LOOKED_AT = 64  # pixels of the longer side of the pictures that are correlated
LEAST_SIDE, LEAST_FRAMES = 64, 3  # of a clip that is looked at: below, a scene and its edges cannot be told apart
BLACK, EVEN = 24, 12  # levels: bars at an edge are below the one and vary by no more than the other
LEAST_WAY = 0.5  # pixels: slower drift is what directions along time are good at
BLUR = 0.5  # variance in pixels² of the peak that a shift is read from
MARGIN = 8  # pixels at the edges that refining leaves out: they hold what came in at the other side
ROUNDS = 4
BLOCK = 16
FLOOR = 4.0  # levels²: energy of a block that is noise anyway
# natural log, of the energy along time (mean over blocks) and of the change from frame to frame together: over 84 real
# clips, hardly a way that saves as much costs anything, and most ways that save less do
LEAST_GAIN = 0.4
HOPE = 0.15  # how much worse a way may be before it is refined further
EXACT = 0.05  # what fractions of a pixel must gain over whole ones, which lose next to nothing


def camera_path(frames: Uint8) -> Path | None:
    """Where the scene is in each frame of a clip, (T, 2) in eighths of a pixel, down and right, 0 in the middle frame;
    None where the camera does not move, or following it would not pay.

    frames: (T, H, W, 3). At most half a picture away. Not of pictures with black bars at their edges: these would move.
    """
    count, height, width, _ = frames.shape
    if count < LEAST_FRAMES or min(height, width) < LEAST_SIDE:
        return None
    green = np.ascontiguousarray(frames[..., 1:2])
    if _has_bars(green[..., 0]):
        return None
    before = _restlessness(green)
    found: list[tuple[float, Floats]] = []  # ways, and what happens along time if they are followed
    for way in (_correlated(green), _refined(np.zeros((count, 2)), green, rounds=2)):
        if np.ptp(way, axis=0).max() >= LEAST_WAY and not _too_far(way, height, width):
            found.append((_restlessness(hold_still(green, _path(way, whole=False))), way))
    rest, way = min(found, key=lambda pair: pair[0], default=(np.inf, np.zeros((count, 2))))
    if rest > before + HOPE:
        return None
    way = _refined(way, green, rounds=ROUNDS)
    if _too_far(way, height, width):
        return None
    exact, fine = _path(way), _path(way, whole=False)
    saved_by = [before - _restlessness(hold_still(green, path)) for path in (exact, fine)]
    path, saved = (exact, saved_by[0]) if saved_by[0] > saved_by[1] - EXACT else (fine, saved_by[1])
    return path if saved > LEAST_GAIN and path.any() else None


def hold_still(frames: Uint8, path: Path) -> Uint8:
    """Frames (T, H, W, C) turned so that the scene stays where it is in the middle frame."""
    whole, rest = _split(path)
    frames = _resampled(frames, rest)
    return _rolled(_joined(frames, whole), -whole)


def follow(frames: Uint8, path: Path) -> Uint8:
    """Inverse of `hold_still`: exact for ways of whole pixels but for the outermost ones."""
    whole, rest = _split(path)
    return _resampled(_mended(_rolled(frames, whole), whole), -rest)


def _split(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """A way as whole pixels and the eighths that are left, -4 to 3."""
    whole = (path.astype(np.int64) + PARTS // 2) // PARTS
    return whole, path - PARTS * whole


def _joined(frames: Uint8, whole: npt.NDArray[np.int64]) -> Uint8:
    """Frames with a third and two thirds of both lines next to an edge in place of the edges that will lie beside each
    other: less of one picture gets into the other. `_mended` makes them anew."""
    if not whole.any():
        return frames
    out = frames.copy()
    for frame, moves in zip(out, whole != 0, strict=True):
        for axis in np.flatnonzero(moves):
            lines = np.moveaxis(frame, axis, 0)  # a view
            first, last = lines[1].astype(np.uint16), lines[-2].astype(np.uint16)
            lines[0], lines[-1] = (last + 2 * first) // 3, (2 * last + first) // 3
    return out


def _mended(frames: Uint8, whole: npt.NDArray[np.int64]) -> Uint8:
    """Frames whose edges, where they were joined, are the lines next to them; `frames` are changed."""
    for frame, moves in zip(frames, whole != 0, strict=True):
        for axis in np.flatnonzero(moves):
            lines = np.moveaxis(frame, axis, 0)
            lines[0], lines[-1] = lines[1], lines[-2]
    return frames


def _rolled(frames: Uint8, shifts: npt.NDArray[np.int64]) -> Uint8:
    """Each frame by its own shift (T, 2) in pixels, around the edges."""
    out = np.empty_like(frames)
    for target, frame, (down, right) in zip(out, frames, shifts.tolist(), strict=True):
        target[:] = np.roll(frame, (down, right), (0, 1))
    return out


def _resampled(frames: Uint8, parts: npt.NDArray[np.int64]) -> Uint8:
    """Each frame (H, W, C) as it is so many eighths of a pixel (T, 2) further down and right; mirrored at its edges."""
    if not parts.any():
        return frames
    module, filters = native(), _FILTERS[parts + PARTS // 2]
    if module is None:
        return reference_resample(frames, filters)
    out = np.empty_like(frames, order="C")
    module.resample(out, np.ascontiguousarray(frames), filters, usable_cores())
    return out


def reference_resample(frames: Uint8, filters: Float32) -> Uint8:
    """What the C++ does, in NumPy: filters (T, 2, 17) of each frame (T, H, W, C), along columns and along rows."""
    out = np.empty_like(frames)
    for target, frame, (down, right) in zip(out, frames, filters, strict=True):
        values = _filtered(frame.astype(np.float32), right, axis=1)
        values = _filtered(values, down, axis=0)
        target[:] = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return out


def _filtered(values: Float32, taps: Float32, *, axis: int) -> Float32:
    """The sum of 17 places times `taps`, in their order."""
    padding = [(REACH, REACH) if a == axis else (0, 0) for a in range(3)]
    wide, length = np.pad(values, padding, mode="symmetric"), values.shape[axis]
    total = np.zeros_like(values)
    for start, tap in enumerate(taps):
        total += tap * np.take(wide, range(start, start + length), axis=axis)
    return total


def _filters() -> Float32:
    """Windowed sincs (9, 17) that read a line -4, …, 4 eighths of a pixel further on; of 0, it is left as it is."""
    places = np.arange(-REACH, REACH + 1)
    parts = np.arange(-PARTS // 2, PARTS // 2 + 1)[:, None] / PARTS
    away = places - parts
    window = np.i0(SHARPNESS * np.sqrt(np.maximum(0, 1 - (away / (REACH + 0.5)) ** 2)))
    taps = np.where(parts == 0, places == 0, np.sinc(away) * window)
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)


_FILTERS = _filters()


def _has_bars(pictures: Uint8) -> bool:
    """Whether an outermost row or column of pictures (T, H, W) is black all the time."""
    edges = pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1]
    return any(edge.max() - edge.min() <= EVEN and edge.max() <= BLACK + EVEN for edge in edges)


def _correlated(green: Uint8) -> Floats:
    """The way in pixels (T, 2) by phase correlation of small pictures of frames (T, H, W, 1)."""
    step = max(1, round(max(green.shape[1:3]) / LOOKED_AT))
    steps = step * _steps(_shrunk(green[..., 0], step))
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def _shrunk(pictures: Uint8, step: int) -> Float32:
    """Means of step × step pixels: (T, H, W) → (T, H // step, W // step)."""
    _, height, width = pictures.shape
    rows, columns = height // step * step, width // step * step
    tall = pictures[:, 0:rows:step, :columns].astype(np.uint16)
    for start in range(1, step):
        tall += pictures[:, start:rows:step, :columns]
    wide = tall[:, :, ::step].astype(np.float32)
    for start in range(1, step):
        wide += tall[:, :, start::step]
    return wide / np.float32(step**2)


def _steps(pictures: Float32) -> Floats:
    """How far the scene moves from each picture (T, h, w) to the next, in pixels, to fractions of one: (T − 1, 2)."""
    _, height, width = pictures.shape
    window = (np.hanning(height)[:, None] * np.hanning(width)).astype(np.float32)
    spectra = np.fft.rfft2((pictures - pictures.mean(axis=(1, 2), keepdims=True)) * window)
    cross = spectra[1:] * spectra[:-1].conj()
    squares = np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width) ** 2
    cross *= np.exp(-2 * np.pi**2 * BLUR * squares).astype(np.float32) / (np.abs(cross) + 1e-6)
    surface = np.fft.irfft2(cross, s=(height, width))
    number = np.arange(len(surface))
    y, x = np.divmod(surface.reshape(len(surface), -1).argmax(axis=1), width)

    def between(before: Floats, peak: Floats, after: Floats) -> Floats:
        """Top of the bell through three neighbours, from the middle one."""
        a, b, c = (np.log(np.maximum(value, 1e-9)) for value in (before, peak, after))
        return np.clip(0.5 * (a - c) / np.minimum(a - 2 * b + c, -1e-9), -0.5, 0.5)

    peak = surface[number, y, x]
    down = between(surface[number, (y - 1) % height, x], peak, surface[number, (y + 1) % height, x])
    right = between(surface[number, y, (x - 1) % width], peak, surface[number, y, (x + 1) % width])
    signed = (y + height // 2) % height - height // 2, (x + width // 2) % width - width // 2
    return np.stack([signed[0] + down, signed[1] + right], axis=1)


def _path(way: Floats, *, whole: bool = True) -> Path:
    """A way in pixels as it is told, 0 in the middle frame, by whole pixels or by eighths."""
    way = way - way[len(way) // 2]
    return (PARTS * np.rint(way) if whole else np.rint(PARTS * way)).astype(np.int16)


def _too_far(way: Floats, height: int, width: int) -> bool:
    """Whether a way leads further than half a picture from the middle frame, or nowhere that can be told."""
    distance = np.abs(way - way[len(way) // 2])
    return not bool((distance <= (height // 2 - MARGIN, width // 2 - MARGIN)).all())


def _refined(way: Floats, green: Uint8, *, rounds: int) -> Floats:
    """The way in pixels that brings all frames (T, H, W, 1) closest to their mean: Gauss-Newton steps on each frame's
    shift. Pixels where something moves by itself count less."""
    height, width = green.shape[1:3]
    inside = np.s_[:, MARGIN : height - MARGIN : 2, MARGIN : width - MARGIN : 2]
    way = way - way[len(way) // 2]
    for _ in range(rounds):
        still = hold_still(green, _path(way, whole=False))[..., 0]
        mean = still.mean(axis=0, dtype=np.float32)
        slopes = np.stack([slope[None][inside][0] for slope in np.gradient(mean)])
        errors = still[inside].astype(np.float32) - mean[None][inside]
        weight = 1 / (np.einsum("thw,thw->hw", errors, errors) / len(errors) + FLOOR)
        pulls = slopes * weight
        matrix = np.einsum("ahw,bhw->ab", pulls, slopes)  # no matrix product: NumPy's threads would go on spinning
        matrix += (1e-3 * np.trace(matrix) + 1e-9) * np.eye(2)
        forces = np.einsum("ahw,thw->ta", pulls, errors)
        way = way - np.clip(np.linalg.solve(matrix, forces.T).T, -1, 1)
    return way


def _restlessness(pictures: Uint8) -> float:
    """Natural log of what happens along time in pictures (T, H, W, 1): energy around each pixel's mean, mean of its log
    over blocks, plus change from picture to picture."""
    count, height, width, _ = pictures.shape
    rows, columns = height // BLOCK, width // BLOCK
    values = pictures[:, : rows * BLOCK : 2, : columns * BLOCK, 0].astype(np.float32)
    change = np.abs(values[1:] - values[:-1]).mean()
    mean = values.mean(axis=0)
    energy = np.einsum("thw,thw->hw", values, values) / count - mean * mean
    blocks = energy.reshape(rows, BLOCK // 2, columns, BLOCK).mean(axis=(1, 3))
    return float(np.log(np.maximum(blocks, 0) + FLOOR).mean() + np.log(change + 1e-3))
