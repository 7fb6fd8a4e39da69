"""What linear codes of the same size reach, to hold a model against (`onedva eval --floor`).

The *linear floor*: principal components of single patches for the structural latent, more of them where the detail map
puts a 1D latent. *PCA of the same total*: as many values per clip, but every patch keeps the same number of components.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from onedva.config import OneDVAConfig
from onedva.data import Clip, centre_clip
from onedva.evaluate import PSNR_CAP, Score, lengths_of
from onedva.linear_start import floor_error
from onedva.model import to_video
from onedva.patches import PatchPCA, patchify
from onedva.transform import FIRST_GROUP


def floor_scores(
    clips: Sequence[Clip], pca: PatchPCA, config: OneDVAConfig, *, tokens: Sequence[int], size: int = 256
) -> list[Score]:
    """The linear floor in the view of `evaluate`; it knows no steps, they count as one.

    pca: `config.structural_channels + config.latent_channels` components (`onedva.linear_start.fit_pca`).
    """
    structural = config.structural_channels
    scores = []
    for clip in clips:
        frames = centre_clip(clip, frames=config.clip_frames, size=size)
        for count in lengths_of(config, tokens, size=size):
            error = floor_error(frames, pca, tokens=count, structural_channels=structural)
            scores.append(Score(clip.name, count, 1, decibels(error)))
    return scores


def same_total_scores(
    clips: Sequence[Clip], pca: PatchPCA, config: OneDVAConfig, *, tokens: Sequence[int], size: int = 256
) -> list[Score]:
    """PCA of the same total number of values per clip as both latents have, in the view of `evaluate`."""
    scores = []
    for clip in clips:
        frames = centre_clip(clip, frames=config.clip_frames, size=size)
        errors = errors_by_components(frames, pca)
        positions = -(-len(frames) // 4) * (size // 16) ** 2
        for count in lengths_of(config, tokens, size=size):
            each = config.structural_channels + count * config.latent_channels / positions
            # a fraction is that share of the patches with one component more
            error = float(np.interp(each, np.arange(len(errors)), errors))
            scores.append(Score(clip.name, count, 1, decibels(error)))
    return scores


def errors_by_components(frames: NDArray[np.uint8], pca: PatchPCA) -> NDArray[np.float64]:
    """Mean squared error on [-1, 1] of a clip (T, H, W, 3) uint8 whose patches all keep their first 0, 1, … C
    components: (C + 1,)."""
    patches = patchify(to_video(torch.from_numpy(frames)[None]))[0] - pca.mean  # (Tg, Hg, Wg, 3072)
    energy, kept = patches.square().sum(-1), (patches @ pca.components.T).square()
    energy[0] *= FIRST_GROUP
    kept[0] *= FIRST_GROUP
    left = energy.double().sum() - torch.cat([torch.zeros(1), kept.flatten(0, 2).double().sum(0).cumsum(0)])
    return (left / frames.size).numpy()


def decibels(error: float) -> float:
    """PSNR of a mean squared error on [-1, 1], capped as `evaluate` caps it."""
    return min(10 * math.log10(4 / max(error, 1e-12)), PSNR_CAP)
