"""A diffusion transformer over hybrid latents: the structural grid and the 1D sequence as one sequence of tokens.

It predicts clean latents at one time per clip (`onedva.flow`), told the class, a text, how many 1D latents there are,
frames, size and rate, and, for a clip that goes on from a first frame, that frame's own latents.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from onedva import flow
from onedva.generation.config import GeneratorConfig
from onedva.layers import (
    BLOCK_MODULATIONS,
    DiffusionBlock,
    ResolutionTokens,
    anchor_positions,
    grid_positions,
    init_transformer,
    norm,
    rope_rotations,
)

ENDS_MODULATIONS = 2  # shift and scale before the last layers
CONDITION_CHANNELS = 128  # that time, class and length are mixed in
TIME_FEATURES = 128


class Latents(NamedTuple):
    """What is generated, normalised: the state of the sampler."""

    structural: Tensor  # (B, Tg, Hg, Wg, Zs); group 0 of a continuation clip is zeros
    sequence: Tensor  # (B, K, Z), with three more channels where anchors are generated; K ≥ 1


class Asked(NamedTuple):
    """What a batch of clips is to be."""

    anchors: Tensor  # (B, K) int64 grid indices; looked at only where they are fixed
    has_latents: Tensor  # (B,) bool; where false, `Latents.sequence` is ignored
    label: Tensor  # (B,) int64; the number of classes means none
    resolution: Tensor  # (B, 4): frames, height, width, frames per second
    is_key: Tensor  # (B,) bool; false goes on from `first`
    first: Tensor  # (B, Hg, Wg, Zs + Z): normalised latents of the first frame as a clip; zeros for key clips
    text: Tensor  # (B, L, C), (B, 0, 0) for a model without; zeros mean none


class LatentDiT(nn.Module):
    structural_mean: Tensor
    structural_std: Tensor
    structural_variance: Tensor
    sequence_mean: Tensor
    sequence_std: Tensor
    sequence_variance: Tensor
    first_mean: Tensor
    first_std: Tensor

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width, channels = config.width, config.structural_channels + config.latent_channels
        # statistics of the latents it was trained on, by kind of clip (continuation, key): (latents − mean) / std has
        # the given variance, which is larger where a channel is worth more in pixels
        self.register_buffer("structural_mean", torch.zeros(2, config.groups, config.structural_channels))
        self.register_buffer("structural_std", torch.ones(2, config.groups, config.structural_channels))
        self.register_buffer("structural_variance", torch.ones(2, config.groups, config.structural_channels))
        self.register_buffer("sequence_mean", torch.zeros(2, config.latent_channels))
        self.register_buffer("sequence_std", torch.ones(2, config.latent_channels))
        self.register_buffer("sequence_variance", torch.ones(2, config.sequence_channels))
        self.register_buffer("first_mean", torch.zeros(channels))
        self.register_buffer("first_std", torch.ones(channels))
        self.grid_in = nn.Linear(config.groups_per_token * config.structural_channels, width)
        self.sequence_in = nn.Linear(config.sequence_channels, width)
        self.order = nn.Parameter(torch.randn(config.max_tokens, width) * 0.02)
        self.absent_latents = nn.Parameter(torch.randn(width) * 0.02)
        self.resolution = ResolutionTokens(width)
        if config.continuation:
            self.first_in = nn.Linear(channels, width)
            self.no_first = nn.Parameter(torch.randn(width) * 0.02)
        if config.text_channels:
            self.text_in = nn.Linear(config.text_channels, width)
            self.no_text = nn.Parameter(torch.randn(width) * 0.02)
        self.time_in = nn.Linear(TIME_FEATURES, CONDITION_CHANNELS)
        self.length_in = nn.Linear(3, CONDITION_CHANNELS)
        self.label_in = nn.Parameter(torch.randn(len(config.classes) + 1, CONDITION_CHANNELS))
        self.modulation = nn.Linear(CONDITION_CHANNELS, (BLOCK_MODULATIONS + ENDS_MODULATIONS) * width)
        self.blocks = nn.ModuleList(DiffusionBlock(width, config.mlp_ratio) for _ in range(config.depth))
        self.norm = norm(width)
        self.grid_out = nn.Linear(width, config.groups_per_token * config.structural_channels)
        self.sequence_out = nn.Linear(width, config.sequence_channels)
        init_transformer(self, depth=config.depth)
        for layer in (self.modulation, self.grid_out, self.sequence_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, noisy: Latents, t: Tensor, asked: Asked) -> Latents:
        """Clean latents as this step believes in them; t (B,) in [0, 1], 1 is noise."""
        structural, sequence = noisy
        height, width = structural.shape[2:4]
        count, folded = sequence.shape[1], self.config.groups_per_token
        kind, at = asked.is_key.long(), t[:, None, None]
        grid_variance = self.structural_variance[kind][:, :, None, None]  # (B, Tg, 1, 1, Zs)
        sequence_variance = self.sequence_variance[kind][:, None]  # (B, 1, Z)
        grid = structural * flow.input_scale(at[..., None, None], grid_variance)
        grid = self.grid_in(rearrange(grid, "b (s g) h w z -> b s (h w) (g z)", g=folded))  # (B, S, P, D)
        latents = self.sequence_in(sequence * flow.input_scale(at, sequence_variance)) + self.order[:count]
        latents = torch.where(asked.has_latents[:, None, None], latents, self.absent_latents.to(latents.dtype))
        tokens = [self.resolution(asked.resolution, asked.is_key).to(latents.dtype), latents]
        if self.config.text_channels:
            told = (asked.text != 0).any(dim=2).any(dim=1)[:, None, None]
            tokens.append(torch.where(told, self.text_in(asked.text), self.no_text).to(latents.dtype))
        places = grid_positions(grid.shape[1], height, width, t.device)
        times = t[:, None].expand(-1, grid.shape[1])  # (B, S)
        if self.config.continuation:  # the first frame's own tokens come before, clean
            first = self.first_in(asked.first.flatten(1, 2))[:, None].to(grid.dtype)  # (B, 1, P, D)
            first = torch.where(asked.is_key[:, None, None, None], self.no_first.to(grid.dtype), first)
            grid = torch.cat([first, grid], dim=1)
            before = grid_positions(1, height, width, t.device) - torch.tensor([1.0, 0.0, 0.0], device=t.device)
            places = torch.cat([before, places])
            times = torch.cat([torch.zeros_like(t)[:, None], times], dim=1)
        hidden_tokens = torch.cat(tokens, dim=1)[:, None]  # (B, 1, M, D)
        rotations = self.rotations(places, asked.anchors, height, width)

        # counted on tensors: in exported graphs sizes are no numbers to multiply with
        length = torch.ones_like(asked.anchors, dtype=torch.float32).sum(dim=1) * asked.has_latents
        positions = torch.ones_like(structural[..., 0]).flatten(1).sum(dim=1)
        modulation = self.modulation(self.condition(times, asked.label, length, positions))
        blocks, ends = modulation.split([BLOCK_MODULATIONS * self.config.width, 2 * self.config.width], dim=-1)
        for block in self.blocks:
            grid, hidden_tokens = block.in_context(grid, hidden_tokens, blocks, rotations)  # type: ignore[operator]

        shift, gain = rearrange(ends, "b t (m d) -> m b t 1 d", m=ENDS_MODULATIONS)
        grid = (self.norm(grid) * (1 + gain) + shift)[:, 1 if self.config.continuation else 0 :]
        start = ResolutionTokens.count
        latents = hidden_tokens[:, 0, start : start + count]
        latents = self.norm(latents) * (1 + gain[:, -1]) + shift[:, -1]
        shape = {"h": height, "w": width, "g": folded}
        made = rearrange(self.grid_out(grid).float(), "b s (h w) (g z) -> b (s g) h w z", **shape)
        skip, scale = flow.output_scales(at[..., None, None], grid_variance)
        clean = structural * skip + made * scale
        skip, scale = flow.output_scales(at, sequence_variance)
        return Latents(clean, sequence * skip + self.sequence_out(latents).float() * scale)

    def rotations(self, places: Tensor, anchors: Tensor, height: int, width: int) -> Tensor:
        """RoPE of a whole sequence: grid tokens at `places` (N, 3), then what has no place, and 1D latents (B, K)."""
        batch = anchors.shape[0]
        where = anchor_positions(anchors, height, width)
        if self.config.anchors == "generated":
            where = where * 0  # not known before they are generated
        plain = where.new_zeros(batch, 1, 3)
        parts = [places.expand(batch, -1, -1), plain.expand(-1, ResolutionTokens.count, -1), where]
        if self.config.text_channels:
            parts.append(plain.expand(-1, self.config.text_tokens, -1))
        return rope_rotations(torch.cat(parts, dim=1))

    def condition(self, times: Tensor, label: Tensor, length: Tensor, positions: Tensor) -> Tensor:
        """Time of each group, class and number of 1D latents as one vector: (B, Tg, CONDITION_CHANNELS).

        times (B, Tg); label (B,); length (B,) 1D latents and positions (B,) of the grid, both float.
        """
        half = TIME_FEATURES // 2
        frequencies = torch.exp(-math.log(1000.0) * torch.arange(half, device=times.device) / half)
        angles = times.float()[..., None] * (1000.0 * frequencies)
        time = self.time_in(torch.cat([angles.cos(), angles.sin()], dim=-1))  # (B, Tg, C)
        share = length / positions
        octaves = torch.log2(1 + length / self.config.length_multiple)
        told = self.length_in(torch.stack([share, octaves, (length > 0).float()], dim=-1))
        # a product with one-hot rows, not a look-up: exported graphs then hold no Gather that could be out of range
        chosen = (label[:, None] == torch.arange(len(self.config.classes) + 1, device=label.device)).float()
        return F.silu(time + (told + chosen @ self.label_in)[:, None])

    def velocity(self, noisy: Latents, t: Tensor, asked: Asked) -> Latents:
        """d latents / dt, in float32; exactly 0 in the group that a continuation clip does not generate."""
        clean = self(noisy, t, asked)
        at = t[:, None, None]
        structural = flow.velocity_from_video(noisy.structural, clean.structural, at[..., None, None])
        first = (torch.arange(structural.shape[1], device=t.device) == 0)[:, None, None, None]
        given = first & ~asked.is_key[:, None, None, None, None]
        return Latents(
            torch.where(given, torch.zeros_like(structural), structural),
            flow.velocity_from_video(noisy.sequence, clean.sequence, at),
        )

    def normalise(self, structural: Tensor, latents: Tensor, is_key: Tensor) -> tuple[Tensor, Tensor]:
        """The autoencoder's latents to zero mean and the variances above by channel, group and kind of clip."""
        kind = is_key.long()
        mean, std = self.structural_mean[kind][:, :, None, None], self.structural_std[kind][:, :, None, None]
        return (structural - mean) / std, (latents - self.sequence_mean[kind][:, None]) / self.sequence_std[kind][
            :, None
        ]

    def denormalise(self, structural: Tensor, latents: Tensor, is_key: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `normalise`; zeros in group 0 of continuation clips."""
        kind = is_key.long()
        mean, std = self.structural_mean[kind][:, :, None, None], self.structural_std[kind][:, :, None, None]
        coded = (torch.arange(structural.shape[1], device=is_key.device) > 0) | is_key[:, None]
        structural = (structural * std + mean) * coded[..., None, None, None]
        return structural, latents * self.sequence_std[kind][:, None] + self.sequence_mean[kind][:, None]
