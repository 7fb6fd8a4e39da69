"""A moving camera, taken out of a clip before it is encoded and put back after it is decoded.

Latents of a column describe what one place of the picture does over a clip. What a pan moves through the picture is
new in every column, although nothing happened. So a clip whose camera moves is turned, frame by frame, until its scene
stands still; what leaves at one edge comes in at the opposite one, so nothing is lost and the way back is exact. The
way of the camera, two whole numbers a frame, goes with the latents.

The way is found by phase correlation of frames that follow each other (Kuglin & Hines, "The phase correlation image
alignment method", 1975) and then refined against the mean of the frames. It is used only where it pays: energies along
time must fall.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["camera_path", "follow", "hold_still"]

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Floats = npt.NDArray[np.floating]
Path = npt.NDArray[np.int16]
Value = TypeVar("Value", bound=np.generic)

LOOKED_AT = 64  # pixels of the longer side of the pictures that are correlated
LEAST_SIDE, LEAST_FRAMES = 64, 3  # of a clip that is looked at: below, a scene and its edges cannot be told apart
BLUR = 0.5  # variance in pixels² of the peak that a shift is read from
MARGIN = 8  # pixels at the edges that refining leaves out: they hold what came in at the other side
ROUNDS = 2
BLOCK = 16
FLOOR = 4.0  # levels²: energy of a block that is noise anyway
# natural log, of the energy along time (mean over blocks) and of the change from frame to frame together: over 84 real
# clips, no way that saves as much costs more than 0.1 dB, and most ways that save less cost
LEAST_GAIN = 0.25


def camera_path(frames: Uint8) -> Path | None:
    """Where the scene is in each frame of a clip, (T, 2) rows and columns (down and right), 0 in the middle frame; None
    where the camera does not move, or following it would not pay.

    frames: (T, H, W, 3). At most half a picture away.
    """
    count, height, width, _ = frames.shape
    if count < LEAST_FRAMES or min(height, width) < LEAST_SIDE:
        return None
    green = np.ascontiguousarray(frames[..., 1])
    step = max(1, round(max(height, width) / LOOKED_AT))
    path = _rounded(step * _steps(_shrunk(green, step)), height, width)
    if path is None:
        return None
    before = _restlessness(green)
    still = hold_still(green, path)
    if _restlessness(still) > before:  # refining finds whole pixels, not another way
        return None
    path = _refined(path, still.astype(np.float32))
    path -= path[count // 2]
    return path if path.any() and _restlessness(hold_still(green, path)) < before - LEAST_GAIN else None


def hold_still(frames: npt.NDArray[Value], path: Path) -> npt.NDArray[Value]:
    """Frames (T, H, W, …) turned so that the scene stays where it is in the middle frame."""
    return _rolled(frames, -path.astype(np.int64))


def follow(frames: npt.NDArray[Value], path: Path) -> npt.NDArray[Value]:
    """Inverse of `hold_still`."""
    return _rolled(frames, path.astype(np.int64))


def _rolled(frames: npt.NDArray[Value], shifts: npt.NDArray[np.int64]) -> npt.NDArray[Value]:
    """Each frame by its own shift (T, 2), around the edges."""
    out = np.empty_like(frames)
    for target, frame, (down, right) in zip(out, frames, shifts.tolist(), strict=True):
        target[:] = np.roll(frame, (down, right), (0, 1))
    return out


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


def _rounded(steps: Floats, height: int, width: int) -> Path | None:
    """The way of whole pixels, 0 in the middle frame; None where that is no way, or goes too far."""
    way = np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    way = np.rint(way - way[len(way) // 2])
    if not way.any() or (np.abs(way) > np.array([height // 2 - MARGIN, width // 2 - MARGIN])).any():
        return None
    return way.astype(np.int16)


def _refined(path: Path, still: Float32) -> Path:
    """The way, each frame moved by up to one pixel a round to where it is closest to the mean of all others.

    still: (T, H, W) as `path` holds them, changed.
    """
    path, total = path.copy(), still.sum(axis=0)
    count, height, width = still.shape
    inside = np.s_[MARGIN : height - MARGIN : 2, MARGIN : width - MARGIN]
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    for _ in range(ROUNDS):
        moved = False
        for number in range(count):
            others = ((total - still[number]) / (count - 1))[inside]
            errors = []
            for down, right in shifts:
                rows = slice(MARGIN + down, height - MARGIN + down, 2)
                difference = still[number, rows, MARGIN + right : width - MARGIN + right] - others
                errors.append(float(np.vdot(difference, difference)))
            best = shifts[int(np.argmin(errors))]
            if best != (0, 0):
                turned = np.roll(still[number], (-best[0], -best[1]), (0, 1))
                total += turned - still[number]
                still[number], moved = turned, True
                path[number] += np.array(best, np.int16)
        if not moved:
            break
    return path


def _restlessness(pictures: npt.NDArray[np.generic]) -> float:
    """Natural log of what happens along time in pictures (T, H, W): energy around each pixel's mean, mean of its log
    over blocks, plus change from picture to picture."""
    count, height, width = pictures.shape
    rows, columns = height // BLOCK, width // BLOCK
    values = pictures[:, : rows * BLOCK : 2, : columns * BLOCK].astype(np.float32)
    change = np.abs(values[1:] - values[:-1]).mean()
    mean = values.mean(axis=0)
    energy = np.einsum("thw,thw->hw", values, values) / count - mean * mean
    blocks = energy.reshape(rows, BLOCK // 2, columns, BLOCK).mean(axis=(1, 3))
    return float(np.log(np.maximum(blocks, 0) + FLOOR).mean() + np.log(change + 1e-3))
