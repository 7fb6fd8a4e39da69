"""Continuation clips: does a chain drift, and can its joints be seen (`onedva eval --chains`)?

A chain is a key clip and continuation clips after it, each sharing its first frame with the last of the one before. It
is decoded twice from the same latents and noise: as a viewer does, each clip given the model's own last decoded frame
and its joint softened, and with the true source frame in its place. What the first loses against the second is what the
chain costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from onedva.data import Clip, centre_clip
from onedva.evaluate import PSNR_CAP
from onedva.model import HybridLatents, OneDVA, to_frames, to_video
from onedva_runtime.metrics import psnr
from onedva_runtime.placement import PATCH_FRAMES
from onedva_runtime.seams import soften

TOKENS = 256  # 1D latents of each clip of a chain, unless said


@dataclass(frozen=True, kw_only=True)
class ChainScore:
    """One video as a chain. Clips count from 0, the key clip; a continuation clip's context frame is not scored."""

    clip: str
    clips: int
    """How many there are; a short video holds fewer than were asked for."""
    own: tuple[float, ...]
    """PSNR of each clip's new frames, its context the model's own decode, in dB, capped at 45."""
    true: tuple[float, ...]
    """The same with the source as context."""
    clip_edge: float
    """Mean |e(t+1) − e(t)| from the last frame of a clip to the first new one of the next; e = decode − source, in
    levels of 255."""
    group_edge: float
    """The same at the edges between groups of four frames inside clips, without the edge behind a key clip's frame 0,
    which is a group of its own."""

    @property
    def loss(self) -> float:
        """dB that continuation clips lose by not having the true context, mean over them."""
        return float(np.mean(np.subtract(self.true[1:], self.own[1:])))

    @property
    def trend(self) -> float:
        """Slope of own − true over the number of the clip, dB per clip, by least squares; falling is below 0.

        The key clip, which is the same in both, is left out; 0 with fewer than two continuation clips.
        """
        lost = np.subtract(self.own, self.true)[1:]
        return float(np.polyfit(np.arange(len(lost)), lost, 1)[0]) if len(lost) > 1 else 0.0

    @property
    def seam(self) -> float:
        """Edge of clips over edge of groups: 1 where a joint cannot be told from any other."""
        return self.clip_edge / max(self.group_edge, 1e-6)


def chain_scores(
    model: OneDVA,
    clips: Sequence[Clip],
    *,
    links: int = 10,
    tokens: int = TOKENS,
    steps: int = 1,
    size: int = 256,
    seed: int = 0,
    autocast: bool = False,
    progress: bool = False,
) -> list[ChainScore]:
    """Chains of up to `links` clips from the middle of every video; those too short for two clips are left out.

    tokens: 1D latents of each clip. steps: at least 1, as the preview cannot see the context frame. Raises ValueError
    for fewer links or steps than that, and for a model whose clips are too short to have groups inside.
    """
    if links < 2 or steps < 1:
        raise ValueError(f"a chain has at least 2 clips and 1 step, got {links} and {steps}")
    new = model.config.clip_frames - 1
    if new <= PATCH_FRAMES:
        raise ValueError(f"chains need clips of at least {1 + 2 * PATCH_FRAMES} frames, the model has {1 + new}")
    scores = []
    for clip in track(clips, "chains", console=Console(stderr=True), disable=not progress):
        count = min(links, (clip.frames.shape[0] - 1) // new)
        if count < 2:
            continue
        source = centre_clip(clip, frames=1 + new * count, size=size)
        kinds = decode_chain(model, source, tokens=tokens, steps=steps, fps=clip.fps, seed=seed, autocast=autocast)
        scores.append(score_chain(clip.name, source, *kinds, new=new))
    return scores


def decode_chain(
    model: OneDVA,
    source: NDArray[np.uint8],
    *,
    tokens: int,
    steps: int,
    fps: float,
    seed: int = 0,
    autocast: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """source (1 + n·c, H, W, 3) uint8, clips of 1 + n frames each → the whole video with the model's own context, and
    with the source's."""
    model.eval()
    new = model.config.clip_frames - 1
    device = next(model.parameters()).device
    own: list[NDArray[np.uint8]] = []
    true: list[NDArray[np.uint8]] = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        for index, start in enumerate(range(0, len(source) - 1, new)):
            video = to_video(torch.from_numpy(source[start : start + new + 1])[None]).to(device)
            is_key = torch.tensor([index == 0], device=device)
            z = model.encode(video, tokens=tokens, is_key=is_key, fps=fps, follow_camera=True).latent_dist.mode()
            generator = torch.Generator().manual_seed(seed + index)
            noise = torch.randn(video.shape, generator=generator).to(device)
            if index == 0:
                own.append(decode_clip(model, z, noise, steps, None))
                true.append(own[0])
                continue
            # only what was decoded is glided from: the source's frame would tell what no decoder knows
            own.append(soften(own[-1][-1], decode_clip(model, z, noise, steps, own[-1][-1])[1:]))
            true.append(decode_clip(model, z, noise, steps, source[start])[1:])
    return np.concatenate(own), np.concatenate(true)


def decode_clip(
    model: OneDVA, z: HybridLatents, noise: Tensor, steps: int, context: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """One clip (T, H, W, 3) uint8, its context frame (H, W, 3) among them."""
    frame = None if context is None else to_video(torch.from_numpy(context)[None, None])[:, :, 0].to(noise.device)
    return to_frames(model.decode(z, num_steps=steps, noise=noise, context_frame=frame).sample)[0]


def score_chain(
    name: str, source: NDArray[np.uint8], own: NDArray[np.uint8], true: NDArray[np.uint8], *, new: int
) -> ChainScore:
    """Scores of a chain of clips of `new` new frames each; the key clip has one more.

    source, own, true: (1 + new·c, H, W, 3) uint8.
    """
    count = (len(source) - 1) // new
    starts = [0, *(1 + new * index for index in range(1, count)), len(source)]

    def by_clip(decoded: NDArray[np.uint8]) -> tuple[float, ...]:
        parts = (slice(start, end) for start, end in pairwise(starts))
        return tuple(min(psnr(source[part], decoded[part]), PSNR_CAP) for part in parts)

    def jump(at: list[int]) -> float:  # from frame t to t + 1, over all t in `at`
        errors = [own[t : t + 2].astype(np.int16) - source[t : t + 2] for t in at]
        return float(np.mean([np.abs(error[1] - error[0]).mean() for error in errors]))

    edges = range(PATCH_FRAMES, len(source) - 1, PATCH_FRAMES)
    inside = [t for t in edges if t % new]
    return ChainScore(
        clip=name,
        clips=count,
        own=by_clip(own),
        true=by_clip(true),
        clip_edge=jump([t for t in edges if t % new == 0]),
        group_edge=jump(inside),
    )


def chain_report(scores: Sequence[ChainScore]) -> dict[str, Any]:
    """Chains as plain data: each video, and over all of them the mean loss in dB, the mean trend, and the seam ratio of
    the mean edges. Raises ValueError when there are none."""
    if not scores:
        raise ValueError("no video is long enough for a chain of two clips")
    clip_edge, group_edge = (float(np.mean([getattr(s, name) for s in scores])) for name in ("clip_edge", "group_edge"))
    return {
        "loss_db": float(np.mean([score.loss for score in scores])),
        "trend_db_per_clip": float(np.mean([score.trend for score in scores])),
        "seam": clip_edge / max(group_edge, 1e-6),
        "videos": [
            {
                "clip": score.clip,
                "clips": score.clips,
                "own_db": score.own,
                "true_db": score.true,
                "loss_db": score.loss,
                "trend_db_per_clip": score.trend,
                "clip_edge": score.clip_edge,
                "group_edge": score.group_edge,
                "seam": score.seam,
            }
            for score in scores
        ],
    }
