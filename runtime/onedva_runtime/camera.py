"""How the camera moves in a clip, so that its scene can be held still while it is encoded (`onedva_runtime.warp`).

Latents of a column describe what one place of the picture does over a clip. What a pan moves through the picture is new
in every column, although nothing happened. So a clip whose camera moves is drawn, frame by frame, onto a canvas on
which its scene stands still, and back from there after the decode. The path of the camera goes with the latents.

Paths are looked for from standing still and from phase correlation of frames that follow each other (Kuglin & Hines,
"The phase correlation image alignment method", 1975), and refined against the mean of the frames (Lucas & Kanade, "An
iterative image registration technique", 1981): an affine map of each frame, so that zoom, turn and shear are found,
too. One is used only where it pays: energies along time must fall.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from onedva_runtime.warp import (
    FEW_TAPS,
    LARGEST_SWING,
    PATH_NUMBERS,
    SWING,
    UNITS,
    Camera,
    draw,
    hold_still,
    scene_views,
    shrinkage,
)

__all__ = ["find_camera"]

Uint8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

LEAST_SIDE, LEAST_FRAMES = 64, 3  # of a clip that is looked at: below, a scene and its edges cannot be told apart
BLACK, EVEN = 24, 12  # levels: bars at an edge are below the one and vary by no more than the other
CORRELATED_AT, COARSE, FINE = 64, 128, 256  # pixels of the longer side of the pictures that are looked at
LEAST_PICTURE = 32  # pixels of their shorter side
LEAST_WAY = 0.08  # pixels that the edges of coarse pictures must move over the clip
FURTHEST = 0.4  # of a side that the scene may move from where it is in the middle frame
BLUR = 0.5  # variance in pixels² of the peak that a shift is read from
MARGIN = 4  # pixels at the edges that refining leaves out
ROUNDS, FEWER_ROUNDS = 3, 2  # of refining, on coarse and then on fine pictures, at most
SETTLED = 0.04  # pixels: steps below end it
LONGEST_STEP = 2.0  # pixels
BLOCK = 16
FLOOR = 4.0  # levels²: added to errors that weights are of
# Natural logs: of the energy along time and of squared changes from frame to frame, together, less what the scene loses
# of its area, and less the share of pixels that stood still, as titles do, and would move. So measured over 84 real
# clips, they tell whether a path pays, and about how much.
LEAST_GAIN = 0.12
SHRINKING = 5.5
SETTING_MOVING = 50.0
STILL, MOVING = 4.0, 100.0  # levels², energy of such a pixel before and after
NOISE = 1.0  # levels²: energies and changes below are noise anyway
ROOT = 0.25  # of energies whose mean is taken: most of a picture at rest counts for more than its liveliest part
DOUBTFUL = 0.93  # share of the area below which zoom and turn may be a foreground's: shifts alone are tried, too,
CAUTION = 0.3  # and taken if they are not worth less by this
LEAST_SHARE = 0.03  # of errors that a first step from standing still must promise to remove, or it is the last
LEAST_HOPE = 0.1  # what a path by correlation must save of the unrest before it is refined
LEAST_PROMISE = 0.02  # what following it must be worth in coarse pictures


class Unrest(NamedTuple):
    """What happens along time in pictures."""

    total: float
    """Natural log of the energy around each pixel's mean, over blocks, plus that of changes between pictures."""
    energy: Float32
    """That of every second pixel of every second row, levels²."""


def find_camera(frames: Uint8) -> Camera | None:
    """The camera of a clip (T, H, W, 3), its path 0 in the middle frame; None where it does not move, or following it
    would not pay."""
    count, height, width, _ = frames.shape
    if count < LEAST_FRAMES or min(height, width) < LEAST_SIDE:
        return None
    bars = _bars(frames[..., 1])
    top, bottom, left, right = bars
    green = frames[:, top : height - bottom, left : width - right, 1]
    if min(green.shape[1:]) < LEAST_SIDE:
        return None
    step, coarse_step = _step(green, FINE), _step(green, COARSE)
    moves = _found(_pictures(green, coarse_step), _correlated(green) / coarse_step)
    if moves is None:
        return None
    fine = _pictures(green, step)
    moves[:, :2] *= coarse_step / step
    moves = _refined(moves, fine, rounds=FEWER_ROUNDS)
    found, worth = _judged(moves, fine, _unrest(fine))
    if found is None or worth < LEAST_GAIN:
        return None
    path = found.path.astype(np.int64)
    path[:, :2] *= step
    return Camera(path.astype(np.int16), bars) if np.abs(path).max() <= np.iinfo(np.int16).max else None


def _found(pictures: Uint8, correlated: Float64) -> Float64 | None:
    """The moves (T, 6) of pictures (T, H, W, 1) that are worth most, found from standing still and from shifts by
    correlation; None where nothing moves, or none is worth anything."""
    before, best, found = _unrest(pictures), LEAST_PROMISE, None

    def look(start: Float64, *, numbers: int, least: float = 0.0, caution: float = 0.0) -> None:
        nonlocal best, found
        moves = _refined(start, pictures, rounds=ROUNDS, numbers=numbers, least=least)
        if _way(moves, pictures) < LEAST_WAY:
            return
        camera, worth = _judged(moves, pictures, before)
        if camera is not None and worth > best - caution:
            best, found = worth, moves

    look(np.zeros_like(correlated), numbers=PATH_NUMBERS, least=LEAST_SHARE)
    # correlation tells what is further away than slopes lead; a wrong start makes things worse, mostly by far
    near = found is not None and np.abs(found - correlated)[:, :2].max() < LONGEST_STEP / 2
    if near or not _usable(correlated, pictures):
        return found
    if _unrest(hold_still(pictures, _camera(correlated))).total > before.total - LEAST_HOPE:
        return found
    look(correlated, numbers=PATH_NUMBERS)
    if found is None:
        look(correlated, numbers=2)
    elif shrinkage(_camera(found), *pictures.shape[1:3]) < DOUBTFUL:
        look(correlated, numbers=2, caution=CAUTION)
    return found


def _judged(moves: Float64, pictures: Uint8, before: Unrest) -> tuple[Camera | None, float]:
    """The camera of pictures that moves so, and what it saves of the unrest `before`, less what it costs."""
    if not _usable(moves, pictures):
        return None, -np.inf
    camera = _camera(moves)
    after = _unrest(hold_still(pictures, camera))
    lost = float(np.log(shrinkage(camera, *pictures.shape[1:3])))
    set_moving = float(((before.energy < STILL) & (after.energy > MOVING)).mean())
    return camera, before.total - after.total + SHRINKING * lost - SETTING_MOVING * set_moving


def _step(frames: Uint8, side: int) -> int:
    """How many pixels of frames (T, H, W) become one in pictures whose longer side is about `side`, the shorter one at
    least LEAST_PICTURE."""
    return max(1, min(round(max(frames.shape[1:]) / side), min(frames.shape[1:]) // LEAST_PICTURE))


def _pictures(green: Uint8, step: int) -> Uint8:
    """Frames (T, H, W) made smaller: (T, H // step, W // step, 1)."""
    if step == 1:
        return np.ascontiguousarray(green[..., None])
    return np.rint(_shrunk(green, step)).astype(np.uint8)[..., None]


def _camera(moves: Float64) -> Camera:
    """The camera that moves (T, 6) are of, 0 in the middle frame."""
    return Camera(np.rint((moves - moves[len(moves) // 2]) * UNITS).astype(np.int16))


def _way(moves: Float64, pictures: Uint8) -> float:
    """How many pixels the edges of pictures move over a clip, at most."""
    reach = max(pictures.shape[1:3]) / 2
    return float(np.ptp(moves * (1, 1, *[reach] * 4), axis=0).max())


def _usable(moves: Float64, pictures: Uint8) -> bool:
    """Whether moves can be told, and leave enough of the scene in all frames."""
    height, width = pictures.shape[1:3]
    away = np.abs(moves - moves[len(moves) // 2])
    return bool((away <= (FURTHEST * height, FURTHEST * width, *[LARGEST_SWING / SWING] * 4)).all())


def _bars(pictures: Uint8) -> tuple[int, int, int, int]:
    """How many rows and columns at the top, bottom, left and right of pictures (T, H, W) are black all the time, and
    the one next to them, which has some of the picture; 0 where there are none."""
    _, height, width = pictures.shape
    widths = []
    for axis, length in ((1, height), (2, width)):
        for places in (range(length), range(length - 1, -1, -1)):
            black = 0
            for place in places:
                line = pictures.take(place, axis=axis)
                if line.max() > BLACK + EVEN or line.max() - line.min() > EVEN:
                    break
                black += 1
            widths.append(min(black + 1, length) if black else 0)
    return widths[0], widths[1], widths[2], widths[3]


def _correlated(green: Uint8) -> Float64:
    """Moves (T, 6) in pixels by phase correlation of small pictures of frames (T, H, W): shifts alone."""
    step = _step(green, CORRELATED_AT)
    moves = np.zeros((len(green), PATH_NUMBERS))
    moves[1:, :2] = step * np.cumsum(_steps(_shrunk(green, step)), axis=0)
    return moves - moves[len(moves) // 2]


def _shrunk(pictures: Uint8, step: int) -> Float32:
    """Means of step × step pixels: (T, H, W) → (T, H // step, W // step)."""
    _, height, width = pictures.shape
    rows, columns = height // step * step, width // step * step
    tall = pictures[:, 0:rows:step, :columns].astype(np.uint16 if step <= 257 else np.uint32)
    for start in range(1, step):
        tall += pictures[:, start:rows:step, :columns]
    wide = tall[:, :, ::step].astype(np.float32)
    for start in range(1, step):
        wide += tall[:, :, start::step]
    return wide / np.float32(step**2)


def _steps(pictures: Float32) -> Float64:
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

    def between(before: Float64, peak: Float64, after: Float64) -> Float64:
        """Top of the bell through three neighbours, from the middle one."""
        a, b, c = (np.log(np.maximum(value, 1e-9)) for value in (before, peak, after))
        return np.clip(0.5 * (a - c) / np.minimum(a - 2 * b + c, -1e-9), -0.5, 0.5)

    peak = surface[number, y, x]
    down = between(surface[number, (y - 1) % height, x], peak, surface[number, (y + 1) % height, x])
    right = between(surface[number, y, (x - 1) % width], peak, surface[number, y, (x + 1) % width])
    signed = (y + height // 2) % height - height // 2, (x + width // 2) % width - width // 2
    return np.stack([signed[0] + down, signed[1] + right], axis=1)


def _refined(
    moves: Float64, pictures: Uint8, *, rounds: int, numbers: int = PATH_NUMBERS, least: float = 0.0
) -> Float64:
    """The moves (T, 6) that bring all pictures (T, H, W, 1) closest to their mean: Gauss-Newton steps on each one's,
    or on the first `numbers` of them. Pixels where something moves by itself count less. It ends where a step promises
    to remove less than this share of the errors, `least`."""
    height, width = pictures.shape[1:3]
    inside = np.s_[MARGIN : height - MARGIN : 2, MARGIN : width - MARGIN : 2]
    reach = max(height, width) / 2
    units = np.array([1.0] * 2 + [reach] * 4)  # in which a step of any number is one of a pixel
    y, x = (
        np.ogrid[:height, :width][axis] / reach - (size - 1) / 2 / reach for axis, size in enumerate((height, width))
    )
    y, x = np.float32(y[inside[0]]), np.float32(x[:, inside[1]])
    for _ in range(rounds):
        moves = moves - moves[len(moves) // 2]
        still = pictures
        if moves.any():
            still = draw(pictures, scene_views(moves, height, width), np.ones(2), taps=FEW_TAPS)
        still = still[..., 0]
        mean = still.mean(axis=0, dtype=np.float32)
        down, right = (slope[inside] for slope in np.gradient(mean))
        slopes = np.stack([down, right, down * y, down * x, right * y, right * x][:numbers])
        errors = still[:, inside[0], inside[1]].astype(np.float32) - mean[inside]
        energy = np.einsum("thw,thw->hw", errors, errors)
        weight = 1 / (energy / len(errors) + FLOOR)
        pulls = slopes * weight
        matrix = np.einsum("ahw,bhw->ab", pulls, slopes)  # no matrix product: NumPy's threads would go on spinning
        matrix += (1e-3 * np.trace(matrix) / numbers + 1e-9) * np.eye(numbers)
        forces = np.einsum("ahw,thw->ta", pulls, errors)
        step = np.linalg.solve(matrix, forces.T).T
        if (forces * step).sum() < least * (energy * weight).sum():
            break
        step = np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        moves[:, :numbers] -= step / units[:numbers]
        if np.abs(step).max() < SETTLED:
            break
    return moves


def _unrest(pictures: Uint8) -> Unrest:
    """What happens along time in pictures (T, H, W, 1)."""
    count, height, width, _ = pictures.shape
    rows, columns = height // BLOCK, width // BLOCK
    values = pictures[:, : rows * BLOCK : 2, : columns * BLOCK : 2, 0].astype(np.float32)
    change = values[1:] - values[:-1]
    changed = np.einsum("thw,thw->", change, change) / change.size
    mean = values.mean(axis=0)
    energy = np.maximum(np.einsum("thw,thw->hw", values, values) / count - mean * mean, 0)
    blocks = energy.reshape(rows, BLOCK // 2, columns, BLOCK // 2).mean(axis=(1, 3))
    along_time = ((blocks + NOISE) ** ROOT).mean()
    return Unrest(float(np.log(along_time) / ROOT + np.log(changed + NOISE)), energy)
