"""One training step of a latent diffusion model: rows of a latent set in, a loss out.

Everything random comes from (seed, step), so a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from onedva import flow
from onedva.generation.config import GeneratorConfig, LatentTrainConfig
from onedva.generation.latent_shards import AUTOENCODER, LatentBatch, LatentSet
from onedva.generation.model import Asked, LatentDiT, Latents
from onedva.layers import anchor_positions
from onedva.model import OneDVA
from onedva_runtime.latent_noise import COORDINATE_SCALE

STATISTICS_CLIPS = 4096  # that means and deviations are taken over
SMALLEST_VARIANCE = 0.02  # of a normalised channel, where the mean is 1
SMALLEST_STD = 1e-2  # in the autoencoder's units, where 1 is the deviation over what it was fit to


@dataclass(frozen=True)
class Draw:
    """What one step trains on."""

    clean: Latents
    noisy: Latents
    t: Tensor  # (B,)
    asked: Asked


class LatentStep(nn.Module):
    """The generator and its loss, as one module."""

    def __init__(self, generator: LatentDiT, train: LatentTrainConfig) -> None:
        super().__init__()
        self.generator, self.train_config = generator, train

    def forward(self, draw: Draw) -> dict[str, Tensor]:
        """Losses, `loss` their weighted sum: (clean − predicted)² / max(t, 0.2)² over what is generated."""
        predicted = self.generator(draw.noisy, draw.t, draw.asked)
        weight = flow.loss_weight(draw.t)
        keys = draw.asked.is_key.float()[:, None]
        first = (torch.arange(draw.clean.structural.shape[1], device=draw.t.device) == 0)[None]
        made = torch.where(first, keys, 1.0)  # (B, Tg)
        errors = (predicted.structural - draw.clean.structural).square().mean(dim=(2, 3, 4))  # (B, Tg)
        structural = (weight * (errors * made).sum(1) / made.sum(1)).mean()
        errors = (predicted.sequence - draw.clean.sequence).square().mean(dim=(1, 2))  # (B,)
        sent = draw.asked.has_latents.float()
        sequence = (weight * errors * sent).sum() / sent.sum().clamp(min=1)
        loss = structural + self.train_config.sequence_weight * sequence
        return {"loss": loss, "structural": structural, "sequence": sequence}


def draw_step(
    data: LatentSet,
    generator: LatentDiT,
    train: LatentTrainConfig,
    *,
    step: int,
    texts: dict[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> Draw:
    """Rows, length, noise, times and dropped conditions of one step."""
    random = np.random.default_rng([train.seed, step, 7])
    config = generator.config
    continues = config.continuation and random.random() < train.p_continuation
    rows = np.sort(random.choice(len(data), train.batch, replace=len(data) < train.batch))
    batch = data.rows(rows, continuation=bool(continues))
    tokens, has_latents = draw_length(random, config, train, data.plan.tokens)
    noise = torch.Generator(device).manual_seed(int(random.integers(2**62)))
    dropped = torch.from_numpy(random.random(train.batch) < train.p_unconditional)
    label = torch.where(dropped, len(config.classes), batch.label)
    text = None
    if texts is not None:
        rows_of = [texts[name.rpartition("#")[0]] for name in batch.names]
        text = torch.stack(rows_of).float() * ~dropped[:, None, None]
    clean, asked = to_training(
        generator, data, batch, tokens=tokens, has_latents=has_latents, label=label, text=text, device=device
    )
    t = flow.sample_time(train.batch, p_full=train.p_full, generator=noise)
    noisy = Latents(*(flow.add_noise(part, noise_like(part, noise), along(t, part)) for part in clean))
    if continues:  # group 0 is not generated
        noisy.structural[:, 0] = 0
    return Draw(clean, noisy, t, asked)


def draw_length(
    random: np.random.Generator, config: GeneratorConfig, train: LatentTrainConfig, longest: int
) -> tuple[int, bool]:
    """How many 1D latents a step has: none (one that is ignored stands in), or log-uniform, in multiples."""
    if random.random() < train.p_no_latents:
        return 1, False
    return log_uniform(random, longest, length_multiple=config.length_multiple), True


def log_uniform(random: np.random.Generator, longest: int, *, length_multiple: int) -> int:
    """A length: one of the multiples up to the longest, each about as often as the next two together."""
    count = -(-longest // length_multiple)
    return min(int((count + 1) ** random.random()) * length_multiple, longest)


def to_training(
    generator: LatentDiT,
    data: LatentSet,
    batch: LatentBatch,
    *,
    tokens: int,
    has_latents: bool,
    label: Tensor,
    text: Tensor | None,
    device: torch.device | str,
) -> tuple[Latents, Asked]:
    """A batch as the generator sees it: normalised latents of one length, and what is asked for."""
    count = len(batch.label)
    is_key = torch.full((count,), batch.first is None)
    anchors, (height, width) = batch.anchors[:, :tokens], data.plan.size
    structural, latents = generator.normalise(batch.structural, batch.latents[:, :tokens], is_key)
    if batch.first is not None:
        structural[:, 0] = 0
        first = (batch.first - generator.first_mean) / generator.first_std
    else:
        channels = generator.first_mean.shape[0]
        first = structural.new_zeros(count, *structural.shape[2:4], channels)
    if generator.config.anchors == "generated":
        latents = torch.cat([latents, coordinates(anchors, structural.shape[1:4])], dim=-1)
    resolution = torch.tensor([[data.plan.frames, height, width, generator.config.fps]]).expand(count, -1)
    asked = Asked(
        anchors,
        torch.full((count,), has_latents),
        label,
        resolution,
        is_key,
        first,
        structural.new_zeros(count, 0, 0) if text is None else text,
    )
    return (
        Latents(structural.to(device), latents.to(device)),
        Asked(*(part.to(device) for part in asked)),
    )


def coordinates(anchors: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Anchors (B, K) as channels that can be generated, unit variance: (B, K, 3)."""
    sizes = torch.tensor(grid, dtype=torch.float32, device=anchors.device)
    where = anchor_positions(anchors, grid[1], grid[2])
    return ((where + 0.5) / sizes * 2 - 1) * COORDINATE_SCALE


def along(t: Tensor, like: Tensor) -> Tensor:
    """t (B,) with as many axes as `like`."""
    return t.reshape(-1, *[1] * (like.ndim - 1))


def noise_like(part: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(part.shape, generator=generator, device=generator.device)


@torch.no_grad()
def set_statistics(generator: LatentDiT, data: LatentSet, *, seed: int) -> None:
    """Set means and deviations of a generator from the clips it is to be trained on, in place.

    The variance of a channel is in proportion to its deviation in pixels (`pixel_deviations`): all alike, most of the
    training would go to the many that hardly show; at their full energy, to the few that hold the mean colour.
    """
    random = np.random.default_rng([seed, 0, 8])
    rows = np.sort(random.permutation(len(data))[:STATISTICS_CLIPS])
    for kind, continuation in ((1, False), *(((0, True),) if generator.config.continuation else ())):
        batch = data.rows(rows, continuation=continuation)
        deviations = batch.structural.std(dim=(0, 2, 3)).clamp(min=SMALLEST_STD)  # (Tg, Zs)
        sequence_deviations = batch.latents.std(dim=(0, 1)).clamp(min=SMALLEST_STD)  # (Z,)
        worth, sequence_worth = pixel_deviations(data, continuation=continuation)
        mean = (worth * deviations)[int(continuation) :].mean()
        variance = (worth * deviations / mean).clamp(min=SMALLEST_VARIANCE)
        generator.structural_mean[kind] = batch.structural.mean(dim=(0, 2, 3))
        generator.structural_std[kind] = deviations / variance.sqrt()
        generator.structural_variance[kind] = variance
        variance = (sequence_worth * sequence_deviations / mean).clamp(min=SMALLEST_VARIANCE)
        generator.sequence_mean[kind] = batch.latents.mean(dim=(0, 1))
        generator.sequence_std[kind] = sequence_deviations / variance.sqrt()
        generator.sequence_variance[kind, : len(variance)] = variance
        if batch.first is not None:
            generator.first_mean.copy_(batch.first.mean(dim=(0, 1, 2)))
            generator.first_std.copy_(batch.first.std(dim=(0, 1, 2)).clamp(min=SMALLEST_STD))


def pixel_deviations(data: LatentSet, *, continuation: bool) -> tuple[Tensor, Tensor]:
    """What a unit of each channel moves in pixels, relative to others: structural (Tg, Zs) and 1D latents (Z,).

    From the autoencoder's linear transform; all alike for a model without one. Of 1D latents the mean over layers.
    """
    model = OneDVA.from_pretrained(data.folder / AUTOENCODER)
    groups = 1 + (data.plan.frames - 1) // 4
    size = model.config.structural_channels
    if model.transform is None:
        return torch.ones(groups, size), torch.ones(model.config.latent_channels)
    std = model.transform.tables(groups, torch.tensor([not continuation])).std[0]  # (Tg, Zs + Z), zeros where not sent
    coded = std[int(continuation) :]
    slot = model.transform.class_slot(groups, std)  # no pixels, but which directions: as much as the median channel
    std = torch.where(slot > 0, coded[:, :size].median(), std)
    layers = coded[: -(-data.plan.tokens // (data.plan.size[0] * data.plan.size[1] // 256)), size:]
    return std[:, :size].clamp(min=1e-6), layers.mean(dim=0)


def load_texts(path: Path, names: list[str]) -> dict[str, Tensor]:
    """Text embeddings by the name of the video: a safetensors file of tensors (L, C), all of one shape.

    Raises FileNotFoundError, or ValueError for another kind of file, shapes that differ or a video without a text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no text embeddings at {path}")
    try:
        texts = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
    shapes = {tuple(text.shape) for text in texts.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"{path} must hold tensors (L, C) of one shape, got {sorted(shapes)[:3]}")
    missing = sorted({name.rpartition("#")[0] for name in names} - set(texts))
    if missing:
        raise ValueError(f"{path} has no text for {len(missing)} videos, such as {missing[0]}")
    return texts
