"""Which columns share directions: a mixture of Karhunen-Loève transforms, fit by Lloyd's rule (`onedva.transform`).

Columns begin sorted by how much of them changes along time; then each goes to the class whose first directions hold
most of it, and each class takes the principal directions of its columns, in turns.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 8  # the error falls by under 1 % in each of the last two
SHRINKAGE = 1000.0  # columns' worth of the statistics of all that every class starts with
ROWS = 32768  # columns that are projected at once


def class_covariances(
    columns: Tensor, weights: Tensor, *, classes: int, kept: int, groups: int
) -> tuple[Tensor, Tensor]:
    """Second moments of each class of columns, and its share of them: columns (N, Tg·R), weights (N,) → (classes, Tg·R,
    Tg·R), (classes,).

    kept: how many latents of a column are counted on when it chooses. Raises ValueError for fewer columns than classes.
    """
    if len(columns) < classes:
        raise ValueError(f"{classes} classes need at least as many columns, got {len(columns)}")
    everything = covariance(columns, weights)
    if classes == 1:
        return everything[None], torch.ones(1)
    label = by_motion(columns, classes=classes, groups=groups)
    fitted = everything[None]
    for _ in range(ROUNDS):
        fitted = torch.stack([shrunk(columns, weights, label == index, everything) for index in range(classes)])
        label = torch.stack([held_by(columns, one, kept) for one in fitted], dim=1).argmax(dim=1)
    shares = torch.stack([weights[label == index].sum() for index in range(classes)])
    return fitted, shares / shares.sum()


def covariance(columns: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of the outer products, (Tg·R, Tg·R)."""
    total = columns.new_zeros(columns.shape[1], columns.shape[1])
    for part, weight in zip(columns.split(ROWS), weights.split(ROWS), strict=True):
        total += (part.T * weight) @ part
    return total / weights.sum()


def shrunk(columns: Tensor, weights: Tensor, inside: Tensor, everything: Tensor) -> Tensor:
    """The covariance of some columns, drawn a little towards that of all, scaled to their energy: few columns know few
    directions."""
    count = int(inside.sum())
    if not count:
        return everything
    own = covariance(columns[inside], weights[inside])
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


def held_by(columns: Tensor, fitted: Tensor, kept: int) -> Tensor:
    """Energy of each column in the `kept` principal directions of a covariance, (N,)."""
    vectors = torch.linalg.eigh(fitted)[1].flip(1)[:, :kept]
    return torch.cat([(part @ vectors).square().sum(dim=1) for part in columns.split(ROWS)])
