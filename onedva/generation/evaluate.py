"""What `onedva eval --suite paper` measures of a generator: its clips against real ones, over 1D length and steps.

gFVD is the Fréchet distance of video features between as many generated clips as there are real ones, classes in turn
(class-to-video); blocks are what patch edges show beyond the real clips' own (`blockiness.edge_excess`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onedva.data import Clip
from onedva.fvd import frechet_distance
from onedva.generation.blockiness import edge_excess
from onedva.generation.checkpoint import GENERATOR_CONFIG, check_autoencoder, load_generator
from onedva.generation.sample import generate_latents
from onedva.generation.tokenise import centre_crop
from onedva.model import OneDVA, to_frames

__all__ = ["generated_rows", "has_generator"]

BATCH = 8
FEWEST_FOR_FVD = 2
Frames = NDArray[np.uint8]


def has_generator(folder: Path) -> bool:
    """Whether a model folder holds a generator too."""
    return (folder / GENERATOR_CONFIG).is_file()


def generated_rows(
    folder: Path,
    clips: Sequence[Clip],
    *,
    steps: Sequence[int],
    guidance: float,
    video_features: Callable[[Frames], NDArray[np.float64]] | None,
    seed: int = 0,
    advance: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """One row per latent length and number of the generator's steps, of as many clips as are given.

    Lengths are none, the shortest, and the most that the generator knows, and powers of two between. A row has tokens,
    steps, clips, blocks, and gfvd where there are features and at least two clips. advance: called with the number of
    clips made. Raises ValueError for clips shorter than the generator's, or another autoencoder beside it.
    """
    generator, model = load_generator(folder), OneDVA.from_pretrained(folder)
    check_autoencoder(folder, generator.config)
    config = generator.config
    real = [real_clip(clip, frames=config.clip_frames, size=config.sizes[0]) for clip in clips]
    features = None if video_features is None else np.stack([video_features(frames) for frames in real])
    real_blocks = edge_excess(np.stack(real))
    lengths = [0]
    while (lengths[-1] * 2 or config.length_multiple) < config.max_tokens:
        lengths.append(lengths[-1] * 2 or config.length_multiple)
    rows = []
    for tokens in [*lengths, config.max_tokens]:
        for count in steps:
            made: list[Frames] = []
            for start in range(0, len(real), BATCH):
                numbers = range(start, min(start + BATCH, len(real)))
                labels = [number % len(config.classes) if config.classes else None for number in numbers]
                with torch.inference_mode():
                    z = generate_latents(
                        generator,
                        labels=labels,
                        tokens=tokens,
                        num_steps=count,
                        seeds=[seed + number for number in numbers],
                        guidance=guidance,
                        layered=model.config.pca,
                    )
                    made += list(to_frames(model.decode(z, num_steps=1).sample))
                advance(len(numbers))
            row: dict[str, Any] = {"tokens": tokens, "steps": count, "clips": len(made)}
            row["blocks"] = edge_excess(np.stack(made)) - real_blocks
            if features is not None and video_features is not None and len(made) >= FEWEST_FOR_FVD:
                row["gfvd"] = frechet_distance(features, np.stack([video_features(frames) for frames in made]))
            rows.append(row)
    return rows


def real_clip(clip: Clip, *, frames: int, size: tuple[int, int]) -> Frames:
    """The middle of a clip as the generator would have been shown it: scaled to cover `size`, cropped at its centre."""
    total = len(clip.frames)
    if total < frames:
        raise ValueError(f"{clip.name} has {total} frames, the generator makes {frames}")
    start = (total - frames) // 2
    return centre_crop(np.array(clip.frames[start : start + frames]), *size)
