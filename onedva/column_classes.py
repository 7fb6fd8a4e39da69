"""Which columns share directions: a mixture of Karhunen-Loève transforms, fit by Lloyd's rule (`onedva.transform`).

Columns begin sorted by how much of them changes along time; then each goes to the class whose first directions hold
most of it, and each class takes the principal directions of its columns, in turns. Where classes also serve mirrored, a
column goes to a pose of a class, and the class takes it mirrored back.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from onedva.patches import mirror_signs

ROUNDS = 10  # the error falls by under 1 % in each of the last three
SHRINKAGE = 1000.0  # columns' worth of the statistics of all that every class starts with
ROWS = 32768  # columns that are projected at once


def class_covariances(
    columns: Tensor, weights: Tensor, *, classes: int, kept: int, groups: int, poses: int = 1
) -> tuple[Tensor, Tensor]:
    """Second moments of each class of columns, and its share of them: columns (N, Tg·R), weights (N,) → (classes, Tg·R,
    Tg·R), (classes,).

    kept: how many latents of a column are counted on when it chooses. poses: how many mirror images of each class it
    chooses from (`onedva.transform`). Raises ValueError for fewer columns than classes.
    """
    if len(columns) < classes:
        raise ValueError(f"{classes} classes need at least as many columns, got {len(columns)}")
    signs = mirror_signs(poses, columns.shape[1] // groups // poses).repeat(1, groups)  # (poses, Tg·R)
    everything = covariance(columns, weights) * (signs.T @ signs / poses)  # of the columns and their mirror images
    if classes * poses == 1:
        return everything[None], torch.ones(1)
    label = by_motion(columns, classes=classes, groups=groups)
    # which of its mirror images a class is does not matter, but it must become one of them
    pose = torch.randint(poses, label.shape, generator=torch.Generator().manual_seed(0))
    fitted = everything[None]
    for _ in range(ROUNDS):
        parts = []
        for index in range(classes):
            inside = label == index
            mirrored = columns[inside] * signs[pose[inside]] if poses > 1 else columns[inside]
            parts.append(shrunk(mirrored, weights[inside], everything))
        fitted = torch.stack(parts)
        held = torch.cat([held_by(columns, one, kept, groups=groups, poses=poses) for one in fitted], dim=1)
        best = held.argmax(dim=1)
        label, pose = best // poses, best % poses
    shares = torch.stack([weights[label == index].sum() for index in range(classes)])
    return fitted, shares / shares.sum()


def covariance(columns: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the outer products, (Tg·R, Tg·R)."""
    total = columns.new_zeros(columns.shape[1], columns.shape[1])
    for part, weight in zip(columns.split(ROWS), weights.split(ROWS), strict=True):
        total += (part.T * weight) @ part
    return total / weights.sum()


def shrunk(columns: Tensor, weights: Tensor, everything: Tensor) -> Tensor:
    """The covariance of some columns, drawn a little towards that of all, scaled to their energy: few columns know few
    directions."""
    count = len(columns)
    if not count:
        return everything
    own = covariance(columns, weights)
    general = everything * (own.trace() / everything.trace().clamp(min=1e-12))  # blank clips have none
    return (count * own + SHRINKAGE * general) / (count + SHRINKAGE)


def by_motion(columns: Tensor, *, classes: int, groups: int) -> Tensor:
    """Equal shares of the columns by how much of their energy beyond group 0 changes along time, (N,)."""
    later = columns.reshape(len(columns), groups, -1)[:, 1:]
    if later.shape[1] < 2:  # nothing to change: by energy alone
        share = columns.square().sum(dim=1)
    else:
        energy = later.square().sum(dim=(1, 2)).clamp(min=1e-6)
        share = (later - later.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2)) / energy
    order = share.argsort(stable=True)
    label = torch.empty(len(columns), dtype=torch.int64)
    label[order] = torch.arange(len(columns)) * classes // len(columns)
    return label


def held_by(columns: Tensor, fitted: Tensor, kept: int, *, groups: int, poses: int) -> Tensor:
    """Energy of each column in the `kept` principal directions of a covariance and their mirror images, (N, poses)."""
    vectors = torch.linalg.eigh(fitted)[1].flip(1)[:, :kept]
    shape = {"t": groups, "s": poses}
    vectors = rearrange(vectors, "(t s r) n -> s (t r) n", **shape)
    mirrors, found = mirror_signs(poses, 1), []
    for part in columns.split(ROWS):
        sectors = rearrange(part, "n (t s r) -> s n (t r)", **shape) @ vectors  # (sectors, n, kept)
        found.append(torch.einsum("gs,snk->gnk", mirrors, sectors).square().sum(dim=2).T)
    return torch.cat(found)
