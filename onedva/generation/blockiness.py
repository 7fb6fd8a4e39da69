"""Blockiness: how much more a video changes across the edges of patches than inside them.

What post-training is to lower. Real video has its edges anywhere, so its ratio is about 1; a decoder that draws patch
by patch leaves more at every 16th pixel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onedva_runtime.placement import PATCH_SIZE

__all__ = ["edge_excess"]


def edge_excess(frames: NDArray[np.uint8]) -> float:
    """Energy of differences across the edges of patches over that of all others, less 1: 0 means no blocks to be seen.

    frames: (B, T, H, W, 3) uint8, sides of at least 32. Differences are third ones, x₋₂ − 3x₋₁ + 3x₀ − x₁, so that a
    slope that goes on across an edge counts as none. The mean of both axes. Raises ValueError for smaller frames.
    """
    values = frames.astype(np.float32)
    ratios = []
    for axis in (2, 3):
        size = values.shape[axis]
        if size < 2 * PATCH_SIZE:
            raise ValueError(f"frames need at least two patches along both sides, got {frames.shape}")
        third = np.square(np.diff(values, n=3, axis=axis)).mean(axis=tuple(set(range(5)) - {axis}))  # (size − 3,)
        edge = (np.arange(len(third)) + 2) % PATCH_SIZE == 0  # the middle pair of the four stands astride an edge
        ratios.append(third[edge].mean() / third[~edge].mean())
    return float(np.mean(ratios) - 1)
