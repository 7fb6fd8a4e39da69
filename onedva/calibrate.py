"""The length policy's one number, from training clips: the detail level that spends a given mean number of latents.

One level for all clips means every latent, wherever it sits, buys at least about the same error (equal slopes), which
is what spends fewest latents for a given pooled error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onedva.config import OneDVAConfig
from onedva.data import Clip, centre_clip
from onedva_runtime import placement

MEAN_SHARE = 0.25  # of the longest sequence, over the training clips


def calibrate_density(clips: Sequence[Clip], config: OneDVAConfig) -> float:
    """The `policy_density` at which `tokens="auto"` spends a quarter of the longest length on average over `clips`.

    Bisection over 17×256×256 centre crops; deterministic.
    """
    side = min(256, *(size // 16 * 16 for clip in clips for size in clip.frames.shape[1:3]))
    details = [placement.detail_map(centre_clip(clip, frames=config.clip_frames, size=side)) for clip in clips]
    most = min(config.queries, config.trained_tokens)
    grid = placement.grid_of(config.clip_frames, side, side)
    wanted = MEAN_SHARE * placement.longest(grid, max_tokens=most)
    low, high = 0.0, 255.0**2 * 3
    for _ in range(40):
        density = (low + high) / 2
        tokens = [placement.choose_tokens(detail, density=density, max_tokens=most) for detail in details]
        low, high = (density, high) if np.mean(tokens) > wanted else (low, density)
    return round(high, 2)
