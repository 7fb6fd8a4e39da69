"""A class-conditional set that the project makes itself: a textured shape before a textured ground, eight classes.

    onedva scenes -o scenes/ --per-class 400 --size 64

Palettes and textures are drawn from the same few for every class, so only how things move, or which shape they have,
tells a class: no single frame of six of the eight, and no colour, gives it away.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onedva.sources import MANIFEST
from onedva_runtime.errors import OneDVAError
from onedva_runtime.files import AtomicFile
from onedva_runtime.video_io import VideoWriter

__all__ = ["CLASSES", "make_scene", "write_scenes"]

CLASSES = ("cross", "orbit", "pulse", "ring", "rise", "scroll", "slide", "spin")
FPS = Fraction(24)
PERIOD = 16  # frames in which a motion runs its course; longer clips go on at the same speed
TRAVEL = 0.5  # of the side, that slide, rise and scroll move in a period
PALETTES = np.array(  # ground dark and light, shape dark and light; RGB
    [
        [[28, 40, 74], [58, 84, 132], [226, 160, 64], [248, 214, 140]],
        [[60, 34, 52], [112, 66, 92], [120, 190, 160], [200, 236, 214]],
        [[32, 60, 50], [70, 112, 90], [214, 92, 80], [244, 170, 150]],
        [[84, 74, 60], [140, 126, 104], [70, 96, 190], [160, 184, 240]],
        [[40, 40, 44], [92, 92, 98], [212, 204, 90], [246, 242, 188]],
        [[190, 182, 168], [228, 222, 210], [90, 52, 110], [160, 116, 186]],
    ],
    np.float32,
)
Plane = NDArray[np.floating]


def make_scene(kind: str, *, seed: int, frames: int = 17, size: int = 64) -> NDArray[np.uint8]:
    """One clip of a class, (frames, size, size, 3) uint8 RGB; the same arguments give the same clip.

    kind: one of `CLASSES`. seed: ≥ 0. frames: ≥ 1. size: side in pixels, ≥ 16. Raises ValueError for others.
    """
    if kind not in CLASSES:
        raise ValueError(f"unknown class {kind!r}; choose from {', '.join(CLASSES)}")
    if frames < 1 or size < 16:
        raise ValueError(f"a scene has at least 1 frame and 16 pixels a side, got {frames} and {size}")
    random = np.random.default_rng([seed, CLASSES.index(kind)])
    palette = PALETTES[random.integers(len(PALETTES))]
    phase = np.arange(frames, dtype=np.float32)[:, None, None] / PERIOD
    y, x = np.meshgrid(*[(np.arange(size, dtype=np.float32) + 0.5) / size] * 2, indexing="ij")

    shape = kind if kind in ("ring", "cross") else str(random.choice(["disk", "square"]))
    radius = random.uniform(0.17, 0.23)
    centre = random.uniform(0.36, 0.64, 2).astype(np.float32)
    turn, scale, scrolled = random.uniform(0, 2 * np.pi), 1.0, 0.0
    sign = float(random.choice([-1, 1]))
    at_y, at_x = centre[0] + 0 * phase, centre[1] + 0 * phase  # (T, 1, 1)
    if kind in ("slide", "rise"):
        moved = 0.5 + sign * TRAVEL * (phase - 0.5)
        at_y, at_x = (moved, at_x) if kind == "rise" else (at_y, moved)
    elif kind == "orbit":
        angle = random.uniform(0, 2 * np.pi) + sign * 1.5 * np.pi * phase
        at_y, at_x = 0.5 + 0.24 * np.sin(angle), 0.5 + 0.24 * np.cos(angle)
    elif kind == "spin":
        turn = turn + sign * np.pi * phase
    elif kind == "pulse":
        scale = 1 + sign * 0.4 * np.sin(2 * np.pi * phase)
    elif kind == "scroll":
        scrolled = sign * TRAVEL * phase

    behind = _paint(random, palette[:2], y, x, moved=scrolled)
    across, along = x - at_x, y - at_y
    u = (across * np.cos(turn) + along * np.sin(turn)) / scale  # of the shape's own plane
    v = (along * np.cos(turn) - across * np.sin(turn)) / scale
    front = _paint(random, palette[2:], v, u)
    cover = np.clip(0.5 - _distance(shape, u, v, radius) * scale * size, 0, 1)[..., None]  # edges one pixel wide
    video = behind + cover * (front - behind)
    return np.ascontiguousarray(np.broadcast_to(np.rint(video).clip(0, 255).astype(np.uint8), (frames, size, size, 3)))


def _paint(random: np.random.Generator, colours: Plane, y: Plane, x: Plane, *, moved: Plane | float = 0.0) -> Plane:
    """Stripes, checks or waves between two colours: positions (…) in sides of the picture → (…, 3).

    moved: how far the texture has moved across its stripes, since along them nobody would see it.
    """
    texture = random.choice(["stripes", "checks", "waves"])
    angle, length = random.uniform(0, np.pi), random.uniform(0.22, 0.36)
    offset = random.uniform(0, 2 * np.pi, 2)
    along = 2 * np.pi / length * (x * np.cos(angle) + y * np.sin(angle) + moved) + offset[0]
    across = 2 * np.pi / length * (y * np.cos(angle) - x * np.sin(angle)) + offset[1]
    if texture == "waves":
        along = along + 0.8 * np.sin(across)
    share = np.sin(along) * (np.sin(across) if texture == "checks" else 1)
    return colours[0] + (0.5 + 0.5 * share)[..., None].astype(np.float32) * (colours[1] - colours[0])


def _distance(shape: str, u: Plane, v: Plane, radius: float) -> Plane:
    """Signed distance to a shape's edge, below 0 inside; u, v and radius in sides of the picture."""
    if shape == "disk":
        return np.hypot(u, v) - radius
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 1.15 * radius) - 0.4 * radius
    square = np.maximum(np.abs(u), np.abs(v)) - 0.9 * radius
    if shape == "square":
        return square
    narrow, wide = 0.42 * radius, 1.35 * radius
    bar = np.maximum(np.abs(u) - narrow, np.abs(v) - wide)
    return np.minimum(bar, np.maximum(np.abs(v) - narrow, np.abs(u) - wide))


def write_scenes(
    folder: Path,
    *,
    per_class: int,
    dev_per_class: int = 0,
    frames: int = 17,
    size: int = 64,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> int:
    """Write videos CLASS/NNNNN.mp4 with a MANIFEST.csv (name, split, class); returns how many.

    dev_per_class: as many more of each class go to the split `dev`. advance: called with the number written. Raises
    FileExistsError for a folder that holds a manifest, ValueError for counts below 1, OneDVAError where writing fails.
    """
    if per_class < 1 or dev_per_class < 0:
        raise ValueError(f"per_class must be at least 1, dev_per_class at least 0; got {per_class}, {dev_per_class}")
    if (folder / MANIFEST).exists():
        raise FileExistsError(f"{folder} holds a set already: choose another folder")
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["name", "split", "class"])
    for kind, index in _members(per_class + dev_per_class):
        name = f"{kind}/{index:05d}.mp4"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        with VideoWriter(folder / name, width=size, height=size, fps=FPS, crf=4, overwrite=True) as video:
            video.write(make_scene(kind, seed=seed * 1_000_000 + index, frames=frames, size=size))
        writer.writerow([name, "train" if index < per_class else "dev", kind])
        advance(1)
    with AtomicFile(folder / MANIFEST, overwrite=False, error=OneDVAError) as manifest:  # last: its set is whole
        manifest.file.write(table.getvalue().encode())
        manifest.commit()
    return len(CLASSES) * (per_class + dev_per_class)


def _members(count: int) -> Iterator[tuple[str, int]]:
    """Class after class within each number, so that any part of the set from its beginning has all classes."""
    for index in range(count):
        for kind in CLASSES:
            yield kind, index
