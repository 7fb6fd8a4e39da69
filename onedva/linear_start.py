"""What is best found in closed form, before any gradient step: principal components of patches and of columns of them,
by class (`onedva.transform`).

All are least-squares fits on training clips. Principal components of single patches, with the latents where there is
most detail, are the *linear floor* that training is held against (`onedva eval --floor`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from onedva.column_classes import ROWS, class_covariances
from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva.crops import crop_run
from onedva.data import Clip
from onedva.decoder import share_of_usual
from onedva.lapped import LINE, fit_overlap, prefilter
from onedva.model import OneDVA, drawn, to_video
from onedva.patches import PatchPCA, PatchStatistics, patchify
from onedva.transform import FIRST_GROUP, PatchTransform, Size
from onedva_runtime import placement
from onedva_runtime.camera import find_camera
from onedva_runtime.warp import hold_still

CROP = 256
RIDGE = 1e-3  # of the mean squared feature; keeps rarely seen combinations near zero
ERROR_SCALE = 0.002  # MSE on [-1, 1] at which a crop's weight is half of its most
CONTEXT_SCALES = (0.35, 0.5, 1.0, 2.0, 4.0, 8.0)
# Caution with context frames, which carry errors on; set on the dev clips between what chains lose and their seams
NEARLY = 0.75  # the smallest scale is taken that removes this share of what the best one does
EASED = 0.8  # of the least-squares gain
MOST_COLUMNS = 150_000  # that directions are fit to: 1.5 GB where a column has 5 groups of 512 coefficients
SMALLEST_STD = 1e-4  # of a latent; keeps directions that training clips never used from dividing by zero


def random_crops(
    clips: Sequence[Clip], *, frames: int, per_clip: int, seed: int, varied: bool = False, held: bool = False
) -> Iterator[Tensor]:
    """Crops of frames×256×256 (less of a smaller clip), `per_clip` of each, one by one: video (1, 3, T, H, W).

    varied: of several scales and speeds, mirrored and backwards, as training has them (`onedva.crops.crop_run`). held:
    with their scene held still where their camera moves, as the codec shows them to a model.
    """
    random = np.random.default_rng(seed)
    for clip in clips:
        total, height, width, _ = clip.frames.shape
        tall, wide = (min(CROP, size // 16 * 16) for size in (height, width))
        for _ in range(per_clip):
            if varied:
                crop, _ = crop_run(clip, run=frames, height=tall, width=wide, random=random)
            else:
                start = random.integers(0, total - frames + 1)
                top, left = random.integers(0, height - tall + 1), random.integers(0, width - wide + 1)
                crop = np.array(clip.frames[start : start + frames, top : top + tall, left : left + wide])
            camera = find_camera(crop) if held else None
            yield to_video(torch.from_numpy(crop if camera is None else hold_still(crop, camera))[None])


def fit_pca(
    clips: Sequence[Clip],
    components: int,
    *,
    overlap: Tensor | None = None,
    poses: int = 1,
    held: bool = False,
    per_clip: int = 4,
    seed: int = 0,
) -> PatchPCA:
    """Principal components of the patches of random crops, the same number from every clip.

    overlap (16, 16): of patches that `onedva.lapped.prefilter` makes with it; without, of plain ones. poses: see
    `PatchStatistics.pca`. held: see `random_crops`.
    """
    statistics = PatchStatistics()
    for video in random_crops(clips, frames=17, per_clip=per_clip, seed=seed, held=held):
        statistics.add(patchify(video if overlap is None else prefilter(video, overlap)))
    return statistics.pca(components, poses=poses)


def lines_of(clips: Sequence[Clip], *, per_clip: int = 8, seed: int = 1) -> Iterator[Tensor]:
    """Lines (N, 48) of the brightness of random frames, along both axes; none of clips that are smaller."""
    random = np.random.default_rng(seed)
    for clip in clips:
        for _ in range(per_clip):
            frame = clip.frames[random.integers(0, len(clip.frames))].mean(axis=-1, dtype=np.float32) / 127.5 - 1
            for picture in (frame, frame.T):
                usable = picture.shape[1] // LINE * LINE
                yield torch.from_numpy(np.ascontiguousarray(picture[:, :usable])).reshape(-1, LINE)


def linear_start(config: OneDVAConfig, clips: Sequence[Clip], *, seed: int = 0) -> OneDVA:
    """A model whose linear parts are fit to `clips` and whose transformers are random, their last layers zero."""
    torch.manual_seed(seed)
    model = OneDVA(config)
    overlap = transform_of(model).overlap.copy_(fit_overlap(lines_of(clips)))
    fit_transform(model, clips, fit_pca(clips, config.components, overlap=overlap, poses=config.poses, held=True))
    fit_log_variance(model, clips)
    fit_context(model, clips)
    return model


def transform_of(model: OneDVA) -> PatchTransform:
    """ValueError for a model without one."""
    if model.transform is None:
        raise ValueError("this configuration has no linear start: it needs pca=True")
    return model.transform


def crop_weight(error: Tensor) -> Tensor:
    """PSNR is a logarithm: a crop counts by the share of its error that is removed, so one with little weighs more."""
    return ERROR_SCALE / (error + ERROR_SCALE)


@torch.inference_mode()
def fit_transform(
    model: OneDVA,
    clips: Sequence[Clip],
    pca: PatchPCA,
    *,
    per_clip: int = 20,
    seed: int = 2,
    varied: bool = True,
    held: bool = True,
) -> None:
    """Set a model's transform, in place: `pca`, of as many components and poses, as its basis, and along time the
    principal directions of each class of columns.

    Covariances over columns of the longest clips serve every smaller number of groups: their blocks. varied, held: see
    `random_crops`.
    """
    transform, config = transform_of(model), model.config
    transform.basis.copy_(pca.components)
    transform.mean.copy_(pca.mean)
    groups, size = transform.max_groups, transform.components
    crops = random_crops(clips, frames=config.clip_frames, per_clip=per_clip, seed=seed, varied=varied, held=held)
    columns, weights = columns_of(transform, crops, count=len(clips) * per_clip, seed=seed)
    of_groups = (columns.T.square() @ weights / weights.sum()).reshape(groups, size)
    transform.coefficient_std.copy_(of_groups.mean(0).sqrt().clamp(min=SMALLEST_STD))
    scale = torch.ones(groups, size)
    scale[0] = FIRST_GROUP**0.5
    columns *= scale.flatten()
    structural = groups * config.structural_channels - (config.choices > 1)
    fitted, shares = class_covariances(
        columns, weights, classes=config.classes, kept=structural, groups=groups, poses=config.poses
    )
    set_directions(transform, fitted / (scale.flatten() * scale.flatten()[:, None]), shares)
    # the remainder once structural latents and the first layer are there: the scale of what is left to predict
    first = torch.zeros(groups, transform.channels)
    first[:, : config.structural_channels] = 1
    first[0] = 1
    left = torch.zeros(groups, size)
    is_key = torch.ones(1, dtype=torch.bool)
    for part, weight in zip(columns.split(ROWS), weights.split(ROWS), strict=True):
        coefficients = rearrange(part / scale.flatten(), "p (t r) -> 1 t p 1 r", t=groups)
        structural_part, layers = transform.analyse(coefficients, is_key)
        layers = layers * first[:, None, None, config.structural_channels :]
        error = (coefficients - transform.synthesise(structural_part, layers, is_key))[0, :, :, 0].square()
        left += torch.einsum("tpr,p->tr", error, weight)
    transform.remainder_std.copy_((left.mean(0) / weights.sum()).sqrt().clamp(min=SMALLEST_STD))


def columns_of(transform: PatchTransform, crops: Iterable[Tensor], *, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Columns (N, Tg·R) of `count` crops of full clips, N ≤ MOST_COLUMNS, and their weights (N,)."""
    random = np.random.default_rng(seed)
    columns, weights = [], []
    most = max(1, MOST_COLUMNS // max(count, 1))  # of one crop
    for video in crops:
        patches = transform.cut(video)
        coefficients = transform.coefficients(patches)
        strong = transform.ranks(coefficients) < transform.structural_channels
        kept = coefficients[..., strong].square().sum(-1)
        error = ((patches - transform.mean).square().sum(-1) - kept).mean() / PATCH_VALUES
        found = rearrange(coefficients, "1 t h w r -> (h w) (t r)")
        if len(found) > most:
            found = found[torch.from_numpy(random.permutation(len(found))[:most])]
        columns.append(found)
        weights.append(crop_weight(error).expand(len(found)))
    return torch.cat(columns), torch.cat(weights)


def set_directions(transform: PatchTransform, covariances: Tensor, shares: Tensor) -> None:
    """Fill the tables of `transform`: eigenvectors, strongest first, of blocks of each class's covariance of columns
    (classes, Tg·R, Tg·R). shares (classes,): of the columns, by which the classes' energies are averaged."""
    everything = (covariances * shares[:, None, None]).sum(0)
    for size in transform.sizes:
        energies = []
        for index, block_at in enumerate(size.blocks if size.adaptive else size.blocks[:1]):
            covariance = covariances[index] if size.adaptive else everything
            energy, directions = principal_directions(transform, covariance, size)
            transform.directions[block_at : block_at + size.coded**2] = directions
            energies.append(energy)
        weights = shares if size.adaptive else torch.ones(1)
        energy = (torch.stack(energies) * weights[:, None, None]).sum(0)  # (Tg, C)
        std = energy.clamp(min=SMALLEST_STD**2).sqrt()
        if transform.choices > 1:
            # of the slot that tells the choice: rounded at any step that quantisers have, 2 at most, it tells it still
            std[-1, transform.structural_channels - 1] = transform.choices
        transform.latent_std[size.row : size.row + size.coded] = std


def principal_directions(transform: PatchTransform, covariance: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """Energies (Tg, C) and blocks of directions (Tg², C, R) of clips of one size, dealt out to groups and layers."""
    groups, structural, components = size.coded, transform.structural_channels, transform.components
    start = 0 if size.is_key else components
    scale = torch.ones(groups, components)
    if size.is_key:
        scale[0] = FIRST_GROUP**0.5
    inside = slice(start, start + groups * components)
    block = covariance[inside, inside] * scale.flatten() * scale.flatten()[:, None]
    energy, vectors = torch.linalg.eigh(block)
    count = groups * transform.channels
    energy, vectors = energy.flip(0)[:count], vectors.flip(1)[:, :count].T  # (Tg·C, Tg·R)
    # eigenvectors have no sign of their own: make the largest entry positive, so a refit gives the same latents
    largest = vectors.abs().argmax(dim=1, keepdim=True)
    vectors = vectors * torch.sign(vectors.gather(1, largest))
    # the strongest are structural, dealt out so that every group gets strong ones; then layer after layer
    dealt = torch.arange(groups * structural).reshape(structural, groups).T
    layers = torch.arange(groups * structural, count).reshape(groups, -1)
    if transform.choices > 1:  # the slot that tells the choice holds no direction: the next one is a 1D latent's
        layers = layers - 1
    order = torch.cat([dealt, layers], dim=1)  # (Tg, C)
    return energy[order], rearrange(vectors[order], "i c (j r) -> (i j) c r", j=groups)


@torch.inference_mode()
def fit_log_variance(model: OneDVA, clips: Sequence[Clip], *, per_clip: int = 2, seed: int = 3) -> None:
    """Set `log_variance` of a model's decoder, in place: least squares from what it sees (the stem's output, random as
    it may be, and `band_energies`) to the logarithm of what the preview leaves of a patch. It decides how much noise
    later steps keep as texture, and how far a context frame is believed."""
    decoder, transform, config = model.decoder, transform_of(model), model.config
    random = np.random.default_rng(seed)
    size = decoder.log_variance.in_features + 1
    seen: list[Tensor] = []
    hook = decoder.log_variance.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(0, 3)))
    products, targets = torch.zeros(size, size), torch.zeros(size, 1)
    for video in random_crops(clips, frames=config.clip_frames, per_clip=per_clip, seed=seed, held=True):
        grid = placement.grid_of(*video.shape[2:])
        condition = model.condition(model.encode(video, tokens=random_length(random, grid, config)).latent_dist.mode())
        left = transform.shown(transform.cut(video - condition.preview)) / transform.remainder_std
        rows = seen.pop()
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        products += rows.T @ rows
        targets += rows.T @ left.square().mean(-1).clamp(min=1e-3).log().reshape(-1, 1)
    hook.remove()
    solution = torch.linalg.solve(products + RIDGE * products.diagonal().mean() * torch.eye(size), targets)
    decoder.log_variance.weight.copy_(solution[:-1].T)
    decoder.log_variance.bias.copy_(solution[-1])


@torch.inference_mode()
def fit_context(model: OneDVA, clips: Sequence[Clip], *, per_clip: int = 2, seed: int = 4) -> None:
    """Set `context_gain` and `context_scale` of a model's decoder, in place: how much of what a context frame shows
    beyond the preview a continuation clip keeps. Least squares per group and component, the scale from a few.

    First for frames that end key clips, then for those that end the continuation clips behind them, which carry on what
    was kept: errors, too.
    """
    frames = model.config.clip_frames
    for links in (1, 2):
        run = 1 + (links + 1) * (frames - 1)
        long = [clip for clip in clips if clip.frames.shape[0] >= run]
        if not long:
            return  # clips too short for a pair leave continuation clips to training
        crops = random_crops(long, frames=run, per_clip=per_clip, seed=seed + links - 1)
        fit_context_after(model, crops, links=links, random=np.random.default_rng(seed))


def fit_context_after(model: OneDVA, crops: Iterable[Tensor], *, links: int, random: np.random.Generator) -> None:
    """The same for the frames that end chains of `links` clips; each crop holds a clip more than that."""
    decoder, transform, config = model.decoder, transform_of(model), model.config
    new = config.clip_frames - 1
    products, squares = torch.zeros(2, len(CONTEXT_SCALES), transform.max_groups, transform.components)
    for video in crops:
        tokens, given = random_length(random, placement.grid_of(1 + new, *video.shape[3:]), config), None
        for index in range(links):
            clip = video[:, :, index * new : (index + 1) * new + 1]
            is_key = torch.tensor([index == 0])
            z = model.encode(clip, tokens=tokens, is_key=is_key, follow_camera=True).latent_dist.mode()
            given = model.decode(z, context_frame=given).sample[:, :, -1]
        assert given is not None
        video, is_key = video[:, :, -new - 1 :], torch.zeros(1, dtype=torch.bool)
        z = model.encode(video, tokens=tokens, is_key=is_key, follow_camera=True).latent_dist.mode()
        assert z.cameras is not None
        # as the model sees them
        video, frame = drawn(video, z.cameras, hold_still), drawn(given[:, :, None], z.cameras, hold_still)
        _, preview, lacks = (part.flatten(2, 3) for part in decoder.context_parts(model.condition(z)))
        left = transform.coefficients(transform.cut(video).flatten(2, 3)) - preview
        weight = crop_weight(left[:, 1:].square().sum(-1).mean() / PATCH_VALUES)
        beyond = transform.coefficients(transform.cut(frame).flatten(2, 3)) - preview  # (1, Tg, P, R)
        differs = share_of_usual(beyond, transform) / lacks.exp()
        for index, scale in enumerate(CONTEXT_SCALES):
            shown = beyond / (1 + (differs / scale).square())
            products[index] += weight * (shown * left)[0].sum(1)
            squares[index] += weight * shown.square()[0].sum(1)
    gain = (products / squares.clamp(min=1e-9)).clamp(0.0, 1.0)
    gain[:, 0] = 0.0
    removed = (2 * gain * products - gain.square() * squares).sum(dim=(1, 2))
    best = int((removed >= NEARLY * removed.max()).int().argmax())
    decoder.context_gain.copy_(EASED * gain[best])
    decoder.context_scale.fill_(CONTEXT_SCALES[best])


def random_length(random: np.random.Generator, grid: tuple[int, int, int], config: OneDVAConfig) -> int:
    """A number of 1D latents: none, a sixteenth, a quarter, half or all of what the clip can carry."""
    share = random.choice([0.0, 2.0**-4, 2.0**-2, 2.0**-1, 1.0], p=[0.25, 0.1, 0.2, 0.1, 0.35])
    return int(share * placement.longest(grid, max_tokens=config.trained_tokens))


def floor_error(frames: np.ndarray, pca: PatchPCA, *, tokens: int, structural_channels: int) -> float:
    """Mean squared error on [-1, 1] of the linear floor on one clip (T, H, W, 3) uint8.

    Every patch keeps its first components; `tokens` patches, those with most gradient and motion energy (for single
    patches better than `placement.detail_map`), keep all of `pca`'s.
    """
    patches = patchify(to_video(torch.from_numpy(frames)[None]))[0] - pca.mean
    coefficients = (patches @ pca.components.T).square()
    left = patches.square().sum(-1) - coefficients[..., :structural_channels].sum(-1)
    gradients, motion = placement.texture_and_motion(frames)
    motion[0] = 0  # a frame that nothing came before
    detail = torch.from_numpy((gradients + motion).reshape(-1))
    chosen = detail.argsort(descending=True, stable=True)[:tokens]
    left.view(-1)[chosen] -= coefficients[..., structural_channels:].sum(-1).view(-1)[chosen]
    left[0] *= FIRST_GROUP
    return (left.sum() / frames.size).item()
