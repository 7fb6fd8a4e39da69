"""PSNR per latent length and number of steps on held-out clips, and the linear floor they are held against.

    onedva eval runs/tiny --clips FOLDER --floor

The view is fixed: 17 frames from the middle of each video, short side scaled to 256, centre crop of 256×256. A clip's
PSNR is over all its frames and capped at 45 dB, so that one nearly blank clip does not carry the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from onedva.data import Clip, Split, centre_clip, load_clips
from onedva.linear_start import linear_model
from onedva.model import OneDVA, to_frames, to_video
from onedva_runtime.metrics import psnr

PSNR_CAP = 45.0
LENGTHS = (0, 64, 256, 1024)


@dataclass(frozen=True)
class Score:
    """One clip at one length and number of steps."""

    clip: str
    tokens: int
    steps: int
    psnr: float  # dB, capped


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
) -> list[Score]:
    """Decode every clip at every length and step count from one encode at the longest length.

    A prefix is what a shorter budget would have given. autocast: bfloat16 where the machine is faster at it; that moves
    scores by hundredths of a dB.
    """
    model.eval()
    scores = []
    for clip in track(clips, "evaluate", console=Console(stderr=True), disable=not progress):
        frames = centre_clip(clip, frames=model.config.clip_frames, size=size)
        video = to_video(torch.from_numpy(frames)[None])
        noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            latents = model.encode(video, tokens=max(tokens), fps=clip.fps).latent_dist.mode()
            for count in tokens:
                for number in steps:
                    decoded = model.decode(latents.thin(count), num_steps=number, noise=noise).sample
                    value = min(psnr(frames, to_frames(decoded)[0]), PSNR_CAP)
                    scores.append(Score(clip.name, count, number, value))
    return scores


def mean_by_length(scores: Sequence[Score], *, steps: int = 1) -> dict[int, float]:
    """Mean PSNR over clips per number of tokens."""
    lengths = sorted({score.tokens for score in scores})
    return {k: float(np.mean([s.psnr for s in scores if s.tokens == k and s.steps == steps])) for k in lengths}


def report(
    model: str | Path | OneDVA,
    folder: Path,
    *,
    tokens: Sequence[int] = LENGTHS,
    steps: Sequence[int] = (1,),
    floor: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores of a model on both splits of a folder of videos, and with `floor` of its linear start, as plain data.

    Returns {"model": …, "floor": … or absent}, each {"train" and "dev": {"mean": {steps: {tokens: dB}}, "clips": […]}}.
    Raises FileNotFoundError when the folder or both splits are missing.
    """
    network = model if isinstance(model, OneDVA) else OneDVA.from_pretrained(model)
    splits = {split: load_clips(folder, split=split) for split in get_args(Split)}
    networks = {"model": network}
    if floor:
        networks["floor"] = linear_model(network.config, splits["train"])
    result: dict[str, Any] = {}
    for name, candidate in networks.items():
        result[name] = {}
        for split, clips in splits.items():
            scores = evaluate(candidate, clips, tokens=tokens, steps=steps, seed=seed, progress=progress)
            means = {number: mean_by_length(scores, steps=number) for number in steps}
            result[name][split] = {"mean": means, "clips": as_json(scores)}
    return result


def as_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    return [asdict(score) for score in scores]
