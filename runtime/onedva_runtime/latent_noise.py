"""What generation needs beside a graph: the noise latents start from, and where generated anchors come to lie.

Both are pure functions that training, PyTorch and the runtime share, so one seed generates one clip everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from onedva_runtime.noise import CHANNELS, gaussian
from onedva_runtime.packet import FRAME_NUMBERS

__all__ = ["latent_noise", "snap_anchors"]

PLANE = FRAME_NUMBERS - 1  # a frame number that no decode reaches: latents and pixels never share noise
SEQUENCE = 2**31  # first row of the 1D latents; the structural latent's positions have those before
COORDINATE_SCALE = 3**0.5  # of places spread evenly over [-1, 1]: gives them unit variance


def latent_noise(
    seed: int, grid: tuple[int, int, int], structural_channels: int, tokens: int, sequence_channels: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Standard normal noise of one clip's latents: structural (Tg, Hg, Wg, Zs) and sequence (tokens, Z).

    A pure function of (seed, position, channel): another number of tokens changes nothing of the rest. seed: 0 to
    2**64 - 1. tokens: at least 1.
    """

    def rows(first: int, count: int, channels: int) -> npt.NDArray[np.float32]:
        width = -(-channels // CHANNELS)
        box = gaussian(seed, first_frame=PLANE, frames=1, top=first, height=count, width=width)  # (3, 1, rows, width)
        return box[:, 0].transpose(1, 2, 0).reshape(count, width * CHANNELS)[:, :channels].copy()

    positions = grid[0] * grid[1] * grid[2]
    return rows(0, positions, structural_channels).reshape(*grid, -1), rows(SEQUENCE, tokens, sequence_channels)


def snap_anchors(
    coordinates: npt.NDArray[np.float32], grid: tuple[int, int, int], *, is_key: bool = True
) -> npt.NDArray[np.int64]:
    """The grid indices (K,) that generated coordinates (K, 3) mean: each the nearest coded position still free.

    coordinates: t, y, x as training gave them, unit variance. Latents take their places in order: the first matter
    most. Distances are in positions, equal ones go to the smaller index. K is at most the number of coded positions.
    """
    groups, height, width = grid
    sizes = np.array(grid, np.float32)
    wanted = (coordinates / np.float32(COORDINATE_SCALE) + 1) / 2 * sizes - np.float32(0.5)  # (K, 3)
    index = np.arange(groups * height * width)
    places = np.stack([index // (height * width), index // width % height, index % width], axis=1).astype(np.float32)
    taken = np.zeros(len(index), np.bool_)
    taken[: 0 if is_key else height * width] = True  # a continuation clip codes no group 0
    anchors = np.zeros(len(wanted), np.int64)
    for latent, point in enumerate(wanted):
        distance = np.square(places - point).sum(axis=1)
        distance[taken] = np.inf
        anchors[latent] = distance.argmin()
        taken[anchors[latent]] = True
    return anchors
