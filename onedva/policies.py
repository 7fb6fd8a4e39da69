"""Policies for a clip's number of latents, as arithmetic on measured curves; `onedva.lengths` measures and compares.

A policy turns every setting it has (a length, a level of detail, a target in dB, a price per latent) into lengths, one
for each clip. What a setting spends and reaches is pooled over clips: their mean tokens, and the mean of their MSE.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onedva.config import OneDVAConfig
from onedva_runtime import placement
from onedva_runtime.prepare import Decibels, shortest_prefix


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One clip: what each length gives, and what policies may look at instead."""

    clip: str
    lengths: NDArray[np.int64]
    """(L,) rising, from 0 to the longest."""
    errors: NDArray[np.float64]
    """(L,) MSE after decoding, relative to 255²."""
    predicted: NDArray[np.float64]
    """(K,) the same as the error head predicts it after each prefix of 1 … K latents."""
    detail: NDArray[np.int64]
    """(Tg, Hg, Wg) of `placement.detail_map`."""
    motion: float
    """`motion_score` of the clip."""

    def error_at(self, tokens: float) -> float:
        """The error between measured lengths: log-linear."""
        return float(np.exp(np.interp(tokens, self.lengths, np.log(self.errors))))


class Frontier(NamedTuple):
    """What a policy spends and reaches at each of its settings; mean over clips."""

    tokens: NDArray[np.float64]
    errors: NDArray[np.float64]


def pooled(curves: Sequence[Curve], settings: Sequence[Sequence[float]]) -> Frontier:
    """What lengths per clip, one sequence for each setting of a policy, spend and reach."""
    errors = [[curve.error_at(n) for curve, n in zip(curves, counts, strict=True)] for counts in settings]
    return Frontier(np.array(settings, dtype=np.float64).mean(axis=1), np.array(errors).mean(axis=1))


def fixed(curves: Sequence[Curve]) -> list[list[float]]:
    """The same length for all clips: every measured one."""
    return [[float(length)] * len(curves) for length in curves[0].lengths]


def auto(curves: Sequence[Curve], config: OneDVAConfig, *, settings: int = 64) -> list[list[float]]:
    """The policy behind `tokens="auto"` at densities from where nothing to where everything earns a latent."""
    scores = np.concatenate([placement.layer_scores(curve.detail).reshape(-1) for curve in curves])
    per_pixel = scores / (config.clip_frames * placement.PATCH_SIZE**2)
    levels = np.quantile(per_pixel, np.linspace(1, 0, settings))
    return [auto_lengths(curves, config, density=level) for level in levels]


def auto_lengths(curves: Sequence[Curve], config: OneDVAConfig, *, density: float) -> list[float]:
    """Tokens of each clip at one density."""
    choose = partial(placement.choose_tokens, density=density, length_multiple=config.length_multiple)
    return [float(choose(curve.detail, max_tokens=int(curve.lengths[-1]))) for curve in curves]


def head_target(curves: Sequence[Curve], config: OneDVAConfig) -> list[list[float]]:
    """The error head with one quality target for all clips, as `tokens="35dB"` uses it, over targets."""
    targets = np.arange(10, 60, 0.5)
    return [[target_length(curve, target, config) for curve in curves] for target in targets]


def target_length(curve: Curve, target: float, config: OneDVAConfig) -> float:
    """Tokens that the runtime takes for a target in dB."""
    predicted = np.log(4 * curve.predicted).astype(np.float32)
    return float(shortest_prefix(predicted, Decibels(target), config.length_multiple))


def head_slope(curves: Sequence[Curve], config: OneDVAConfig) -> list[list[float]]:
    """The error head, spending where the next latent is predicted to remove most error: equal slopes on its curves."""
    offered = []
    for curve in curves:
        lengths = np.arange(config.length_multiple, len(curve.predicted) + 1, config.length_multiple)
        # the head says nothing of no latents at all; one latent is about that
        offered.append((np.append(0, lengths), curve.predicted[np.append(0, lengths - 1)]))
    return equal_slopes(offered)


def oracle(curves: Sequence[Curve]) -> list[list[float]]:
    """Equal slopes on the true curves: the fewest tokens for a pooled error, as all lengths were tried."""
    return equal_slopes([(curve.lengths, curve.errors) for curve in curves])


def equal_slopes(curves: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> list[list[float]]:
    """All solutions of: fewest tokens for a sum of errors (Lagrangian, so those on the convex hull), cheapest first.

    curves: lengths and errors of each clip. From no latents on, the clip whose curve falls most per token grows next.
    """
    steps = sorted(
        ((gain, index, length) for index, curve in enumerate(curves) for gain, length in hull_steps(*curve)),
        key=lambda step: -step[0],
    )
    counts = [0.0] * len(curves)
    found = [list(counts)]
    for _, index, length in steps:
        counts[index] = length
        found.append(list(counts))
    return found


def hull_steps(lengths: NDArray[np.int64], errors: NDArray[np.float64]) -> Iterator[tuple[float, float]]:
    """Segments of the lower convex hull of a curve while it falls: (error removed per token, length it leads to)."""
    at = 0
    while at < len(lengths) - 1:
        gains = (errors[at] - errors[at + 1 :]) / (lengths[at + 1 :] - lengths[at])
        best = len(gains) - 1 - int(gains[::-1].argmax())  # of equal ones the furthest
        if gains[best] <= 0:
            return
        at += 1 + best
        yield float(gains[best]), float(lengths[at])


def tokens_at(frontier: Frontier, error: float) -> float | None:
    """Fewest mean tokens at which a policy reaches a pooled error, between its settings log-linear; None if nowhere."""
    order = np.lexsort((frontier.errors, frontier.tokens))
    tokens, errors = frontier.tokens[order], np.minimum.accumulate(frontier.errors[order])
    reached = np.flatnonzero(errors <= error * (1 + 1e-9))
    if not reached.size:
        return None
    at = int(reached[0])
    if at == 0 or errors[at] >= error:
        return float(tokens[at])
    share = np.log(errors[at - 1] / error) / np.log(errors[at - 1] / errors[at])
    return float(tokens[at - 1] + share * (tokens[at] - tokens[at - 1]))


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Rank correlation, equal values sharing their mean rank; 0 where either is constant."""
    ranks = [ranked(np.asarray(values, dtype=np.float64)) for values in (one, other)]
    if min(rank.std() for rank in ranks) == 0:
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 0, ties at the mean of theirs."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])
