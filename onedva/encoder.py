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
from onedva.patches import PatchPCA, patchify

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
    pca_mean: Tensor
    pca_variance: Tensor

    def __init__(self, config: OneDVAConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.width, config.structural_channels + config.latent_channels
        self.patch_in = nn.Linear(PATCH_VALUES, width)
        self.queries = nn.Parameter(torch.randn(config.queries, width) * 0.02)
        self.resolution = ResolutionTokens(width)
        self.blocks = nn.ModuleList(EncoderBlock(width, config.mlp_ratio) for _ in range(config.encoder_depth))
        self.norm = norm(width)
        self.structural_head = nn.Linear(width, 2 * config.structural_channels)
        self.latents_head = nn.Linear(width, 2 * config.latent_channels)
        self.error_head = nn.Linear(width, 1)
        init_transformer(self, depth=config.encoder_depth)
        if config.pca:
            self.pca = nn.Linear(PATCH_VALUES, channels)
            nn.init.zeros_(self.pca.weight)
            nn.init.zeros_(self.pca.bias)
            self.register_buffer("pca_mean", torch.zeros(PATCH_VALUES))
            self.register_buffer("pca_variance", torch.zeros(channels))
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

    @torch.no_grad()
    def start_from_pca(self, pca: PatchPCA) -> None:
        """Set the linear start: latent = (patch − mean)·component / std."""
        weight = pca.components / pca.std[:, None]
        self.pca.weight.copy_(weight)
        self.pca.bias.copy_(-weight @ pca.mean)
        self.pca_mean.copy_(pca.mean)
        self.pca_variance.copy_(pca.std.square())

    def forward(self, video: Tensor, resolution: Tensor, is_key: Tensor, anchors: Tensor) -> EncoderOutput:
        """video (B, 3, T, H, W) in [-1, 1]; resolution (B, 4); is_key (B,) bool; anchors (B, K) int64."""
        patches = patchify(video)  # (B, Tg, Hg, Wg, 3072)
        batch, groups, height, width, _ = patches.shape
        count = anchors.shape[1]
        flat = patches.reshape(batch, groups * height * width, PATCH_VALUES)

        embedded = self.patch_in(flat)  # (B, N, D)
        # a query starts from the patch at its anchor: it need not first learn to look there
        queries = self.queries[:count] + gather_positions(embedded, anchors)  # (B, K, D)
        tokens = self.resolution(resolution, is_key).to(embedded.dtype)
        hidden = torch.cat([tokens, embedded], dim=1)  # (B, 5 + N, D)

        positions = grid_positions(groups, height, width, video.device)
        hidden_rotations = rope_rotations(torch.cat([positions.new_zeros(tokens.shape[1], 3), positions]))[None]
        query_rotations = rope_rotations(anchor_positions(anchors, height, width))
        index = torch.arange(count, device=video.device)
        causal = index[:, None] >= index[None, :]  # (K, K)
        mask = torch.cat([causal.new_ones(count, hidden.shape[1]), causal], dim=1)  # (K, 5 + N + K)
        for block in self.blocks:
            hidden, queries = block(hidden, queries, hidden_rotations, query_rotations, mask)

        hidden = self.norm(hidden)[:, tokens.shape[1] :].reshape(batch, groups, height, width, -1)
        queries = self.norm(queries)
        structural_mean, structural_logvar = self.structural_head(hidden).float().chunk(2, dim=-1)
        latents_mean, latents_logvar = self.latents_head(queries).float().chunk(2, dim=-1)
        error = self.error_head(queries.detach()).float()[..., 0]
        if self.config.pca:
            with torch.autocast(flat.device.type, enabled=False):
                # what the components leave is a hundredth of what they hold: bfloat16 would drown it
                linear = self.pca(flat.float())  # (B, N, Zs + Z)
            size = self.config.structural_channels
            structural = linear[..., :size]
            latents = gather_positions(linear[..., size:], anchors)
            structural_mean = structural_mean + structural.reshape(batch, groups, height, width, size)
            latents_mean = latents_mean + latents
            error = error + self.linear_error(flat, structural, latents, anchors, is_key, height * width)
        return EncoderOutput(structural_mean, structural_logvar, latents_mean, latents_logvar, error)

    def linear_error(
        self, flat: Tensor, structural: Tensor, latents: Tensor, anchors: Tensor, is_key: Tensor, area: int
    ) -> Tensor:
        """log-MSE that the linear start alone would leave after each prefix, (B, K): what the error head corrects.

        Energy of the patches less that of the structural components, less the latents' one after the other
        (Parseval). Group 0 holds one frame four times, so it counts a quarter; a continuation clip's is given.
        """
        first = torch.where(is_key, 0.25, 0.0)[:, None]  # (B, 1)
        variance = self.pca_variance.float()
        size = self.config.structural_channels
        energy = (flat.detach().float() - self.pca_mean).square().sum(-1)
        energy = energy - (structural.detach().square() * variance[:size]).sum(-1)  # (B, N)
        at_start, after = energy[:, :area].sum(1, keepdim=True), energy[:, area:].sum(1, keepdim=True)
        gain = (latents.detach().square() * variance[size:]).sum(-1)  # (B, K)
        gain = torch.where(anchors < area, first * gain, gain)
        left = first * at_start + after - torch.cumsum(gain, dim=1)
        values = PATCH_VALUES * (energy.shape[1] - area + area * first)
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
