"""Latents as a generator would have made them of a clip that exists: noised part of the way, then generated the rest.

What stage `post` trains the decoder on. From pure noise there would be no clip to compare the decode with.
"""

from __future__ import annotations

import numpy as np
import torch

from onedva import flow
from onedva.data import Batch
from onedva.generation.model import LatentDiT, Latents
from onedva.generation.sample import ask, guided, pack, to_hybrid, unpack
from onedva.generation.step import coordinates, log_uniform
from onedva.model import HybridLatents, OneDVA
from onedva_runtime import placement

__all__ = ["predicted_latents"]

LEAST_NOISE = 0.2  # below it, a generator has hardly anything to add
STEPS = 3  # Euler steps that take the noise off again


def predicted_latents(
    network: OneDVA,
    generator: LatentDiT,
    batch: Batch,
    random: np.random.Generator,
    noise: torch.Generator,
    *,
    most: float,
    own: float,
) -> HybridLatents:
    """Latents of a batch of key clips by the generator, without class, from times up to `most`.

    A share `own` of the batches keeps the encoder's latents. The number of 1D latents is log-uniform, as in the
    generator's training. Raises ValueError for clips of another length than the generator's.
    """
    video, config = batch.video, generator.config
    frames, height, width = video.shape[2:]
    if frames != config.clip_frames:
        raise ValueError(
            f"this generator makes clips of {config.clip_frames} frames: train with --frames {config.clip_frames}"
        )
    grid = placement.grid_of(frames, height, width)
    longest = placement.longest(grid, max_tokens=config.max_tokens)
    tokens = log_uniform(random, longest, length_multiple=config.length_multiple)
    wanted = ask(generator, labels=[None] * len(video), tokens=tokens, size=(height, width), layered=network.config.pca)
    anchors = wanted.anchors
    if config.anchors == "generated":
        anchors = network.anchors_of(video, tokens=tokens, is_key=wanted.is_key)
    z = network.encode(video, anchors=anchors, fps=config.fps).latent_dist.mode()
    if random.random() < own:
        return z
    clean = Latents(*generator.normalise(z.structural, z.latents, wanted.is_key))
    if config.anchors == "generated":
        places = coordinates(anchors, grid)
        clean = Latents(clean.structural, torch.cat([clean.sequence, places], dim=-1))
    begin = float(random.uniform(LEAST_NOISE, most)) if most > LEAST_NOISE else most
    start = Latents(
        *(
            flow.add_noise(part, torch.randn(part.shape, generator=noise, device=part.device), torch.tensor(begin))
            for part in clean
        )
    )
    times = [max(t, flow.MIN_SCHEDULE_TIME) for t in np.linspace(begin, 0, STEPS + 1)[:-1].tolist()] + [0.0]
    end = flow.euler(lambda state, t: pack(guided(generator, unpack(state, start), t, wanted, 1.0)), pack(start), times)
    return to_hybrid(generator, unpack(end, start), wanted, tokens=tokens, size=(height, width))
