"""The linear codec inside the model: principal components of patches, then of columns of patches through time.

A patch (4×16×16×3) becomes its strongest principal components, *coefficients*. What stands still appears in every group
of a clip, so the coefficients of one grid column (all groups at one y, x) are decorrelated once more, along time: the
strongest directions of a column are its structural latents, spread over the groups, and the next ones its 1D latents, a
*layer* of them at a time. So a 1D latent's anchor (t, y, x) names layer t of column (y, x).

Directions depend on how many groups a clip codes and on its kind, so there is a table of them for each. Both steps are
orthogonal (Karhunen-Loève transforms); the same numbers analyse in the encoder and synthesise in the decoder.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva_runtime.placement import PATCH_FRAMES

FIRST_GROUP = 0.25  # share of a real group that group 0 has: one frame, repeated four times


class PatchTransform(nn.Module):
    """Patches ↔ coefficients ↔ normalised latents; everything linear. Set by `onedva.linear_start.fit_transform`."""

    mean: Tensor
    coefficient_std: Tensor
    remainder_std: Tensor
    latent_std: Tensor

    def __init__(self, config: OneDVAConfig) -> None:
        super().__init__()
        self.structural_channels = config.structural_channels
        self.channels = config.structural_channels + config.latent_channels
        self.components = config.components
        self.max_groups = 1 + (config.clip_frames - 1) // PATCH_FRAMES
        key = range(1, self.max_groups + 1)  # groups that a key clip codes; a continuation clip codes one fewer
        continued = range(1, self.max_groups)
        self.key_blocks, self.key_rows = sum(n * n for n in key), sum(key)
        blocks, rows = self.key_blocks + sum(n * n for n in continued), self.key_rows + sum(continued)
        self.basis = nn.Parameter(torch.empty(config.components, PATCH_VALUES))  # orthonormal rows
        self.directions = nn.Parameter(torch.zeros(blocks, self.channels, config.components))
        self.register_buffer("mean", torch.zeros(PATCH_VALUES))
        self.register_buffer("coefficient_std", torch.ones(config.components))
        self.register_buffer("remainder_std", torch.ones(config.components))  # of what latents leave of coefficients
        self.register_buffer("latent_std", torch.ones(rows, self.channels))
        nn.init.orthogonal_(self.basis)

    def start_random(self) -> None:
        """Random directions, for a model that is to learn its transform: zeros would give it no gradient."""
        nn.init.normal_(self.directions, std=(self.max_groups * self.components) ** -0.5)

    def coefficients(self, patches: Tensor) -> Tensor:
        """(…, 3072) → (…, R). float32 throughout: what the components leave is a hundredth of what they hold."""
        with torch.autocast(patches.device.type, enabled=False):
            return (patches.float() - self.mean) @ self.basis.T

    def patches(self, coefficients: Tensor) -> Tensor:
        """Inverse of `coefficients` within the span of the basis: (…, R) → (…, 3072)."""
        rows = coefficients.flatten(0, -2)  # of a strided tensor, PyTorch would multiply position by position
        patches = torch.nn.functional.linear(rows, self.basis.T, self.mean.to(rows.dtype))
        return patches.reshape(*coefficients.shape[:-1], PATCH_VALUES)

    def first_frame(self, coefficients: Tensor) -> Tensor:
        """Frame 0 of `patches` of a first group, its four outputs averaged: (…, R) → (…, 768)."""
        basis = self.basis.unflatten(1, (PATCH_FRAMES, -1)).mean(dim=1)
        mean = self.mean.unflatten(0, (PATCH_FRAMES, -1)).mean(dim=0)
        return coefficients @ basis + mean

    def of_first_frame(self, values: Tensor) -> Tensor:
        """Coefficients of a group that is one frame four times, without the mean: (…, 768) → (…, R)."""
        return values @ self.basis.unflatten(1, (PATCH_FRAMES, -1)).sum(dim=1).T

    def analyse(self, coefficients: Tensor, is_key: Tensor) -> tuple[Tensor, Tensor]:
        """coefficients (B, Tg, Hg, Wg, R) → structural (B, Tg, Hg, Wg, Zs) and layers of latents (B, Tg, Hg, Wg, Z).

        Unit variance over the clips the directions were fit on; zeros in group 0 of a continuation clip.
        """
        groups, height, width = coefficients.shape[1:4]
        with torch.autocast(coefficients.device.type, enabled=False):
            directions, std, weight = self.tables(groups, is_key)
            columns = rearrange(coefficients.float() * weight, "b t h w r -> b (h w) (t r)")
            normal = columns @ directions.transpose(1, 2) / std.flatten(1)[:, None]  # (B, P, Tg·C)
        normal = rearrange(normal, "b (h w) (t c) -> b t h w c", t=groups, h=height, w=width)
        return normal[..., : self.structural_channels], normal[..., self.structural_channels :]

    def synthesise(self, structural: Tensor, layers: Tensor, is_key: Tensor) -> Tensor:
        """Inverse of `analyse`: → coefficients (B, Tg, Hg, Wg, R). Latents that were not sent are zeros in `layers`."""
        groups, height, width = structural.shape[1:4]
        with torch.autocast(structural.device.type, enabled=False):
            directions, std, weight = self.tables(groups, is_key)
            normal = torch.cat([structural.float(), layers.float()], dim=-1)
            columns = rearrange(normal * std[:, :, None, None], "b t h w c -> b (h w) (t c)") @ directions
            shape = {"t": groups, "h": height, "w": width}
            return rearrange(columns, "b (h w) (t r) -> b t h w r", **shape) / weight

    def tables(self, groups: int, is_key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions (B, Tg·C, Tg·R), standard deviations (B, Tg, C) and group weights (B, Tg, 1, 1, 1) of each clip.

        Rows and columns of a continuation clip's group 0 are zero. Arithmetic on tensors only: exported graphs run it.
        Raises ValueError for more groups than the longest clip has: they would index the tables of another size.
        """
        if groups > self.max_groups:
            raise ValueError(f"there are directions for up to {self.max_groups} groups of frames, got {groups}")
        i = torch.arange(groups, device=is_key.device)
        smaller = torch.arange(self.max_groups, device=is_key.device)  # all possible sizes of smaller tables
        key, continued = smaller * (smaller < groups), smaller * (smaller < groups - 1)
        blocks = key.square().sum() + i[:, None] * groups + i
        after = continued.square().sum() + self.key_blocks + (i[:, None] - 1) * (groups - 1) + i - 1
        coded = (i > 0) | is_key[:, None]  # (B, Tg)
        both = coded[:, :, None] & coded[:, None, :]  # (B, Tg, Tg)
        blocks = torch.where(is_key[:, None, None], blocks, after) * both
        directions = self.directions[blocks] * both[..., None, None]  # (B, Tg, Tg, C, R)
        rows = torch.where(is_key[:, None], key.sum() + i, continued.sum() + self.key_rows + i - 1) * coded
        first = (i == 0) & is_key[:, None]
        weight = torch.where(first, FIRST_GROUP**0.5, 1.0)[:, :, None, None, None]
        return rearrange(directions, "b i j c r -> b (i c) (j r)"), self.latent_std[rows], weight
