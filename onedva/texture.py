"""Texture: how unlike the small patches of two sets of videos are, whatever their place, at every scale.

The sliced Wasserstein distance of 7×7 patches of Laplacian pyramid levels: Karras, Aila, Laine, Lehtinen, "Progressive
Growing of GANs", 2018, §5. A blurred video lacks what the finest level holds and is far in it, where PSNR would call it
near. Two readings: as published, patches of each set are normalised by their own mean and deviation per channel, which
compares the shapes of texture alone; normalised both by the source's, a level with too little contrast is far too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Normalise = Literal["source", "own"]
PATCH = 7
SMALLEST = 16  # pixels: sides of the coarsest level


def patches_by_level(frames: NDArray[np.uint8], *, count: int, seed: int) -> list[NDArray[np.float32]]:
    """`count` patches at random places of random frames of one video, from every level, finest first.

    frames: (T, H, W, 3) uint8. The places depend on the seed and the size only, so two videos of one size are seen at
    the same ones. Returns (count, 7·7, 3) each, in levels of 255.
    """
    random = np.random.default_rng(seed)
    found = []
    for level in laplacian_pyramid(torch.from_numpy(frames).permute(0, 3, 1, 2).float()):
        total, _, height, width = level.shape
        which = random.integers(0, total, size=(count, 1, 1))
        y = random.integers(0, height - PATCH + 1, size=(count, 1, 1)) + np.arange(PATCH)[:, None]
        x = random.integers(0, width - PATCH + 1, size=(count, 1, 1)) + np.arange(PATCH)
        patches = level.permute(0, 2, 3, 1).numpy()[which, y, x]  # (count, 7, 7, 3)
        found.append(patches.reshape(count, PATCH * PATCH, 3))
    return found


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """images (N, C, H, W) float → details of every scale, finest first, and last what is left of the image, at least
    16 pixels a side. Sides of the levels halve, rounded up."""
    levels = []
    while (min(images.shape[2:]) + 1) // 2 >= SMALLEST:
        smaller = blur(images)[:, :, ::2, ::2]
        levels.append(images - expand(smaller, (images.shape[2], images.shape[3])))
        images = smaller
    return [*levels, images]


def expand(images: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) → (N, C, *size), every second pixel given and those between interpolated."""
    spread = images.new_zeros(*images.shape[:2], *size)
    spread[:, :, ::2, ::2] = images
    return 4 * blur(spread)


def blur(images: Tensor) -> Tensor:
    """(N, C, H, W) weighted by the binomial 1 4 6 4 1 along both sides; edges mirror."""
    height, width = images.shape[2:]
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    # sums of shifted copies: a convolution of single channels takes four times as long on a CPU
    images = weighted_sum(images[..., shift : shift + width] for shift in range(5))
    return weighted_sum(images[..., shift : shift + height, :] for shift in range(5))


def weighted_sum(shifted: Iterable[Tensor]) -> Tensor:
    outer, near, middle, near_too, outer_too = shifted
    return (outer + outer_too).add_(near + near_too, alpha=4).add_(middle, alpha=6).div_(16)


def sliced_wasserstein(
    source: NDArray[np.float32],
    test: NDArray[np.float32],
    *,
    normalise: Normalise = "source",
    directions: int = 128,
    seed: int = 0,
) -> float:
    """Distance of two sets of patches: mean over random directions of the 1D Wasserstein distance along each, × 10³.

    source, test: (N, 49, 3), as many in both, in any order. normalise: both by the statistics of `source`, or each by
    its own. Zero for equal sets; deterministic given the seed. Raises ValueError for shapes that differ.
    """
    if source.shape != test.shape:
        raise ValueError(f"both sets must have one shape, got {source.shape} and {test.shape}")
    rulers = (source, source if normalise == "source" else test)
    one, other = (
        ((patches - ruler.mean(axis=(0, 1))) / (ruler.std(axis=(0, 1)) + 1e-8)).reshape(len(patches), -1)
        for patches, ruler in zip((source, test), rulers, strict=True)
    )
    random = np.random.default_rng(seed)
    along = random.standard_normal((one.shape[1], directions)).astype(np.float32)
    along /= np.linalg.norm(along, axis=0)
    return 1e3 * float(np.abs(np.sort(one @ along, axis=0) - np.sort(other @ along, axis=0)).mean())


def texture_distance(
    sources: Sequence[Sequence[NDArray[np.float32]]],
    tests: Sequence[Sequence[NDArray[np.float32]]],
    *,
    normalise: Normalise = "source",
    seed: int = 0,
) -> list[float]:
    """Distance per level, finest first, of the pooled patches of all videos: a `patches_by_level` of each in both."""
    pools = [[np.concatenate(level) for level in zip(*videos, strict=True)] for videos in (sources, tests)]
    return [sliced_wasserstein(one, other, normalise=normalise, seed=seed) for one, other in zip(*pools, strict=True)]
