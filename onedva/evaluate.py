"""Reconstructions of held-out clips per latent length and number of steps, and their PSNR and SSIM.

The view is fixed: 17 frames from the middle of each video, short side scaled to 256, centre crop of 256×256 (or of
another size, at the same scale). A clip's PSNR is over all its frames and capped at 45 dB, so that one nearly blank
clip does not carry the mean. `onedva.report` builds `onedva eval` on this; training scores with `evaluate` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from onedva.config import OneDVAConfig
from onedva.data import Clip, centre_clip
from onedva.model import OneDVA, to_frames, to_video
from onedva.sources import SHORT_SIDE
from onedva_runtime import placement
from onedva_runtime.metrics import psnr, ssim

PSNR_CAP = 45.0
LENGTHS = (0, 64, 256, 1024)
ERROR_GAIN = 4  # the |error| row of a strip: a level of 255 off by 16 must be seen


@dataclass(frozen=True)
class Score:
    """One clip at one length and number of steps."""

    clip: str
    tokens: int
    steps: int
    psnr: float  # dB, capped
    ssim: float | None = None
    lpips: float | None = None


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """One clip, there and back."""

    index: int
    """Which of the clips given."""
    clip: Clip
    tokens: int
    """1D latents used."""
    steps: int
    """Euler steps; 0 is the preview."""
    frames: NDArray[np.uint8]
    """The source (T, S, S, 3) in the view above."""
    decoded: NDArray[np.uint8]
    """What came back, the same shape."""


def reconstructions(
    model: OneDVA,
    clips: Sequence[Clip],
    *,
    tokens: Sequence[int] = LENGTHS,
    steps: Sequence[int] = (1,),
    size: int = 256,
    seed: int = 0,
    autocast: bool = False,
    progress: str = "",
) -> Iterator[Reconstruction]:
    """Every clip at every length and step count, from one encode at the longest: a prefix is what a shorter budget
    would have given. A moving camera is followed where that pays, as the codec does.

    tokens: as `lengths_of` reads them. size: side of the centre crop in pixels, a multiple of 16 up to 256. seed: of
    the noise, the same for every clip. autocast: bfloat16 where the machine is faster at it; that moves scores by
    hundredths of a dB. progress: label of a bar on stderr; no bar where empty. Raises ValueError for another size.
    """
    check_size(size)
    model.eval()
    device = next(model.parameters()).device
    lengths = lengths_of(model.config, tokens, size=size)
    for index, clip in enumerate(track(clips, progress, console=Console(stderr=True), disable=not progress)):
        frames = centre_clip(clip, frames=model.config.clip_frames, size=size)
        video = to_video(torch.from_numpy(frames)[None]).to(device)
        noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed)).to(device)
        found = []
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            latents = model.encode(video, tokens=max(lengths), fps=clip.fps, follow_camera=True).latent_dist.mode()
            for count in lengths:
                for number in steps:
                    decoded = to_frames(model.decode(latents.thin(count), num_steps=number, noise=noise).sample)[0]
                    found.append((count, number, decoded))
        for count, number, decoded in found:  # out here: a generator would leave its caller in inference mode
            yield Reconstruction(index=index, clip=clip, tokens=count, steps=number, frames=frames, decoded=decoded)


def check_size(size: int) -> None:
    """ValueError unless a centre crop can have this side."""
    if size % placement.PATCH_SIZE or not placement.PATCH_SIZE <= size <= SHORT_SIDE:
        raise ValueError(f"size must be a multiple of {placement.PATCH_SIZE} up to {SHORT_SIDE}, got {size}")


def lengths_of(config: OneDVAConfig, tokens: Sequence[int], *, size: int) -> list[int]:
    """`tokens` as a key clip of size × size carries them: rounded up to `length_multiple`, no more than there are
    positions and queries, rising, each once."""
    grid = placement.grid_of(config.clip_frames, size, size)
    most = placement.longest(grid, max_tokens=min(config.queries, config.trained_tokens))
    multiple = config.length_multiple
    return sorted({placement.round_tokens(count, most, length_multiple=multiple) for count in tokens})


def evaluate(
    model: OneDVA,
    clips: Sequence[Clip],
    *,
    tokens: Sequence[int] = LENGTHS,
    steps: Sequence[int] = (1,),
    size: int = 256,
    seed: int = 0,
    autocast: bool = False,
    progress: bool = False,
    with_ssim: bool = False,
) -> list[Score]:
    """PSNR of `reconstructions`, and SSIM where asked: it takes longer than decoding does."""
    label = "evaluate" if progress else ""
    options = {"tokens": tokens, "steps": steps, "size": size, "seed": seed, "autocast": autocast, "progress": label}
    return [score(one, with_ssim=with_ssim) for one in reconstructions(model, clips, **options)]


def score(one: Reconstruction, *, with_ssim: bool, lpips: float | None = None) -> Score:
    """The score of one reconstruction; `lpips` is passed on."""
    similarity = ssim(one.frames, one.decoded) if with_ssim else None
    value = min(psnr(one.frames, one.decoded), PSNR_CAP)
    return Score(one.clip.name, one.tokens, one.steps, value, similarity, lpips)


def mean_by_length(scores: Sequence[Score], *, steps: int = 1) -> dict[int, float]:
    """Mean PSNR over clips per number of tokens."""
    chosen = [score for score in scores if score.steps == steps]
    lengths = sorted({score.tokens for score in chosen})
    return {count: float(np.mean([one.psnr for one in chosen if one.tokens == count])) for count in lengths}


def as_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Scores as plain data, without what was not measured."""
    return [{name: value for name, value in asdict(one).items() if value is not None} for one in scores]


def strip(source: NDArray[np.uint8], decoded: NDArray[np.uint8], *, count: int = 4) -> NDArray[np.uint8]:
    """A picture for eyes and TensorBoard: `count` frames side by side, in three rows: source, decoded, 4·|error|.

    source, decoded: (T, H, W, 3) uint8. The first and the last frame are among those shown. Returns (3H, count·W, 3)
    uint8. Raises ValueError for shapes that differ.
    """
    if source.shape != decoded.shape:
        raise ValueError(f"source and decoded must have one shape, got {source.shape} and {decoded.shape}")
    shown = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    error = np.abs(source[shown].astype(np.int16) - decoded[shown])
    rows = (source[shown], decoded[shown], np.minimum(ERROR_GAIN * error, 255).astype(np.uint8))
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])
