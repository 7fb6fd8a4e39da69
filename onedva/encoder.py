"""The encoder: patches and causal queries through one ViT to the structural grid and the 1D latents.

Nothing in it depends on how many queries there are: a query sees the video and the queries before it, so the first k
latents of a long sequence are the k latents of a short one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva.layers import (
    Block,
    ResolutionTokens,
    anchor_positions,
    grid_positions,
    init_transformer,
    norm,
    rope_rotations,
)
from onedva.patches import patchify
from onedva.transform import FIRST_GROUP, PatchTransform

INITIAL_LOGVAR = -7.0
ERROR_FLOOR = 1e-5  # MSE on the [-1, 1] scale that the error head does not go below: 56 dB


class EncoderOutput(NamedTuple):
    structural_mean: Tensor  # (B, Tg, Hg, Wg, Zs)
    structural_logvar: Tensor
    latents_mean: Tensor  # (B, K, Z)
    latents_logvar: Tensor
    predicted_error: Tensor  # (B, K) natural log of the MSE on the [-1, 1] scale once the first k + 1 latents are there


def gather_positions(values: Tensor, anchors: Tensor) -> Tensor:
    """values (B, N, C) at anchors (B, K) → (B, K, C)."""
    return torch.gather(values, 1, anchors[..., None].expand(-1, -1, values.shape[-1]))


class Encoder(nn.Module):
    def __init__(self, config: OneDVAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_in = nn.Linear(config.components if config.pca else PATCH_VALUES, width)
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.resolution = ResolutionTokens(width)
        self.blocks = nn.ModuleList(EncoderBlock(width, config.mlp_ratio) for _ in range(config.encoder_depth))
        self.norm = norm(width)
        self.structural_head = nn.Linear(width, 2 * config.structural_channels)
        self.latents_head = nn.Linear(width, 2 * config.latent_channels)
        self.error_head = nn.Linear(width, 1)
        if config.pca:
            self.coefficients_head = nn.Linear(width, config.components, bias=False)
        init_transformer(self, depth=config.encoder_depth)
        if config.pca:
            nn.init.zeros_(self.coefficients_head.weight)
        for head in (self.structural_head, self.latents_head, self.error_head):
            nn.init.zeros_(head.bias)
            if config.pca or head is self.error_head:
                nn.init.zeros_(head.weight)
        for head, size in (
            (self.structural_head, config.structural_channels),
            (self.latents_head, config.latent_channels),
        ):
            nn.init.zeros_(head.weight[size:])
            nn.init.constant_(head.bias[size:], INITIAL_LOGVAR)

    def forward(
        self, video: Tensor, resolution: Tensor, is_key: Tensor, anchors: Tensor, transform: PatchTransform | None
    ) -> EncoderOutput:
        """video (B, 3, T, H, W) in [-1, 1]; resolution (B, 4); is_key (B,) bool; anchors (B, K) int64.

        transform: the model's, where `config.pca`.
        """
        patches = patchify(video) if transform is None else transform.cut(video)
        return self.encode_patches(patches, resolution, is_key, anchors, transform)

    def encode_patches(
        self, patches: Tensor, resolution: Tensor, is_key: Tensor, anchors: Tensor, transform: PatchTransform | None
    ) -> EncoderOutput:
        """As `forward`, from patches (B, Tg, Hg, Wg, 3072)."""
        batch, groups, height, width, _ = patches.shape
        count = anchors.shape[1]
        flat = patches.reshape(batch, groups * height * width, PATCH_VALUES)

        coefficients = None
        if transform is None:
            embedded = self.patch_in(flat)  # (B, N, D)
        else:
            coefficients = transform.coefficients(flat)  # (B, N, R)
            embedded = self.patch_in(coefficients / transform.coefficient_std)
        # a query starts from the patch at its anchor: it need not first learn to look there
        queries = self.queries[:count] + gather_positions(embedded, anchors)  # (B, K, D)
        tokens = self.resolution(resolution, is_key).to(embedded.dtype)
        hidden = torch.cat([tokens, embedded], dim=1)  # (B, 5 + N, D)

        positions = grid_positions(groups, height, width, patches.device)
        hidden_rotations = rope_rotations(torch.cat([positions.new_zeros(tokens.shape[1], 3), positions]))[None]
        query_rotations = rope_rotations(anchor_positions(anchors, height, width))
        index = torch.arange(count, device=patches.device)
        causal = index[:, None] >= index[None, :]  # (K, K)
        mask = torch.cat([causal.new_ones(count, hidden.shape[1]), causal], dim=1)  # (K, 5 + N + K)
        for block in self.blocks:
            hidden, queries = block(hidden, queries, hidden_rotations, query_rotations, mask)

        hidden = self.norm(hidden)[:, tokens.shape[1] :].reshape(batch, groups, height, width, -1)
        queries = self.norm(queries)
        structural_mean, structural_logvar = self.structural_head(hidden).float().chunk(2, dim=-1)
        latents_mean, latents_logvar = self.latents_head(queries).float().chunk(2, dim=-1)
        error = self.error_head(queries.detach()).float()[..., 0]
        if transform is not None and coefficients is not None:
            # what the ViT adds goes in before the transform, where a channel means the same in every group
            added = self.coefficients_head(hidden).float() * transform.remainder_std
            coefficients = coefficients.reshape(*hidden.shape[:4], -1)
            structural, layers = transform.analyse(coefficients + added, is_key)
            layers = gather_positions(layers.flatten(1, 3), anchors)
            slot = transform.class_slot(groups, structural)[:, None, None]  # (Tg, 1, 1, Zs): not the ViT's to change
            structural_mean = structural_mean * (1 - slot) + structural
            structural_logvar = torch.where(slot > 0, INITIAL_LOGVAR, structural_logvar)
            latents_mean = latents_mean + layers
            error = error + linear_error(patches, structural, layers, anchors, is_key, transform)
        return EncoderOutput(structural_mean, structural_logvar, latents_mean, latents_logvar, error)


def linear_error(
    patches: Tensor, structural: Tensor, latents: Tensor, anchors: Tensor, is_key: Tensor, transform: PatchTransform
) -> Tensor:
    """log-MSE that the linear transform alone would leave after each prefix, (B, K): what the error head corrects.

    Energy of the patches less that of the structural latents, less the 1D latents' one after the other (Parseval).
    """
    groups, height, width = patches.shape[1:4]
    structural, latents = structural.detach().float(), latents.detach().float()
    first = torch.arange(groups, device=patches.device) == 0
    share = torch.where(first, torch.where(is_key[:, None], FIRST_GROUP, 0.0), 1.0)  # (B, Tg)
    energy = (patches.detach().float() - transform.mean).square().sum(dim=(2, 3, 4))  # (B, Tg)
    std = transform.tables(groups, is_key).std  # (B, Tg, Zs + Z)
    size = structural.shape[-1]
    kept = (structural * std[:, :, None, None, :size]).square().sum(dim=(1, 2, 3, 4))  # (B,)
    layer = anchors // (height * width)
    gain = (latents * gather_positions(std[..., size:], layer)).square().sum(-1)  # (B, K)
    left = ((share * energy).sum(1) - kept)[:, None] - torch.cumsum(gain, dim=1)
    values = PATCH_VALUES * height * width * share.sum(1, keepdim=True)
    return (left / values).clamp(min=ERROR_FLOOR).log()


class EncoderBlock(Block):
    """A block of two sequences: positions attend among themselves, queries to positions and earlier queries."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden: Tensor, queries: Tensor, hidden_rotations: Tensor, query_rotations: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = hidden.shape[1]
        query, key, value = self.attention.project(self.attention_norm(hidden), hidden_rotations)
        query_q, key_q, value_q = self.attention.project(self.attention_norm(queries), query_rotations)
        seen = self.attention(query, key, value)
        seen_q = self.attention(query_q, torch.cat([key, key_q], dim=2), torch.cat([value, value_q], dim=2), mask)
        both = torch.cat([hidden, queries], dim=1) + self.attention.out(torch.cat([seen, seen_q], dim=1))
        both = both + self.mlp(self.mlp_norm(both))
        return both[:, :count], both[:, count:]
