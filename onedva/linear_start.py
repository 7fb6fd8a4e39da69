"""What is best found in closed form, before and beside gradient steps: principal components of patches, and a linear
prediction of what they leave in a patch from the latents around it.

Both are least-squares fits on training clips. The principal components alone are the *linear floor* that training is
held against (`onedva eval --floor`); the neighbours are part of training, since they are not in the floor's channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from onedva.config import OneDVAConfig
from onedva.data import Clip
from onedva.model import OneDVA, to_video
from onedva.patches import PatchPCA, PatchStatistics, patchify
from onedva_runtime import placement

CROP = 256
RIDGE = 1e-2  # of the mean squared neighbour value per row; keeps rarely seen combinations near zero
ERROR_SCALE = 0.001  # MSE on [-1, 1] at which a crop's weight is half of its most
FIRST_GROUP = 0.25  # weight of group 0, whose four frames are one


def random_crops(clips: Sequence[Clip], *, frames: int, per_clip: int, seed: int) -> Iterator[Tensor]:
    """Crops of frames×256×256 (less of a smaller clip), `per_clip` of each, one by one: video (1, 3, T, H, W)."""
    random = np.random.default_rng(seed)
    for clip in clips:
        total, height, width, _ = clip.frames.shape
        tall, wide = (min(CROP, size // 16 * 16) for size in (height, width))
        for _ in range(per_clip):
            start = random.integers(0, total - frames + 1)
            top, left = random.integers(0, height - tall + 1), random.integers(0, width - wide + 1)
            crop = np.array(clip.frames[start : start + frames, top : top + tall, left : left + wide])
            yield to_video(torch.from_numpy(crop)[None])


def fit_pca(clips: Sequence[Clip], components: int, *, per_clip: int = 4, seed: int = 0) -> PatchPCA:
    """Principal components of the patches of random crops, the same number from every clip."""
    statistics = PatchStatistics()
    for video in random_crops(clips, frames=17, per_clip=per_clip, seed=seed):
        statistics.add(patchify(video))
    return statistics.pca(components)


def linear_model(config: OneDVAConfig, clips: Sequence[Clip]) -> OneDVA:
    """The linear floor as a model: principal components of `clips`, everything trained at zero."""
    torch.manual_seed(0)
    model = OneDVA(config)
    model.start_from_pca(fit_pca(clips, config.structural_channels + config.latent_channels))
    return model


def row_weights(left: Tensor, *, area: int) -> Tensor:
    """Weight of each position (N, 1) of a crop with errors `left` (N, 3072); `area` positions are group 0.

    PSNR is a logarithm: a crop counts by the share of its error that is removed, so one with little error weighs more.
    """
    weights = torch.ones(len(left), 1)
    weights[:area] = FIRST_GROUP
    return weights * (ERROR_SCALE / (left.square().mean() + ERROR_SCALE))


@torch.inference_mode()
def fit_neighbours(model: OneDVA, clips: Sequence[Clip], *, per_clip: int = 3, seed: int = 1) -> None:
    """Set `preview_neighbours` and `preview_out` of a model, in place, to the best linear prediction of rank
    `preview_rank` of what its other linear parts leave, over 1D lengths from none to all.

    Reduced-rank regression (Izenman 1975): ridge regression, then the strongest directions of what it predicts.
    """
    decoder, config = model.decoder, model.config
    random = np.random.default_rng(seed)
    products = targets = torch.zeros(0)
    for video in random_crops(clips, frames=config.clip_frames, per_clip=per_clip, seed=seed):
        grid = placement.grid_of(*video.shape[2:])
        z = model.encode(video, tokens=random_length(random, grid, config)).latent_dist.mode()
        count = z.latents.shape[1]
        anchors = z.anchors if count else z.anchors.new_zeros(1, 1)
        latents = z.latents if count else z.latents.new_zeros(1, 1, config.latent_channels)
        has_latents = torch.tensor([count > 0])
        placed = latents.new_zeros(1, grid[0] * grid[1] * grid[2], config.latent_channels)
        placed = placed.scatter_add(1, anchors[..., None].expand_as(latents), latents)
        near, sent = decoder.neighbourhood(z.structural, placed, anchors, has_latents, z.is_key)
        linear = decoder.structural_pca(z.structural.reshape(1, near.shape[1], -1)) + decoder.latents_pca(placed)
        left = patchify(video).reshape(linear.shape) - linear
        weights = row_weights(left[0], area=grid[1] * grid[2])
        rows = torch.cat([near, sent * near], dim=-1)[0]  # a position's own 1D latent changes what is left to predict
        if not products.numel():
            products, targets = torch.zeros(rows.shape[1], rows.shape[1]), torch.zeros(rows.shape[1], left.shape[2])
        products += rows.T @ (weights * rows)
        targets += rows.T @ (weights * left[0])
    products, targets = products.double(), targets.double()
    products += RIDGE * products.diagonal().mean() * torch.eye(len(products), dtype=torch.float64)
    solution = torch.linalg.solve(products, targets)  # (2 · neighbours, 3072)
    fitted = torch.linalg.cholesky(products).T @ solution  # the prediction in coordinates where rows are white
    energy, left_vectors = torch.linalg.eigh(fitted @ fitted.T)  # smaller than the 3072² of the other side
    energy, left_vectors = energy.flip(0)[: config.preview_rank], left_vectors.flip(1)[:, : config.preview_rank]
    directions = fitted.T @ left_vectors / energy.clamp(min=1e-12).sqrt()  # (3072, rank), orthonormal
    coefficients = (solution @ directions).float()
    always, where_sent = coefficients.chunk(2)
    decoder.preview_neighbours.weight.copy_(torch.cat([always, where_sent], dim=1).T)
    decoder.preview_out.weight.copy_(directions.float())


def random_length(random: np.random.Generator, grid: tuple[int, int, int], config: OneDVAConfig) -> int:
    """A number of 1D latents: none, a sixteenth, a quarter, half or all of what the clip can carry."""
    share = random.choice([0.0, 2.0**-4, 2.0**-2, 2.0**-1, 1.0], p=[0.25, 0.1, 0.2, 0.1, 0.35])
    return int(share * placement.longest(grid, max_tokens=config.trained_tokens))
