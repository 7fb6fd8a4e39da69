"""Parts of every transformer here: 3D rotary positions, attention, blocks, time and resolution embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from onedva.config import HEAD_DIM

ROPE_PAIRS = (8, 12, 12)  # rotated pairs of a head's 64 channels that follow t, y and x
ROPE_BASE = 100.0  # longest wavelength ≈ 600 positions: frames up to 9600 pixels wide stay distinguishable
RESOLUTION_FEATURES = 16
TIME_CHANNELS = 64
# keys up to which training on a CPU does without the fused attention kernel, whose backward pass is slow there
SHORT_SEQUENCES = {torch.bfloat16: 640, torch.float32: 256}
BLOCK_MODULATIONS = 6  # shift, scale, gate of attention and of MLP


def grid_positions(groups: int, height: int, width: int, device: torch.device) -> Tensor:
    """(t, y, x) of every grid position in storage order: (Tg·Hg·Wg, 3) float32."""
    t = torch.arange(groups, device=device)[:, None, None].expand(groups, height, width)
    y = torch.arange(height, device=device)[None, :, None].expand(groups, height, width)
    x = torch.arange(width, device=device)[None, None, :].expand(groups, height, width)
    return torch.stack([t, y, x], dim=-1).reshape(groups * height * width, 3).float()


def anchor_positions(anchors: Tensor, height: int, width: int) -> Tensor:
    """(t, y, x) of flat grid indices: (B, K) int64 → (B, K, 3) float32."""
    t = anchors // (height * width)
    inside = anchors - t * (height * width)
    y = inside // width
    return torch.stack([t, y, inside - y * width], dim=-1).float()


def rope_rotations(positions: Tensor) -> Tensor:
    """Cosines and signed sines that `rotate` multiplies by: (…, N, 3) → (…, 2, N, 64).

    Axial RoPE (Su et al. 2021), one frequency ladder per axis; position (0, 0, 0) leaves a vector as it is.
    """
    parts = []
    for axis, pairs in enumerate(ROPE_PAIRS):
        frequencies = ROPE_BASE ** (-torch.arange(pairs, device=positions.device, dtype=torch.float32) / pairs)
        parts.append(positions[..., axis : axis + 1] * frequencies)
    angles = torch.cat(parts, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)], dim=-3)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotate channel pairs (c, c + 32) of x (B, heads, N, 64) by rotations (B or 1, 2, N, 64)."""
    cos, sin = rotations.to(x.dtype).unsqueeze(2).unbind(1)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([second, first], dim=-1) * sin


def norm(width: int) -> nn.LayerNorm:
    """LayerNorm without bias. Not RMSNorm: PyTorch has no fused backward pass for it on CPUs."""
    return nn.LayerNorm(width, eps=1e-6, bias=False)


class Attention(nn.Module):
    """Projections of multi-head attention with normalised queries and keys; the caller decides who attends to whom."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.query_norm = norm(HEAD_DIM)
        self.key_norm = norm(HEAD_DIM)

    def project(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, N, D), rotations (B or 1, 2, N, 64) → rotated query, rotated key, value, each (B, heads, N, 64)."""
        query = rearrange(self.query(x), "b n (h d) -> b h n d", d=HEAD_DIM)
        key, value = self.keys_values(x, rotations)
        return rotate(self.query_norm(query), rotations), key, value

    def keys_values(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        key = rearrange(self.key(x), "b n (h d) -> b h n d", d=HEAD_DIM)
        value = rearrange(self.value(x), "b n (h d) -> b h n d", d=HEAD_DIM)
        return rotate(self.key_norm(key), rotations), value

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """softmax(q kᵀ / 8) v, heads joined again: (B, N, D), before the output projection."""
        # norms may leave float32 under autocast; one dtype keeps the fused kernel
        query, key = query.to(value.dtype), key.to(value.dtype)
        short = key.shape[2] <= SHORT_SEQUENCES.get(value.dtype, 0)
        if short and self.training and mask is None and query.device.type == "cpu":
            scores = (query * HEAD_DIM**-0.5) @ key.transpose(-1, -2)  # a power of two: rounds nothing
            seen = scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
        else:
            seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return rearrange(seen, "b h n d -> b n (h d)")


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """Pre-norm transformer block over one unmasked sequence."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm = norm(width)
        self.attention = Attention(width)
        self.mlp_norm = norm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, hidden: Tensor, rotations: Tensor) -> Tensor:
        query, key, value = self.attention.project(self.attention_norm(hidden), rotations)
        hidden = hidden + self.attention.out(self.attention(query, key, value))
        return hidden + self.mlp(self.mlp_norm(hidden))


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


class ResolutionTokens(nn.Module):
    """Five hidden states that tell a transformer what it looks at: frames, height, width, rate and kind of the clip."""

    count = 5

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(RESOLUTION_FEATURES, width)
        self.kind = nn.Parameter(torch.randn(2, width) * 0.02)  # continuation, key
        self.slots = nn.Parameter(torch.randn(4, width) * 0.02)

    def forward(self, resolution: Tensor, is_key: Tensor) -> Tensor:
        """resolution (B, 4) float = (T, H, W, frames/s), is_key (B,) bool → (B, 5, D)."""
        scale = torch.tensor([16.0, 256.0, 256.0, 24.0], device=resolution.device)
        octaves = torch.log2(resolution.float().clamp(min=0.25) / scale)[..., None]  # (B, 4, 1), 0 at the usual clip
        frequencies = 2.0 ** torch.arange(-3, RESOLUTION_FEATURES // 2 - 3, device=resolution.device)
        features = torch.cat([(octaves * frequencies).sin(), (octaves * frequencies).cos()], dim=-1)
        sizes = self.project(features) + self.slots
        kind = torch.where(is_key[:, None], self.kind[1], self.kind[0])
        return torch.cat([sizes, kind[:, None].to(sizes.dtype)], dim=1)


class TimeEmbedding(nn.Module):
    """t in [0, 1] → modulation of all blocks: shift, scale, gate of attention and MLP (AdaLN, Peebles & Xie 2023)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.features = width
        # a scalar needs no more, and the parameters saved do more good elsewhere
        self.hidden = nn.Linear(width, TIME_CHANNELS)
        self.out = nn.Linear(TIME_CHANNELS, outputs * width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, t: Tensor) -> Tensor:
        """t (B, Tg) → (B, Tg, outputs·D)."""
        half = self.features // 2
        frequencies = torch.exp(-math.log(1000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angles = t.float()[..., None] * (1000.0 * frequencies)
        return self.out(F.silu(self.hidden(torch.cat([angles.cos(), angles.sin()], dim=-1))))


def init_transformer(module: nn.Module, *, depth: int) -> None:
    """Random starts for every Linear below `module`: fan-in scaled, block outputs smaller by 1/√(2·depth), never zero.

    Zero block outputs under a zero head are a saddle; only heads start at zero, and their owners do that afterwards.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            std = child.in_features**-0.5
            if name.endswith(("attention.out", "mlp.down")):
                std /= math.sqrt(2 * max(depth, 1))
            nn.init.trunc_normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
