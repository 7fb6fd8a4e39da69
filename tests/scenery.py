"""Pictures with detail of several sizes, and films of cameras that move over them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.warp import Camera, follow

Frames = NDArray[np.uint8]


def scenery(height: int, width: int, *, seed: int = 0) -> Frames:
    """A picture (H, W, 3) with detail of several sizes."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for size in (4, 8, 32):
        coarse = np.kron(random.normal(size=(height // size + 3, width // size + 3, 3)), np.ones((size, size, 1)))
        for axis in (0, 1):  # from blocks to slopes
            coarse = np.mean([np.roll(coarse, shift, axis) for shift in range(size)], axis=0)
        picture += size**0.5 * coarse[size : size + height, size : size + width]
    return np.clip(128 + 16 * picture, 0, 255).astype(np.uint8)


def pan(frames: int = 17, height: int = 128, width: int = 160, *, down: float = 1.5, right: float = -2.5) -> Frames:
    """The scene moves by so many pixels a frame, in whole ones: (T, H, W, 3)."""
    way = np.rint(np.arange(frames)[:, None] * (down, right)).astype(int)
    margin = np.abs(way).max()
    picture = scenery(height + 2 * margin, width + 2 * margin)
    return np.stack([picture[margin - y : margin - y + height, margin - x : margin - x + width] for y, x in way])


def filmed(path: NDArray[np.int16], height: int = 128, width: int = 160) -> Frames:
    """A still scene as a camera sees it that moves along a path (T, 4): (T, H, W, 3)."""
    return follow(np.repeat(scenery(height, width)[None], len(path), axis=0), Camera(path))
