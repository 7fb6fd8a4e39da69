"""The decoder: a condition stem over the latents, run once per clip, and a pixel-space diffusion transformer per step.

x̂ = preview + r(noisy, t, context): r's last layer starts at zero, so every step count begins at what the latents
give linearly, and training adds to it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from onedva import flow
from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva.layers import (
    BLOCK_MODULATIONS,
    Block,
    DiffusionBlock,
    LatentKeys,
    ResolutionTokens,
    TimeEmbedding,
    anchor_positions,
    grid_positions,
    init_transformer,
    norm,
    rope_rotations,
)
from onedva.patches import patchify, unpatchify
from onedva.transform import PatchTransform
from onedva_runtime.placement import PATCH_FRAMES

BANDS = 8  # of components, in octaves, whose energies tell how much the preview lacks
SMALLEST_ENERGY = 1e-3  # of whitened coefficients; less is as good as none
ENDS_MODULATIONS = 4  # gate of the noisy input; shift, scale and skip gate of the unpatchifier


class Condition(NamedTuple):
    """What the diffusion transformer needs of the latents; made once per clip, used at every step."""

    # (B, Tg, Hg, Wg, D), added to the noisy patch embeddings; with a preview D + R + 1: behind them its coefficients,
    # and the logarithm of how much it is expected to lack of each patch (`Decoder.context_parts`)
    context: Tensor
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
        if config.pca:
            self.coefficients_in = nn.Linear(config.components, width)
            self.sent_in = nn.Parameter(torch.zeros(width))
            self.class_in = nn.Parameter(torch.zeros(config.choices, width))
        else:
            self.structural_in = nn.Linear(config.structural_channels, width)
            self.latents_at_in = nn.Linear(config.latent_channels, width, bias=False)
        self.latents_in = nn.Linear(config.latent_channels, width)
        self.absent_latents = nn.Parameter(torch.randn(width) * 0.02)
        self.absent_structural = nn.Parameter(torch.randn(width) * 0.02)
        self.resolution = ResolutionTokens(width)
        self.stem = nn.ModuleList(Block(width, config.mlp_ratio) for _ in range(config.stem_depth))
        self.stem_norm = norm(width)
        # diffusion transformer
        self.patch_in = nn.Linear(config.components if config.pca else PATCH_VALUES, width)
        self.time = TimeEmbedding(width, BLOCK_MODULATIONS + ENDS_MODULATIONS)
        self.blocks = nn.ModuleList(DiffusionBlock(width, config.mlp_ratio) for _ in range(config.diffusion_depth))
        if config.conditioning == "stem":
            self.latents_out = nn.ModuleList(LatentKeys(width) for _ in range(config.diffusion_depth))
        self.norm = norm(width)
        self.patch_out = nn.Linear(width, config.components if config.pca else PATCH_VALUES)
        init_transformer(self, depth=config.stem_depth + config.diffusion_depth)
        nn.init.zeros_(self.time.out.weight)
        nn.init.zeros_(self.patch_out.weight)
        if config.residual_channels:
            self.residual_in = nn.Conv2d(3, config.residual_channels, 3, padding=1)
            self.residual_out = nn.Conv2d(config.residual_channels, 3, 3, padding=1)
            nn.init.zeros_(self.residual_out.weight)
            nn.init.zeros_(self.residual_out.bias)  # type: ignore[arg-type]
        if config.pca:
            self.preview_hidden = nn.Linear(width, config.components, bias=False)
            groups = 1 + (config.clip_frames - 1) // PATCH_FRAMES
            self.context_gain = nn.Parameter(torch.zeros(groups, config.components))  # of what a context frame shows
            self.context_scale = nn.Parameter(torch.full((1,), 4.0))  # how far it may differ and still be believed
            # of what the preview leaves of a patch, over its usual variance
            self.log_variance = nn.Linear(width + 3 * BANDS + config.choices + 1, 1)
            for layer in (self.preview_hidden, self.log_variance):
                nn.init.zeros_(layer.weight)
            nn.init.zeros_(self.log_variance.bias)

    def condition(
        self,
        structural: Tensor,
        latents: Tensor,
        anchors: Tensor,
        has_latents: Tensor,
        resolution: Tensor,
        is_key: Tensor,
        transform: PatchTransform | None,
    ) -> Condition:
        """structural (B, Tg, Hg, Wg, Zs), latents (B, K, Z), anchors (B, K), the rest as the encoder has them.

        K ≥ 1; where `has_latents` is false the latents are ignored and a learned absent vector stands for them. A
        continuation clip's group 0 of `structural` is ignored the same way.
        """
        batch, groups, height, width, _ = structural.shape
        count = groups * height * width
        shape = (batch, groups, height, width)
        latents = latents * has_latents[:, None, None].to(latents.dtype)
        placed = latents.new_zeros(batch, count, latents.shape[-1])
        placed = placed.scatter_add(1, anchors[..., None].expand_as(latents), latents)  # (B, N, Z)

        coefficients = signs = None
        if transform is None:
            hidden = self.structural_in(structural.reshape(batch, count, -1)) + self.latents_at_in(placed)
        else:
            coefficients = transform.synthesise(structural, placed.reshape(*shape, -1), is_key)
            normal = coefficients / transform.coefficient_std
            sent = share_sent(anchors, has_latents, shape)
            hidden = self.coefficients_in(normal) + sent * self.sent_in
            chosen = transform.chosen(structural).reshape(batch, 1, height, width, -1)
            hidden = (hidden + chosen @ self.class_in).flatten(1, 3)
            signs = torch.cat(
                [band_energies(normal, transform.ranks(normal)), chosen.expand(-1, groups, -1, -1, -1), sent], dim=-1
            )
        given = (torch.arange(count, device=hidden.device) < height * width)[None] & ~is_key[:, None]
        hidden = torch.where(given[..., None], self.absent_structural.to(hidden.dtype), hidden)
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

        if transform is not None and coefficients is not None and signs is not None:
            left = self.preview_hidden(hidden).reshape(*shape, -1)
            coefficients = coefficients + transform.remainder_std * left
            preview = transform.join(*transform.patches_of_groups(coefficients))
            hidden = hidden.reshape(*shape, -1)
            with torch.autocast(hidden.device.type, enabled=False):
                lacks = self.log_variance(torch.cat([hidden.float(), signs], dim=-1)).clamp(-6.0, 6.0)
            return Condition(torch.cat([hidden, coefficients, lacks], dim=-1), keys_values, preview)
        preview = hidden.new_zeros(batch, 3, 4 * groups - 3, 16 * height, 16 * width, dtype=torch.float32)
        return Condition(hidden.reshape(*shape, -1), keys_values, preview)

    def predict(self, noisy: Tensor, t: Tensor, condition: Condition, transform: PatchTransform | None) -> Tensor:
        """The network's own output, (B, 3, T, H, W): the clean video, or the velocity (`config.prediction`).

        noisy (B, 3, T, H, W); t (B, Tg), one time per clip except that a continuation clip's group 0 sits at 0.
        """
        shape = condition.context.shape[:4]
        if transform is None:
            patches = self.patch_out(self.features(self.patch_in(patchify(noisy)), t, condition))
            output = unpatchify(patches.reshape(*shape, PATCH_VALUES)).float() + condition.preview
        else:
            output = self.clean(noisy, t, condition, transform)
        return output + self.residual(output) if self.config.residual_channels else output

    def clean(self, noisy: Tensor, t: Tensor, condition: Condition, transform: PatchTransform) -> Tensor:
        """x̂ (B, 3, T, H, W) but for `residual`: preview and remainder through the basis as one."""
        remainder = self.remainder(noisy, t, condition, transform)
        return transform.join(*self.clean_patches(remainder, condition, transform))

    def clean_patches(
        self, remainder: Tensor, condition: Condition, transform: PatchTransform
    ) -> tuple[Tensor, Tensor]:
        """Preview and a remainder (B, Tg, P, R) as patches that `transform.join` makes a video of."""
        _, coefficients, _ = self.context_parts(condition)
        return transform.patches_of_groups(coefficients + remainder.reshape(coefficients.shape))

    def remainder(self, noisy: Tensor, t: Tensor, condition: Condition, transform: PatchTransform) -> Tensor:
        """`remainder_of` what a noisy video (B, 3, T, H, W) shows of the remainder."""
        seen = noisy - flow.per_frame(1 - t, noisy.shape[2]) * condition.preview
        return self.remainder_of(transform.shown(transform.cut(seen)), t, condition, transform)

    def remainder_of(self, seen: Tensor, t: Tensor, condition: Condition, transform: PatchTransform) -> Tensor:
        """Coefficients (B, Tg, P, R) of what the preview lacks: what the network predicts, and what is seen of it.

        seen (B, Tg, P, R) is (1 − t)·remainder + t·noise. Were the remainder normal around the prediction r̂ with a
        variance σ², its mean given that would be r̂ + (1 − t)σ² / ((1 − t)²σ² + t²) · (seen − (1 − t)·r̂): so later
        steps keep the texture that earlier ones drew from the noise, where and as much as the clip has any.
        """
        kept, noise = (1 - t)[..., None, None], t.square()[..., None, None]  # (B, Tg, 1, 1)
        usual = transform.remainder_std.square()
        # a given frame (t = 0) is seen whole, not less a preview
        expected = torch.where(noise == 0, transform.coefficient_std.square(), kept.square() * usual + noise)
        hidden = self.features(self.patch_in(seen.float() * expected.rsqrt()), t, condition)
        with torch.autocast(seen.device.type, enabled=False):
            predicted, local = self.predicted(hidden, seen.float(), t, condition, transform)
            variance = usual * local
            gain = kept * variance / (kept.square() * variance + noise).clamp(min=1e-8)
            return predicted + gain * (seen.float() - kept * predicted)

    def predicted(
        self,
        hidden: Tensor,
        seen: Tensor,
        t: Tensor,
        condition: Condition,
        transform: PatchTransform,
    ) -> tuple[Tensor, Tensor]:
        """r̂ (B, Tg, P, R) before `seen` corrects it, and the variance of what it lacks, over the usual (B, Tg, P, 1).

        hidden: of `features`. seen: at least the first group of what `remainder` sees.
        """
        local = self.context_parts(condition)[2].flatten(2, 3).exp()
        predicted = self.patch_out(hidden.float()) * transform.remainder_std
        return predicted + self.from_context(seen, t, condition, local, transform), local

    def from_context(
        self, seen: Tensor, t: Tensor, condition: Condition, local: Tensor, transform: PatchTransform
    ) -> Tensor:
        """What the context frame of a continuation clip shows of the remainder, (B, Tg, P, R); zeros for key clips.

        Where nothing moves, what the frame has beyond the preview is right for every group: a share of it by group and
        component, falling to none where the two differ by more than previews lack (`local`, over the usual variance).
        It carries detail and, as errors go on with it, hides the edge between clips. Set by `linear_start.fit_context`.
        """
        preview = self.context_parts(condition)[1].flatten(2, 3)  # (B, Tg, P, R)
        beyond = seen[:, :1] + preview[:, :1] - preview
        differs = share_of_usual(beyond, transform) / local
        belief = 1 / (1 + (differs / self.context_scale).square())
        belief = torch.where((t[:, :1] == 0)[..., None, None], belief, 0.0)
        return belief * self.context_gain[: t.shape[1], None] * beyond

    def context_parts(self, condition: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Of a model with a preview: what is added to patch embeddings (B, Tg, Hg, Wg, D), the preview's coefficients
        (…, R) and the log-variance of what it lacks, over the usual (…, 1), these two in float32."""
        parts = condition.context.split([self.config.width, self.config.components, 1], dim=-1)
        return parts[0], parts[1].float(), parts[2].float()

    def features(self, patches: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Embedded noisy patches (B, Tg, …, D) → what the last linear layer makes pixels of, (B, Tg, P, D)."""
        batch, groups, height, width, _ = condition.context.shape
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
        context = condition.context[..., : self.config.width].flatten(2, 3)
        first = patches.reshape(batch, groups, height * width, -1) * gate
        first = first + context.to(first.dtype)
        rotations = rope_rotations(grid_positions(groups, height, width, t.device))[None]
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

        return self.norm(hidden + (1 + skip) * first) * (1 + scale) + shift

    def residual(self, video: Tensor) -> Tensor:
        """What two 3×3 convolutions over each frame add: (B, 3, T, H, W)."""
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        frames = frames.contiguous(memory_format=torch.channels_last)  # several times faster than planar on a CPU
        frames = self.residual_out(F.gelu(self.residual_in(frames), approximate="tanh"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=video.shape[0]).float()

    def video(self, noisy: Tensor, t: Tensor, condition: Condition, transform: PatchTransform | None) -> Tensor:
        """x̂, the clean video this step believes in, (B, 3, T, H, W)."""
        output = self.predict(noisy, t, condition, transform)
        if self.config.prediction == "video":
            return output
        return flow.video_from_velocity(noisy, output, flow.per_frame(t, noisy.shape[2]))

    def velocity(self, noisy: Tensor, t: Tensor, condition: Condition, transform: PatchTransform | None) -> Tensor:
        """d noisy / dt, (B, 3, T, H, W) float32, exactly 0 where t = 0."""
        output = self.predict(noisy, t, condition, transform)
        at = flow.per_frame(t, noisy.shape[2])
        if self.config.prediction == "video":
            return flow.velocity_from_video(noisy, output, at)
        return torch.where(at == 0, torch.zeros_like(output), output)


def share_of_usual(coefficients: Tensor, transform: PatchTransform) -> Tensor:
    """Energy of coefficients (…, R) over what previews usually lack: (…, 1)."""
    return coefficients.square().sum(-1, keepdim=True) / transform.remainder_std.square().sum()


def band_energies(normal: Tensor, ranks: Tensor) -> Tensor:
    """How much of each scale of detail there is, which tells how much is missing: whitened coefficients (B, Tg, Hg, Wg,
    R) → (B, Tg, Hg, Wg, 3·BANDS), logarithms of the mean energy in bands of components.

    ranks (R,): the place of each among the components, strongest first. Of the patch, of its column, and of what
    changes along the column; bands begin at rank R / 2, R / 4, … and 0.
    """
    count = normal.shape[-1]
    ends = [0, *(max(count >> shift, 1) for shift in range(BANDS - 1, 0, -1)), count]
    # by comparison, not by writing into zeros: TensorRT has no scatter that this could be exported as
    bands = torch.stack(
        [((ranks >= start) & (ranks < end)).to(normal.dtype) / max(end - start, 1) for start, end in pairwise(ends)],
        dim=1,
    )
    own = normal.square() @ bands
    column = own.mean(dim=1, keepdim=True)
    changing = ((normal - normal.mean(dim=1, keepdim=True)).square() @ bands).mean(dim=1, keepdim=True)
    found = [own, column.expand_as(own), changing.expand_as(own)]
    return (torch.cat(found, dim=-1) + SMALLEST_ENERGY).log()


def share_sent(anchors: Tensor, has_latents: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Which share of each column's layers has a 1D latent: anchors (B, K) → (B, Tg, Hg, Wg, 1), the same in all Tg."""
    batch, groups, height, width = shape
    sent = has_latents[:, None].float().expand(anchors.shape)
    layers = sent.new_zeros(batch, groups * height * width).scatter_add(1, anchors, sent).reshape(shape)
    return layers.mean(dim=1, keepdim=True).expand(shape)[..., None]
