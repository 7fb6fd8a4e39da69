"""OneDVA: encoder and decoder as one PyTorch model, with the habits diffusers users know.

model = OneDVA.from_pretrained("tiny").eval()
z = model.encode(video).latent_dist.mode()      # video (B, 3, T, H, W) in [-1, 1]
video = model.decode(z, num_steps=1).sample
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from onedva import few_steps, flow
from onedva.config import OneDVAConfig
from onedva.decoder import Condition, Decoder
from onedva.encoder import Encoder, EncoderOutput
from onedva.transform import PatchTransform
from onedva_runtime import placement
from onedva_runtime.camera import find_camera
from onedva_runtime.warp import Camera, follow, hold_still

Uint8 = NDArray[np.uint8]


@dataclass(frozen=True)
class HybridLatents:
    """What the decoder needs of one batch of clips: both latents, where the 1D ones sit, and what the clips are."""

    structural: Tensor  # (B, Tg, Hg, Wg, Zs)
    latents: Tensor  # (B, K, Z); K may be 0
    anchors: Tensor  # (B, K) int64 grid indices
    is_key: Tensor  # (B,) bool
    resolution: Tensor  # (B, 4): padded frames, height, width, and frames/s
    size: tuple[int, int]  # (H, W) before padding; decoding crops back to it
    cameras: tuple[Camera | None, ...] | None = None  # of each clip that was held still, as in a packet

    def thin(self, tokens: int) -> HybridLatents:
        """The same clips with only the first `tokens` 1D latents."""
        return dataclasses.replace(self, latents=self.latents[:, :tokens], anchors=self.anchors[:, :tokens])


@dataclass(frozen=True)
class HybridPosterior:
    """Diagonal Gaussians over both latents."""

    output: EncoderOutput
    anchors: Tensor
    is_key: Tensor
    resolution: Tensor
    size: tuple[int, int]
    cameras: tuple[Camera | None, ...] | None = None

    def mode(self) -> HybridLatents:
        """The means."""
        return self._latents(self.output.structural_mean, self.output.latents_mean)

    def sample(self, generator: torch.Generator | None = None) -> HybridLatents:
        """mean + exp(logvar / 2)·ε, ε from `generator`."""
        out = self.output
        return self._latents(
            draw(out.structural_mean, out.structural_logvar, generator),
            draw(out.latents_mean, out.latents_logvar, generator),
        )

    def _latents(self, structural: Tensor, latents: Tensor) -> HybridLatents:
        return HybridLatents(
            structural, latents, self.anchors, self.is_key, self.resolution, self.size, cameras=self.cameras
        )


def draw(mean: Tensor, logvar: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Reparametrised sample of N(mean, exp(logvar))."""
    noise = torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    return mean + (0.5 * logvar.clamp(-30.0, 20.0)).exp() * noise


class EncodeOutput(NamedTuple):
    latent_dist: HybridPosterior


class DecodeOutput(NamedTuple):
    sample: Tensor  # (B, 3, T, H, W) in about [-1, 1]


class TrainingOutput(NamedTuple):
    posterior: EncoderOutput
    preview: Tensor  # (B, 3, T, H, W)
    video: Tensor  # x̂ (B, 3, T, H, W)


class OneDVA(nn.Module):
    def __init__(self, config: OneDVAConfig) -> None:
        super().__init__()
        self.config = config
        self.transform = PatchTransform(config) if config.pca else None
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    @property
    def parameters_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def encode(
        self,
        video: Tensor,
        *,
        tokens: int | None = None,
        anchors: Tensor | None = None,
        is_key: Tensor | None = None,
        fps: float = 24.0,
        follow_camera: bool = False,
    ) -> EncodeOutput:
        """Posterior over the latents of a batch of clips.

        video: (B, 3, T, H, W) in [-1, 1], T = 1 + 4n up to `config.clip_frames`, any H and W (padded to multiples of 16
        by edge replication).
        tokens: how many 1D latents; default all the model and the clip have. Rounded up to `config.length_multiple`.
        anchors: (B, K) int64 grid indices instead of the ones the detail map gives. is_key: (B,) bool, default all key.
        follow_camera: draw clips whose camera moves so that their scene stands still, where that pays, as the codec
        does; the latents say how, and `decode` draws them back; both round such clips to 8 bits. Raises ValueError
        for other shapes, or for anchors that are not distinct positions of the grid.
        """
        if video.ndim != 5 or video.shape[1] != 3 or not video.is_floating_point():
            raise ValueError(f"video must be float (B, 3, T, H, W), got {video.dtype} {tuple(video.shape)}")
        size = (video.shape[3], video.shape[4])
        video = pad_to_patches(video)
        grid = placement.grid_of(*video.shape[2:])
        if video.shape[2] > self.config.clip_frames:
            raise ValueError(f"a clip has up to {self.config.clip_frames} frames in this model, got {video.shape[2]}")
        if is_key is None:
            is_key = torch.ones(video.shape[0], dtype=torch.bool, device=video.device)
        cameras = tuple(find_camera(frames) for frames in to_frames(video)) if follow_camera else None
        if cameras is not None:
            video = drawn(video, cameras, hold_still)
        if anchors is None:
            anchors = self.anchors_of(video, tokens=tokens, is_key=is_key)
        else:
            check_anchors(anchors, grid=grid, queries=self.config.queries)
        resolution = torch.tensor([[*video.shape[2:], fps]], device=video.device).float().expand(video.shape[0], 4)
        output = self.encoder(video, resolution, is_key, anchors, self.transform)
        return EncodeOutput(HybridPosterior(output, anchors, is_key, resolution, size, cameras))

    def anchors_of(self, video: Tensor, *, tokens: int | None, is_key: Tensor) -> Tensor:
        """Anchors (B, K) that placement gives each clip of a padded video; K is shared and fits every clip."""
        grid, config = placement.grid_of(*video.shape[2:]), self.config
        most = min(config.queries, config.trained_tokens)
        limit = min(placement.longest(grid, max_tokens=most, is_key=key) for key in is_key.tolist())
        count = (
            limit if tokens is None else placement.round_tokens(tokens, limit, length_multiple=config.length_multiple)
        )
        rows = []
        for clip, key in zip(to_frames(video), is_key.tolist(), strict=True):
            if config.anchors == "fixed":
                rows.append(placement.fixed_anchors(grid, count, is_key=key))
            else:
                detail = placement.detail_map(clip)
                rows.append(placement.place(detail, count, is_key=key, length_multiple=config.length_multiple))
        return torch.from_numpy(np.stack(rows)).to(video.device)

    def condition(self, z: HybridLatents) -> Condition:
        """The stem's output for z: reuse it over steps and seeds."""
        batch, count = z.latents.shape[:2]
        latents, anchors = z.latents, z.anchors
        if count == 0:  # graphs and kernels want one: send an ignored one, at the first coded position
            latents = latents.new_zeros(batch, 1, latents.shape[2])
            anchors = anchors.new_zeros(batch, 1)
        has_latents = torch.full((batch,), count > 0, device=latents.device)
        return self.decoder.condition(
            z.structural, latents, anchors, has_latents, z.resolution, z.is_key, self.transform
        )

    def decode(
        self,
        z: HybridLatents,
        *,
        num_steps: int = 1,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        context_frame: Tensor | None = None,
    ) -> DecodeOutput:
        """Video of z after `num_steps` Euler steps (0: the preview).

        noise: (B, 3, T, H, W) standard normal on the padded size; drawn from `generator` when not given.
        context_frame: (B, 3, H, W) in [-1, 1], the frame a continuation clip goes on from; required for those only.
        """
        condition = self.condition(z)
        if num_steps == 0:
            if not self.config.preview:
                raise ValueError("this model has no preview: num_steps must be at least 1")
            return DecodeOutput(seen(condition.preview, z))
        times = flow.schedule(num_steps)
        shape = condition.preview.shape
        if noise is None:
            noise = torch.randn(shape, generator=generator, device=condition.preview.device)
        if noise.shape != shape:
            raise ValueError(f"noise must be {tuple(shape)}, got {tuple(noise.shape)}")
        generated = torch.ones(shape[0], z.structural.shape[1], device=noise.device)
        generated[~z.is_key, 0] = 0.0
        if not bool(z.is_key.all()):
            if context_frame is None:
                raise ValueError("a continuation clip needs context_frame, the last frame decoded before it")
            given = pad_to_patches(context_frame[:, :, None])
            if z.cameras is not None:
                given = drawn(given, z.cameras, hold_still)
            start = torch.where(z.is_key[:, None, None, None, None], noise[:, :, :1], given)
            noise = torch.cat([start, noise[:, :, 1:]], dim=2)
        if num_steps > 1 and self.transform is not None and few_steps.in_coefficients(self.config):
            video = few_steps.decode(noise, times, condition, z.is_key, self.decoder, self.transform)
        else:
            video = flow.euler(
                lambda x, t: self.decoder.velocity(x, generated * t, condition, self.transform), noise, times
            )
        return DecodeOutput(seen(video, z))

    def forward(
        self,
        video: Tensor,
        *,
        anchors: Tensor,
        is_key: Tensor,
        resolution: Tensor,
        noisy: Tensor,
        t: Tensor,
        sample_posterior: bool = True,
    ) -> TrainingOutput:
        """One training pass: encode, drop nothing (the caller chose `anchors`), condition once, predict once at `t`.

        anchors (B, K) with K = 0 for "no latents"; noisy (B, 3, T, H, W) as `flow.add_noise` makes it; t (B, Tg).
        """
        count = anchors.shape[1]
        asked = anchors if count else anchors.new_zeros(anchors.shape[0], 1)
        posterior = self.encoder(video, resolution, is_key, asked, self.transform)
        structural, latents = posterior.structural_mean, posterior.latents_mean
        if sample_posterior:
            structural = draw(structural, posterior.structural_logvar)
            latents = draw(latents, posterior.latents_logvar)
        has_latents = torch.full((video.shape[0],), count > 0, device=video.device)
        condition = self.decoder.condition(structural, latents, asked, has_latents, resolution, is_key, self.transform)
        return TrainingOutput(posterior, condition.preview, self.decoder.video(noisy, t, condition, self.transform))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` (see `onedva.checkpoint.save_model`)."""
        from onedva.checkpoint import save_model

        save_model(self, Path(folder))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "tiny", *, revision: str | None = None) -> OneDVA:
        """A shipped model by name, a folder, or a hub id at a pinned revision (see `onedva.checkpoint.load_model`)."""
        from onedva.checkpoint import load_model

        return load_model(name_or_path, revision=revision)


def pad_to_patches(video: Tensor) -> Tensor:
    """(B, C, T, H, W) with H and W grown to multiples of 16 by repeating the last row and column."""
    height, width = (-video.shape[3]) % placement.PATCH_SIZE, (-video.shape[4]) % placement.PATCH_SIZE
    return F.pad(video, (0, width, 0, height, 0, 0), mode="replicate") if height or width else video


def drawn(video: Tensor, cameras: Sequence[Camera | None], draw: Callable[[Uint8, Camera], Uint8]) -> Tensor:
    """A video (B, 3, N, H, W), each clip with a camera drawn by it as the codec does, so rounded to 8 bits."""
    clips = [
        clip if camera is None else to_video(torch.from_numpy(draw(to_frames(clip[None])[0], camera))[None])[0]
        for clip, camera in zip(video, cameras, strict=True)
    ]
    return torch.stack([clip.to(video) for clip in clips])


def seen(video: Tensor, z: HybridLatents) -> Tensor:
    """A decoded video (B, 3, T, H, W) as it was before padding, its camera moving again."""
    video = video if z.cameras is None else drawn(video, z.cameras, follow)
    return video[..., : z.size[0], : z.size[1]]


def to_video(frames: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 → (B, 3, T, H, W) float32 in [-1, 1]."""
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_frames(video: Tensor) -> np.ndarray:
    """(B, 3, T, H, W) in [-1, 1] → (B, T, H, W, 3) uint8, rounded and clipped."""
    frames = ((video.detach().float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return frames.permute(0, 2, 3, 4, 1).contiguous().cpu().numpy()


def check_anchors(anchors: Tensor, *, grid: tuple[int, int, int], queries: int) -> None:
    """ValueError unless anchors are (B, K ≤ queries) distinct indices of the grid."""
    positions = grid[0] * grid[1] * grid[2]
    if anchors.ndim != 2 or anchors.dtype != torch.int64 or anchors.shape[1] > queries:
        raise ValueError(f"anchors must be int64 (B, K ≤ {queries}), got {anchors.dtype} {tuple(anchors.shape)}")
    for row in anchors.tolist():
        if len(set(row)) != len(row) or any(not 0 <= index < positions for index in row):
            raise ValueError(f"anchors must be distinct grid indices between 0 and {positions - 1}")
