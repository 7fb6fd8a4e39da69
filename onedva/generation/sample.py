"""Clips from nothing: noise → latents by the generator, latents → video by the autoencoder's decoder.

generator, autoencoder = load_generator(folder), OneDVA.from_pretrained(folder)
z = generate_latents(generator, labels=[3, 3], tokens=48, num_steps=30, seeds=[0, 1], guidance=2.0)
video = autoencoder.decode(z, num_steps=1).sample
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onedva import flow
from onedva.generation.checkpoint import check_autoencoder, load_generator
from onedva.generation.model import Asked, LatentDiT, Latents
from onedva.generation.tokenise import first_latents
from onedva.model import HybridLatents, OneDVA, to_frames, to_video
from onedva_runtime import placement
from onedva_runtime.latent_noise import latent_noise, snap_anchors
from onedva_runtime.noise import gaussian
from onedva_runtime.seams import soften

__all__ = ["ask", "generate_clip", "generate_latents", "guided", "label_number"]


def generate_latents(
    generator: LatentDiT,
    *,
    labels: Sequence[int | None],
    tokens: int | None = None,
    num_steps: int = 30,
    seeds: Sequence[int],
    guidance: float = 2.0,
    size: tuple[int, int] | None = None,
    first: Tensor | None = None,
    text: Tensor | None = None,
    layered: bool = True,
) -> HybridLatents:
    """Latents of a batch of new clips, as `OneDVA.decode` takes them.

    labels: of the classes, None for any; one per clip, as seeds. tokens: 1D latents, rounded up to the model's
    multiple; 0 for none, None for the most. num_steps: Euler steps, 1 to 50. guidance: 1 follows the class, more
    exaggerates it (Ho & Salimans 2022), 0 ignores it. size: (height, width), multiples of 16; default what it was
    trained on. first: (B, Hg, Wg, Zs + Z) from `tokenise.first_latents`, the clips then go on from that frame. text:
    (B, L, C) embeddings. layered: whether the autoencoder's anchors name layers (`config.pca`). Raises ValueError.
    """
    config, device = generator.config, generator.order.device
    height, width = size or config.sizes[0]
    grid = placement.grid_of(config.clip_frames, height, width)
    is_key = first is None
    count = placement.asked_tokens(
        tokens, grid, max_tokens=config.max_tokens, is_key=is_key, length_multiple=config.length_multiple
    )
    asked = ask(generator, labels=labels, tokens=count, size=(height, width), first=first, text=text, layered=layered)
    noise = [
        latent_noise(seed, grid, config.structural_channels, max(count, 1), config.sequence_channels) for seed in seeds
    ]
    structural, sequence = (torch.from_numpy(np.stack(parts)).to(device) for parts in zip(*noise, strict=True))
    if not is_key:
        structural[:, 0] = 0
    start = Latents(structural, sequence)
    with torch.inference_mode():
        end = flow.euler(
            lambda state, t: pack(guided(generator, unpack(state, start), t, asked, guidance)),
            pack(start),
            flow.schedule(num_steps),
        )
    return to_hybrid(generator, unpack(end, start), asked, tokens=count, size=(height, width))


def generate_clip(
    folder: str | Path,
    *,
    label: str | None = None,
    tokens: int | None = None,
    num_steps: int = 30,
    guidance: float = 2.0,
    decode_steps: int = 1,
    size: tuple[int, int] | None = None,
    seed: int = 0,
    first_frame: NDArray[np.uint8] | None = None,
    text: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.uint8], float]:
    """One clip (T, H, W, 3) uint8 by a checkpoint folder, and its rate: what `VideoCodec.generate` does, in PyTorch.

    label: a class by its name, None for any. tokens: None for the most. first_frame: (H, W, 3) of `size`; the clip
    begins with it. The rest as `generate_latents`. Raises FileNotFoundError, ValueError.
    """
    folder = Path(folder)
    generator, autoencoder = load_generator(folder), OneDVA.from_pretrained(folder)
    check_autoencoder(folder, generator.config)
    config = generator.config
    number = label_number(config.classes, label)
    height, width = size or config.sizes[0]
    first = given = None
    if first_frame is not None:
        if first_frame.shape != (height, width, 3):
            raise ValueError(f"first_frame must be ({height}, {width}, 3), got {first_frame.shape}")
        given = first_frame[None]
        first = first_latents(autoencoder, to_video(torch.from_numpy(given[None])), fps=config.fps)
    z = generate_latents(
        generator,
        labels=[number],
        tokens=tokens,
        num_steps=num_steps,
        seeds=[seed],
        guidance=guidance,
        size=(height, width),
        first=first,
        text=None if text is None else torch.from_numpy(text)[None],
        layered=autoencoder.config.pca,
    )
    noise = gaussian(seed, first_frame=0, frames=config.clip_frames, height=height, width=width)[None]
    with torch.inference_mode():
        context = None if given is None else to_video(torch.from_numpy(given[None]))[:, :, 0]
        video = autoencoder.decode(z, num_steps=decode_steps, noise=torch.from_numpy(noise), context_frame=context)
    frames = to_frames(video.sample)[0]
    if given is not None:
        frames = np.concatenate([given, soften(given[0], frames[1:])])
    return frames, config.fps


def label_number(classes: Sequence[str], name: str | None) -> int | None:
    """The label of a class; ValueError lists the names."""
    if name is None:
        return None
    if name not in classes:
        raise ValueError(f"unknown class {name!r}; this generator knows {', '.join(classes) or 'none'}")
    return list(classes).index(name)


def ask(
    generator: LatentDiT,
    *,
    labels: Sequence[int | None],
    tokens: int,
    size: tuple[int, int],
    first: Tensor | None = None,
    text: Tensor | None = None,
    layered: bool = True,
) -> Asked:
    """What `generate_latents` asks of the model; raises ValueError for what it was not trained for."""
    config, device, batch = generator.config, generator.order.device, len(labels)
    none = len(config.classes)
    numbers = [none if label is None else label for label in labels]
    if not all(0 <= number <= none for number in numbers):
        raise ValueError(f"labels must be from 0 to {none - 1}, or None; got {list(labels)}")
    if first is not None and not config.continuation:
        raise ValueError("this generator was not trained to go on from a first frame (onedva tokenize --continuation)")
    if text is not None and not config.text_channels:
        raise ValueError("this generator was not trained with texts (onedva train-ldm --text)")
    grid = placement.grid_of(config.clip_frames, *size)
    is_key = first is None
    order = placement.shared_anchors(grid, max(tokens, 1), is_key=is_key, layered=layered)
    channels = generator.first_mean.shape[0]
    if first is None:
        first = torch.zeros(batch, *grid[1:], channels, device=device)
    else:
        first = (first - generator.first_mean) / generator.first_std
    if text is None:
        text = torch.zeros(batch, config.text_tokens, config.text_channels, device=device)
    return Asked(
        torch.from_numpy(order).to(device).expand(batch, -1),
        torch.full((batch,), tokens > 0, device=device),
        torch.tensor(numbers, device=device),
        torch.tensor([[config.clip_frames, *size, config.fps]], device=device).expand(batch, -1),
        torch.full((batch,), is_key, device=device),
        first,
        text,
    )


def guided(generator: LatentDiT, noisy: Latents, t: float, asked: Asked, guidance: float) -> Latents:
    """Velocity with classifier-free guidance: without + guidance · (with − without) class and text."""
    batch = len(asked.label)
    times = torch.full((batch,), t, device=asked.label.device)
    if guidance == 1:
        return generator.velocity(noisy, times, asked)
    without = asked._replace(
        label=torch.full_like(asked.label, len(generator.config.classes)), text=torch.zeros_like(asked.text)
    )
    both = Asked(*(torch.cat(pair) for pair in zip(asked, without, strict=True)))
    twice = Latents(*(torch.cat([part, part]) for part in noisy))
    velocity = generator.velocity(twice, torch.cat([times, times]), both)
    return Latents(*(part[batch:] + guidance * (part[:batch] - part[batch:]) for part in velocity))


def pack(latents: Latents) -> Tensor:
    """Both latents as one row per clip: the state that `flow.euler` integrates."""
    return torch.cat([part.flatten(1) for part in latents], dim=1)


def unpack(state: Tensor, like: Latents) -> Latents:
    """Inverse of `pack`."""
    size = like.structural[0].numel()
    return Latents(state[:, :size].reshape(like.structural.shape), state[:, size:].reshape(like.sequence.shape))


def to_hybrid(
    generator: LatentDiT, latents: Latents, asked: Asked, *, tokens: int, size: tuple[int, int]
) -> HybridLatents:
    """Generated latents in the autoencoder's units, each 1D latent at its place."""
    config = generator.config
    structural, sequence = generator.denormalise(
        latents.structural, latents.sequence[..., : config.latent_channels], asked.is_key
    )
    anchors = asked.anchors
    if config.anchors == "generated":
        grid = (structural.shape[1], structural.shape[2], structural.shape[3])
        where = latents.sequence[..., config.latent_channels :].cpu().numpy()
        rows = [snap_anchors(row, grid, is_key=bool(key)) for row, key in zip(where, asked.is_key, strict=True)]
        anchors = torch.from_numpy(np.stack(rows)).to(structural.device)
    return HybridLatents(structural, sequence[:, :tokens], anchors[:, :tokens], asked.is_key, asked.resolution, size)
