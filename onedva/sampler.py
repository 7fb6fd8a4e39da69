"""Batches of random crops, each a pure function of (seed, step), and how workers prepare them ahead of training.

Every row of a batch draws from a stream of its own, so ranks can share a step: rank r of n takes its part of the rows,
and the parts of all ranks, one after the other, are the batch that a single process would draw.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onedva.cache import Clip
from onedva.clip_set import ClipSet
from onedva.crops import crop_run, still_run
from onedva.workers import Workers, in_order
from onedva_runtime.errors import OneDVAError, VideoError

__all__ = ["Batch", "ClipSampler", "Draw", "batches"]

logger = logging.getLogger("onedva")
ROWS = 2  # third word of the seed of a row's stream: (seed, step) and (seed, step, 1) are drawn from elsewhere
ATTEMPTS = 50  # unreadable videos in a row before a step gives up


@dataclass(frozen=True)
class Draw:
    """What a worker sends: a batch in bytes."""

    frames: NDArray[np.uint8]  # (B, T, H, W, 3)
    fps: NDArray[np.float32]  # (B,)
    before: NDArray[np.uint8] | None
    share: float
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Batch:
    video: Tensor  # (B, 3, T, H, W) float32 in [-1, 1]
    frames: NDArray[np.uint8]  # the same, (B, T, H, W, 3)
    fps: Tensor  # (B,)
    before: NDArray[np.uint8] | None = None
    """(B, T, H, W, 3): for each clip the one before it, whose last frame is this one's first. None where it was not
    asked for, or no video is long enough."""
    share: float = 1.0
    """B over the rows of all ranks: a mean over this rank's rows counts share × world in the mean over ranks."""
    skipped: tuple[str, ...] = ()
    """Videos that could not be read, for which others were drawn: name and reason."""


class ClipSampler:
    """Random training crops. Sizes (H, W) with a weight each share the steps, and so do lengths; a batch has one."""

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        frames: int | Sequence[tuple[int, float]],
        sizes: Sequence[tuple[int, int, float]],
        positions_per_batch: int,
        seed: int,
        still_motion: float = 0.0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """clips: a `ClipSet`, or any sequence. frames: of a clip, 1 + 4n; or several such lengths, each with a weight.
        positions_per_batch: grid positions per step over all ranks. still_motion: share of the crops that are pans and
        zooms over a single frame. rank, world: which part of each step's rows to draw, 0 ≤ rank < world.

        Raises ValueError for lengths that are not 1 + 4n or that no clip has, and where a step has fewer rows than
        there are ranks.
        """
        self.clips, self.sizes, self.seed, self.still_motion = clips, tuple(sizes), seed, still_motion
        self.positions_per_batch, self.rank, self.world = positions_per_batch, rank, world
        self.lengths = ((frames, 1.0),) if isinstance(frames, int) else tuple(frames)
        if not 0 <= rank < world:
            raise ValueError(f"rank must be from 0 to world - 1 = {world - 1}, got {rank}")
        if not 0 <= still_motion <= 1:
            raise ValueError(f"still_motion is a share from 0 to 1, got {still_motion}")
        if isinstance(clips, ClipSet):
            self.frame_counts = clips.frame_counts
        else:
            self.frame_counts = np.array([clip.frames.shape[0] for clip in clips], dtype=np.int64)
        self._odds: dict[int, NDArray[np.float64] | None] = {}  # cumulative, by the frames that are needed
        for length, _ in self.lengths:
            if length < 1 or length % 4 != 1:
                raise ValueError(f"clips have 1 + 4n frames, got {length}")
            if self._odds_for(length) is None:
                longest = int(self.frame_counts.max(initial=0))
                raise ValueError(f"no video has the {length} frames of a clip; the longest has {longest}")
            for height, width, _ in self.sizes:
                if self._rows(length, height, width) < world:
                    raise ValueError(
                        f"positions_per_batch = {positions_per_batch} gives fewer clips of {length}×{height}×{width} "
                        f"than there are ranks ({world}); it counts all ranks together: raise it to at least "
                        f"{world * _positions(length, height, width)}"
                    )

    def __call__(self, step: int, *, before: bool = False) -> Batch:
        """The batch of one step: as many clips as keep B·Tg·Hg·Wg near `positions_per_batch`, less other ranks' part.

        before: with the clip before each (`Batch.before`), from videos that are long enough. Raises VideoError where
        hardly any video can be read.
        """
        return to_batch(self.draw(step, before=before))

    def draw(self, step: int, *, before: bool = False) -> Draw:
        """The batch of one step in bytes."""
        random = np.random.default_rng([self.seed, step])
        height, width, _ = self.sizes[_choose(random, [share for *_, share in self.sizes])]
        length, _ = self.lengths[_choose(random, [share for _, share in self.lengths])]
        rows = self._rows(length, height, width)
        run = 2 * length - 1 if before else length
        if before and self._odds_for(run) is None:
            before, run = False, length
        first, last = rows * self.rank // self.world, rows * (self.rank + 1) // self.world
        skipped: list[str] = []
        drawn = [self._row(step, row, run, height, width, skipped) for row in range(first, last)]
        frames = np.stack([frames for frames, _ in drawn])
        return Draw(
            frames=frames[:, run - length :],
            fps=np.array([fps for _, fps in drawn], dtype=np.float32),
            before=frames[:, :length] if before else None,
            share=(last - first) / rows,
            skipped=tuple(skipped),
        )

    def _row(
        self, step: int, row: int, run: int, height: int, width: int, skipped: list[str]
    ) -> tuple[NDArray[np.uint8], float]:
        odds = self._odds_for(run)
        assert odds is not None
        for attempt in range(ATTEMPTS):
            random = np.random.default_rng([self.seed, step, ROWS, row, attempt])
            index = int(np.searchsorted(odds, random.random(), side="right"))
            take = still_run if random.random() < self.still_motion else crop_run
            try:
                clip = self.clips[index]
                if len(clip.frames) < run:
                    raise VideoError(f"{clip.name}: {len(clip.frames)} frames, it announced {self.frame_counts[index]}")
                return take(clip, run=run, height=height, width=width, random=random)
            except (VideoError, OSError) as error:
                skipped.append(str(error))
        raise VideoError(f"{ATTEMPTS} videos in a row could not be read, the last: {skipped[-1]}")

    def _rows(self, length: int, height: int, width: int) -> int:
        return max(1, round(self.positions_per_batch / _positions(length, height, width)))

    def _odds_for(self, needed: int) -> NDArray[np.float64] | None:
        """Cumulative odds of the clips with the frames that are needed; None where no clip has them."""
        if needed not in self._odds:
            # long videos count more, but not in proportion: a minute of one scene is not a hundred scenes
            odds = np.cumsum(np.sqrt(self.frame_counts) * (self.frame_counts >= needed))
            self._odds[needed] = odds / odds[-1] if len(odds) and odds[-1] else None
        return self._odds[needed]


def batches(
    sampler: ClipSampler,
    *,
    start_step: int = 0,
    workers: int = 0,
    before: Callable[[int], bool] | None = None,
    device: torch.device | str = "cpu",
) -> Generator[Batch, None, None]:
    """The batches of `start_step`, the next, …, without end: what `sampler(step, before=before(step))` gives.

    workers: processes that prepare them ahead, two batches each, as bytes; 0 draws each when it is asked for. Close the
    iterator (contextlib.closing) to end them. device: where `video` and `fps` are made, from the bytes. Videos that
    have become unreadable are reported, each once. Raises OneDVAError when a worker has died.
    """
    steps = ((step, bool(before and before(step))) for step in count(start_step))
    reported: set[str] = set()
    for draw, asked in _draws(sampler, steps, workers):
        new = [line for line in dict.fromkeys(draw.skipped) if line not in reported]
        for line in new:
            logger.warning("skipped %s (%d so far)", line, len(reported) + 1)
            reported.add(line)
        if asked and draw.before is None and "" not in reported:
            reported.add("")
            logger.warning("no video is long enough to hold the clip before: continuation clips go without it")
        yield to_batch(draw, device=device)


def to_batch(draw: Draw, *, device: torch.device | str = "cpu") -> Batch:
    """Bytes to what the model takes."""
    frames = torch.from_numpy(draw.frames).to(device)
    video = frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
    fps = torch.from_numpy(draw.fps).to(device)
    return Batch(video, draw.frames, fps, before=draw.before, share=draw.share, skipped=draw.skipped)


def _draws(sampler: ClipSampler, steps: Iterator[tuple[int, bool]], workers: int) -> Iterator[tuple[Draw, bool]]:
    if not workers:
        for task in steps:
            yield _draw(sampler, *task)
        return
    try:
        with Workers(workers, shared=sampler) as pool:
            yield from in_order(pool, _draw, steps)
    except BrokenProcessPool as error:
        raise OneDVAError(
            f"one of {workers} data workers died (out of memory, or a crash in a decoder): try fewer workers; 0 shows "
            "what happens in this process"
        ) from error


def _draw(sampler: ClipSampler, step: int, before: bool) -> tuple[Draw, bool]:
    return sampler.draw(step, before=before), before


def _positions(length: int, height: int, width: int) -> int:
    return (1 + (length - 1) // 4) * (height // 16) * (width // 16)


def _choose(random: np.random.Generator, shares: Sequence[float]) -> int:
    odds = np.asarray(shares, dtype=np.float64)
    return int(random.choice(len(odds), p=odds / odds.sum()))
