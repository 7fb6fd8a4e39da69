"""Everything `onedva eval` measures of a model, as plain data: per split, size, latent length and number of steps.

    onedva eval runs/tiny --clips FOLDER --tokens 0,64,256,1024 --steps 1,4 --floor -o scores

Train and dev stand side by side, since a gap between them says that data, not compute, is the limit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from onedva.data import Clip, Split, load_clips
from onedva.evaluate import LENGTHS, Reconstruction, Score, as_json, reconstructions, score
from onedva.floors import floor_scores, same_total_scores
from onedva.fvd import frechet_distance, load_video_features
from onedva.linear_start import fit_pca
from onedva.model import OneDVA, to_video
from onedva.perceptual import load_lpips
from onedva.sources import SHORT_SIDE
from onedva.texture import Normalise, patches_by_level, texture_distance

PATCHES = 8192  # texture patches per level, over all clips of a split: another seed moves the distance by under 1 %
TEXTURES: dict[str, Normalise] = {"texture": "source", "texture_as_published": "own"}  # keys of a row
LPIPS_FRAMES = 8  # frames per pass: VGG's first features of 17 frames at 256×256 take half a gigabyte
FEWEST_FOR_FVD = 2
MODEL, FLOOR, SAME_TOTAL = "model", "linear floor", "PCA of the same total"  # the codes that rows name

Frames = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Judges:
    """Networks that measure what PSNR and SSIM do not; None where their weights were not given."""

    lpips: Callable[[Frames, Frames], float] | None = None
    """Distance of two videos (T, H, W, 3), mean over frames."""
    video_features: Callable[[Frames], NDArray[np.float64]] | None = None
    """Features of one video for the Fréchet distance."""


def load_judges(*, lpips: Path | None, fvd: Path | None) -> tuple[Judges, list[str]]:
    """Judges from local weights, and a line for each that is left out. Raises FileNotFoundError or ValueError for
    weights that are not what they should be."""
    left_out = []
    if lpips is None:
        left_out.append("LPIPS: no weights were given (--lpips FILE)")
    if fvd is None:
        left_out.append("FVD: no weights were given (--fvd FILE)")
    network = load_lpips(lpips) if lpips else None

    def distance(source: Frames, decoded: Frames) -> float:
        assert network is not None
        values = []
        with torch.inference_mode():
            for start in range(0, len(source), LPIPS_FRAMES):
                pair = (
                    to_video(torch.from_numpy(frames[start : start + LPIPS_FRAMES])[None])
                    for frames in (source, decoded)
                )
                values.append(network(*(video[0].transpose(0, 1) for video in pair)))
        return float(torch.cat(values).mean())

    judges = Judges(lpips=distance if network else None, video_features=load_video_features(fvd) if fvd else None)
    return judges, left_out


def load_splits(
    where: Path, *, minimum_frames: int = 17, limit: int | None = None, short_side: int = SHORT_SIDE
) -> dict[Split, Sequence[Clip]]:
    """The splits that a folder or shards have, each with every n-th of its clips so that they are at most `limit`.

    short_side: pixels that frames are scaled to. Raises FileNotFoundError where there is none.
    """
    splits: dict[Split, Sequence[Clip]] = {}
    missing: FileNotFoundError | None = None
    for split in get_args(Split):
        try:
            clips = load_clips(where, split=split, minimum_frames=minimum_frames, short_side=short_side)
        except FileNotFoundError as error:
            missing = error
            continue
        splits[split] = clips[:: -(-len(clips) // limit)] if limit else clips
    if not splits and missing:
        raise missing
    return splits


def report(
    model: OneDVA,
    splits: Mapping[Split, Sequence[Clip]],
    *,
    tokens: Sequence[int] = LENGTHS,
    steps: Sequence[int] = (1,),
    sizes: Sequence[int] = (256,),
    floor: bool = False,
    judges: Judges | None = None,
    seed: int = 0,
    progress: bool = True,
    code: str = MODEL,
) -> dict[str, Any]:
    """Scores of a model, and with `floor` of linear codes beside it.

    Returns {"rows": one per code, split, size, tokens and steps, "clips": the scores behind them, one per clip too}.
    A row has psnr_db, ssim, lpips, fvd, texture and texture_as_published (`onedva.texture`'s two readings, each the
    mean of its _by_level), as far as they were measured. floor: its components are fitted to the train split, or,
    without one, to the clips themselves. code: what rows call the model.
    """
    config, judges = model.config, judges or Judges()
    pca = None
    if floor:
        components = config.structural_channels + config.latent_channels
        pca = fit_pca(splits.get("train") or next(iter(splits.values())), components)
    rows: list[dict[str, Any]] = []
    by_clip: list[dict[str, Any]] = []

    def take(found: list[dict[str, Any]], scores: list[Score], **place: Any) -> None:
        rows.extend({**place, **row} for row in found)
        by_clip.extend({**place, **one} for one in as_json(scores))

    for size in sizes:
        for split, clips in splits.items():
            label = f"{split} at {size}×{size}" if progress else ""
            measured = Measured(judges, per_clip=max(1, PATCHES // len(clips)), seed=seed)
            for one in reconstructions(model, clips, tokens=tokens, steps=steps, size=size, seed=seed, progress=label):
                measured.add(one)
            take(measured.rows(), measured.scores, code=code, split=split, size=size)
            if pca is not None:
                for other, scored in ((FLOOR, floor_scores), (SAME_TOTAL, same_total_scores)):
                    scores = scored(clips, pca, config, tokens=tokens, size=size)
                    take(mean_rows(scores), scores, code=other, split=split, size=size)
    return {"rows": rows, "clips": by_clip}


class Measured:
    """What one split at one size has scored so far; of decoded frames only patches and features are kept."""

    def __init__(self, judges: Judges, *, per_clip: int, seed: int) -> None:
        self.judges, self.per_clip, self.seed = judges, per_clip, seed
        self.scores: list[Score] = []
        self.sources: dict[int, tuple[list[NDArray[np.float32]], NDArray[np.float64] | None]] = {}
        self.patches: dict[tuple[int, int], list[list[NDArray[np.float32]]]] = defaultdict(list)
        self.features: dict[tuple[int, int], list[NDArray[np.float64]]] = defaultdict(list)

    def add(self, one: Reconstruction) -> None:
        """Take in one reconstruction; of one clip after the other, each at the same lengths and steps."""
        lpips = self.judges.lpips(one.frames, one.decoded) if self.judges.lpips else None
        self.scores.append(score(one, with_ssim=True, lpips=lpips))
        cell = (one.tokens, one.steps)
        if one.index not in self.sources:
            self.sources[one.index] = self._see(one.frames, one.index)
        patches, features = self._see(one.decoded, one.index)
        self.patches[cell].append(patches)
        if features is not None:
            self.features[cell].append(features)

    def rows(self) -> list[dict[str, Any]]:
        """One row per cell, in the order they came."""
        source_patches = [patches for patches, _ in self.sources.values()]
        source_features = [features for _, features in self.sources.values() if features is not None]
        rows = mean_rows(self.scores)
        for row in rows:
            cell = (row["tokens"], row["steps"])
            for key, normalise in TEXTURES.items():
                levels = texture_distance(source_patches, self.patches[cell], normalise=normalise, seed=self.seed)
                row[key] = float(np.mean(levels))
                row[f"{key}_by_level"] = levels
            if len(source_features) >= FEWEST_FOR_FVD:
                row["fvd"] = frechet_distance(np.stack(source_features), np.stack(self.features[cell]))
        return rows

    def _see(self, frames: Frames, index: int) -> tuple[list[NDArray[np.float32]], NDArray[np.float64] | None]:
        features = self.judges.video_features(frames) if self.judges.video_features else None
        return patches_by_level(frames, count=self.per_clip, seed=self.seed + index), features


def mean_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Means over clips, one row for each length and step count."""
    cells: dict[tuple[int, int], list[Score]] = defaultdict(list)
    for one in scores:
        cells[one.tokens, one.steps].append(one)
    rows = []
    for (tokens, steps), found in cells.items():
        row: dict[str, Any] = {"tokens": tokens, "steps": steps, "clips": len(found)}
        for name, key in (("psnr", "psnr_db"), ("ssim", "ssim"), ("lpips", "lpips")):
            values = [getattr(one, name) for one in found]
            if None not in values:
                row[key] = float(np.mean(values))
        rows.append(row)
    return rows
