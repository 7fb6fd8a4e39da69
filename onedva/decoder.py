"""The decoder: a condition stem over the latents, run once per clip, and a pixel-space diffusion transformer per step.

x̂ = preview + r(noisy, t, context): r's last layer starts at zero, so every step count begins at what the latents
give linearly, and training adds to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from onedva import flow
from onedva.config import HEAD_DIM, PATCH_VALUES, OneDVAConfig
from onedva.layers import (
    MLP,
    Attention,
    Block,
    ResolutionTokens,
    TimeEmbedding,
    anchor_positions,
    grid_positions,
    init_transformer,
    norm,
    rope_rotations,
)
from onedva.patches import PatchPCA, patchify, unpatchify

# (t, y, x) of a position itself, the eight around it in its group, and the ones before and after in time
NEIGHBOURS = (
    (0, 0, 0),
    *((0, y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)),
    (-1, 0, 0),
    (1, 0, 0),
)
BLOCK_MODULATIONS = 6  # shift, scale, gate of attention and of MLP
ENDS_MODULATIONS = 4  # gate of the noisy input; shift, scale and skip gate of the unpatchifier


class Condition(NamedTuple):
    """What the diffusion transformer needs of the latents; made once per clip, used at every step."""

    context: Tensor  # (B, Tg, Hg, Wg, D), added to the noisy patch embeddings
    keys_values: (
        Tensor  # stem: (B, blocks, 2, heads, K, 64) · in_context: (B, 5 + K, D + 3), tokens and their positions
    )
    preview: Tensor  # (B, 3, T, H, W); zeros where the model has none


class Decoder(nn.Module):
    def __init__(self, config: OneDVAConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        # condition stem
        self.structural_in = nn.Linear(config.structural_channels, width)
        self.latents_at_in = nn.Linear(config.latent_channels, width, bias=False)
        self.latents_in = nn.Linear(config.latent_channels, width)
        self.absent_latents = nn.Parameter(torch.randn(width) * 0.02)
        self.absent_structural = nn.Parameter(torch.randn(width) * 0.02)
        self.resolution = ResolutionTokens(width)
        self.stem = nn.ModuleList(Block(width, config.mlp_ratio) for _ in range(config.stem_depth))
        self.stem_norm = norm(width)
        # diffusion transformer
        self.patch_in = nn.Linear(PATCH_VALUES, width)
        self.time = TimeEmbedding(width, BLOCK_MODULATIONS + ENDS_MODULATIONS)
        self.blocks = nn.ModuleList(DiffusionBlock(width, config.mlp_ratio) for _ in range(config.diffusion_depth))
        if config.conditioning == "stem":
            self.latents_out = nn.ModuleList(LatentKeys(width) for _ in range(config.diffusion_depth))
        self.norm = norm(width)
        self.patch_out = nn.Linear(width, PATCH_VALUES)
        init_transformer(self, depth=config.stem_depth + config.diffusion_depth)
        nn.init.zeros_(self.time.out.weight)
        nn.init.zeros_(self.patch_out.weight)
        if config.residual_channels:
            self.residual_in = nn.Conv2d(3, config.residual_channels, 3, padding=1)
            self.residual_out = nn.Conv2d(config.residual_channels, 3, 3, padding=1)
            nn.init.zeros_(self.residual_out.weight)
            nn.init.zeros_(self.residual_out.bias)  # type: ignore[arg-type]
        if config.preview:
            cells = len(NEIGHBOURS) * (config.structural_channels + config.latent_channels + 2)
            self.preview_neighbours = nn.Linear(cells, 2 * config.preview_rank, bias=False)
            self.preview_hidden = nn.Linear(width, config.preview_rank, bias=False)
            self.preview_out = nn.Linear(config.preview_rank, PATCH_VALUES, bias=False)
            nn.init.zeros_(self.preview_neighbours.weight)
            nn.init.zeros_(self.preview_hidden.weight)
            nn.init.orthogonal_(self.preview_out.weight)
            self.structural_pca = nn.Linear(config.structural_channels, PATCH_VALUES)
            self.latents_pca = nn.Linear(config.latent_channels, PATCH_VALUES, bias=False)
            for layer in (self.structural_pca, self.latents_pca):
                nn.init.zeros_(layer.weight)
            nn.init.zeros_(self.structural_pca.bias)

    @torch.no_grad()
    def start_from_pca(self, pca: PatchPCA) -> None:
        """Set the linear start: patch = mean + Σ latent·std·component."""
        weight = (pca.components * pca.std[:, None]).T  # (3072, Zs + Z)
        size = self.config.structural_channels
        self.structural_pca.weight.copy_(weight[:, :size])
        self.structural_pca.bias.copy_(pca.mean)
        self.latents_pca.weight.copy_(weight[:, size:])

    def condition(
        self,
        structural: Tensor,
        latents: Tensor,
        anchors: Tensor,
        has_latents: Tensor,
        resolution: Tensor,
        is_key: Tensor,
    ) -> Condition:
        """structural (B, Tg, Hg, Wg, Zs), latents (B, K, Z), anchors (B, K), the rest as the encoder has them.

        K ≥ 1; where `has_latents` is false the latents are ignored and a learned absent vector stands for them. A
        continuation clip's group 0 of `structural` is ignored the same way.
        """
        batch, groups, height, width, _ = structural.shape
        count = groups * height * width
        latents = latents * has_latents[:, None, None].to(latents.dtype)
        placed = latents.new_zeros(batch, count, latents.shape[-1])
        placed = placed.scatter_add(1, anchors[..., None].expand_as(latents), latents)  # (B, N, Z)

        at_grid = structural.reshape(batch, count, -1)
        hidden = self.structural_in(at_grid)
        given = (torch.arange(count, device=hidden.device) < height * width)[None] & ~is_key[:, None]
        hidden = torch.where(given[..., None], self.absent_structural.to(hidden.dtype), hidden)
        hidden = hidden + self.latents_at_in(placed)
        tokens = self.latents_in(latents)  # (B, K, D)
        tokens = torch.where(has_latents[:, None, None], tokens, self.absent_latents.to(tokens.dtype))
        sizes = self.resolution(resolution, is_key).to(hidden.dtype)  # (B, 5, D)

        positions = grid_positions(groups, height, width, hidden.device)
        anchor_at = anchor_positions(anchors, height, width)  # (B, K, 3)
        if self.config.conditioning == "in_context":
            where = torch.cat([anchor_at.new_zeros(batch, sizes.shape[1], 3), anchor_at], dim=1)
            keys_values = torch.cat([torch.cat([sizes, tokens], dim=1).float(), where], dim=-1)
        else:
            at = torch.cat([positions.new_zeros(sizes.shape[1], 3), positions])[None].expand(batch, -1, -1)
            rotations = rope_rotations(torch.cat([at, anchor_at], dim=1))
            sequence = torch.cat([sizes, hidden, tokens], dim=1)  # (B, 5 + N + K, D)
            for block in self.stem:
                sequence = block(sequence, rotations)
            sequence = self.stem_norm(sequence)
            start = sizes.shape[1]
            hidden, tokens = sequence[:, start : start + count], sequence[:, start + count :]
            latent_rotations = rope_rotations(anchor_at)
            keys_values = torch.stack([layer(tokens, latent_rotations) for layer in self.latents_out], dim=1)  # type: ignore[arg-type]

        shape = (batch, groups, height, width)
        if self.config.preview:
            near, sent = self.neighbourhood(structural, placed, anchors, has_latents, is_key)
            always, where_sent = self.preview_neighbours(near).chunk(2, dim=-1)
            code = always + sent * where_sent + self.preview_hidden(hidden)  # (B, N, rank)
            patches = self.preview_out(code) + self.structural_pca(at_grid) + self.latents_pca(placed)
            preview = unpatchify(patches.reshape(*shape, PATCH_VALUES)).float()
        else:
            preview = hidden.new_zeros(batch, 3, 4 * groups - 3, 16 * height, 16 * width, dtype=torch.float32)
        return Condition(hidden.reshape(*shape, -1), keys_values, preview)

    def neighbourhood(
        self, structural: Tensor, placed: Tensor, anchors: Tensor, has_latents: Tensor, is_key: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What surrounds each position, and whether it has a 1D latent: (B, N, 11·(Zs + Z + 2)) and (B, N, 1).

        A position's cell holds both latents (zeros where there is none), whether a 1D latent was sent, and a 1; beyond
        the edge, and in the group 0 that a continuation clip does not send, cells are all zero.
        """
        batch, groups, height, width, _ = structural.shape
        sent = has_latents[:, None].to(placed.dtype).expand(anchors.shape)
        sent = placed.new_zeros(placed.shape[:2]).scatter_add(1, anchors, sent)[..., None]  # (B, N, 1)
        at_grid = structural.reshape(batch, groups * height * width, -1)
        cells = torch.cat([at_grid, placed, sent, torch.ones_like(sent)], dim=-1)
        cells = cells.reshape(batch, groups, height, width, -1)
        first = (torch.arange(groups, device=cells.device) == 0)[None, :] & ~is_key[:, None]
        cells = cells * (~first).to(cells.dtype)[:, :, None, None, None]
        padded = F.pad(cells, (0, 0, 1, 1, 1, 1, 1, 1))
        near = torch.cat(
            [
                padded[:, 1 + t : 1 + t + groups, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
                for t, y, x in NEIGHBOURS
            ],
            dim=-1,
        )
        return near.reshape(batch, groups * height * width, -1), sent

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """The network's own output, (B, 3, T, H, W): the clean video, or the velocity (`config.prediction`).

        noisy (B, 3, T, H, W); t (B, Tg), one time per clip except that a continuation clip's group 0 sits at 0.
        """
        patches = self.patch_out(self.features(noisy, t, condition))  # (B, N, 3072)
        shape = (*condition.context.shape[:4], PATCH_VALUES)
        output = unpatchify(patches.reshape(shape)).float() + condition.preview
        return output + self.residual(output) if self.config.residual_channels else output

    def features(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """What the last linear layer turns into pixels, (B, N, D); arguments as in `predict`."""
        patches = patchify(noisy)
        batch, groups, height, width, _ = patches.shape
        modulation = self.time(t)  # (B, Tg, 10·D)
        blocks, ends = modulation.split(
            [BLOCK_MODULATIONS * self.config.width, ENDS_MODULATIONS * self.config.width], dim=-1
        )
        gate, shift, scale, skip = rearrange(ends, "b t (m d) -> m b t 1 d", m=ENDS_MODULATIONS)

        if self.config.prediction == "video":
            # the best x̂ weighs the input by how much video is in it; at t = 1 that is none, so noise stays out
            gate = (1 - t[..., None, None].to(gate.dtype)) * (1 + gate)
        else:
            gate = 1 + gate
        first = rearrange(self.patch_in(patches), "b t h w d -> b t (h w) d") * gate
        first = first + rearrange(condition.context, "b t h w d -> b t (h w) d").to(first.dtype)
        rotations = rope_rotations(grid_positions(groups, height, width, noisy.device))[None]
        hidden = first
        if self.config.conditioning == "in_context":
            tokens, where = condition.keys_values.split([self.config.width, 3], dim=-1)
            rotations = torch.cat([rotations.expand(batch, -1, -1, -1), rope_rotations(where)], dim=2)
            tokens = tokens[:, None].to(hidden.dtype)  # (B, 1, 5 + K, D): a group of their own, at the clip's time
            for block in self.blocks:
                hidden, tokens = block.in_context(hidden, tokens, blocks, rotations)  # type: ignore[operator]
        else:
            for index, block in enumerate(self.blocks):
                key, value = condition.keys_values[:, index, 0], condition.keys_values[:, index, 1]
                hidden = block(hidden, blocks, rotations, key, value)

        hidden = self.norm(hidden + (1 + skip) * first) * (1 + scale) + shift
        return hidden.flatten(1, 2)

    def residual(self, video: Tensor) -> Tensor:
        """What two 3×3 convolutions over each frame add, chiefly across patch borders: (B, 3, T, H, W)."""
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        frames = frames.contiguous(memory_format=torch.channels_last)  # several times faster than planar on a CPU
        frames = self.residual_out(F.gelu(self.residual_in(frames), approximate="tanh"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=video.shape[0]).float()

    def video(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """x̂, the clean video this step believes in, (B, 3, T, H, W)."""
        output = self.predict(noisy, t, condition)
        if self.config.prediction == "video":
            return output
        return flow.video_from_velocity(noisy, output, flow.per_frame(t, noisy.shape[2]))

    def velocity(self, noisy: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """d noisy / dt, (B, 3, T, H, W) float32, exactly 0 where t = 0."""
        output = self.predict(noisy, t, condition)
        at = flow.per_frame(t, noisy.shape[2])
        if self.config.prediction == "video":
            return flow.velocity_from_video(noisy, output, at)
        return torch.where(at == 0, torch.zeros_like(output), output)


class LatentKeys(nn.Module):
    """Keys and values of the 1D latents for one diffusion block: (B, K, D) → (B, 2, heads, K, 64)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.key_norm = norm(HEAD_DIM)

    keys_values = Attention.keys_values

    def forward(self, tokens: Tensor, rotations: Tensor) -> Tensor:
        key, value = self.keys_values(tokens, rotations)
        return torch.stack([key.to(value.dtype), value], dim=1)


class DiffusionBlock(nn.Module):
    """DiT block whose modulation is shared by all, but for a small offset of its own (PixArt-α's AdaLN-single)."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = norm(width)
        self.attention = Attention(width)
        self.mlp_norm = norm(width)
        self.mlp = MLP(width, mlp_ratio)
        self.offset = nn.Parameter(torch.zeros(BLOCK_MODULATIONS, width))

    def modulation(self, shared: Tensor) -> Tensor:
        """shared (B, Tg, 6·D) → (6, B, Tg, 1, D): shift, scale, gate of attention, then of MLP."""
        return rearrange(shared + self.offset.reshape(-1), "b t (m d) -> m b t 1 d", m=BLOCK_MODULATIONS)

    def feed(self, hidden: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return hidden + (1 + gate) * self.mlp(self.mlp_norm(hidden) * (1 + scale) + shift)

    def forward(self, hidden: Tensor, shared: Tensor, rotations: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """hidden (B, Tg, P, D); key, value (B, heads, K, 64) of the 1D latents join as extra keys."""
        shift, scale, gate, *feed = self.modulation(shared)
        seen = rearrange(self.attention_norm(hidden) * (1 + scale) + shift, "b t p d -> b (t p) d")
        query, own_key, own_value = self.attention.project(seen, rotations)
        own_key = own_key.to(own_value.dtype)
        keys = torch.cat([own_key, key.to(own_key.dtype)], dim=2)
        values = torch.cat([own_value, value.to(own_value.dtype)], dim=2)
        seen = self.attention.out(self.attention(query, keys, values)).reshape(hidden.shape)
        return self.feed(hidden + (1 + gate) * seen, *feed)

    def in_context(self, hidden: Tensor, tokens: Tensor, shared: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (B, Tg, P, D) and tokens (B, 1, M, D) as one sequence; tokens sit at the last group's time."""
        modulation = self.modulation(shared)
        token_modulation = modulation[:, :, -1:]
        parts = []
        for part, (shift, scale) in ((hidden, modulation[:2]), (tokens, token_modulation[:2])):
            part = self.attention_norm(part) * (1 + scale) + shift
            parts.append(rearrange(part, "b t p d -> b (t p) d"))
        query, key, value = self.attention.project(torch.cat(parts, dim=1), rotations)
        seen = self.attention.out(self.attention(query, key, value))
        count = parts[0].shape[1]
        hidden = hidden + (1 + modulation[2]) * seen[:, :count].reshape(hidden.shape)
        tokens = tokens + (1 + token_modulation[2]) * seen[:, count:].reshape(tokens.shape)
        return self.feed(hidden, *modulation[3:]), self.feed(tokens, *token_modulation[3:])
