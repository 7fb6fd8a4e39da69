"""Clips for training and evaluation: video files → uint8 caches → random crops in batches.

A video is decoded once, its short side scaled to 256 pixels, and kept as a memory-mapped uint8 file in the cache folder
(`ONEDVA_CACHE`, default ~/.cache/onedva). A batch is a pure function of (seed, step).
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from onedva_runtime.errors import VideoError
from onedva_runtime.video_io import open_reader, probe

logger = logging.getLogger("onedva")

Split = Literal["train", "dev"]
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".m4v"})
SHORT_SIDE = 256
CACHE_VERSION = 1


@dataclass(frozen=True)
class Clip:
    """One decoded video: frames (T, H, W, 3) uint8, memory-mapped, short side 256, and its rate."""

    name: str
    frames: NDArray[np.uint8]
    fps: float


@dataclass(frozen=True)
class Batch:
    video: Tensor  # (B, 3, T, H, W) float32 in [-1, 1]
    frames: NDArray[np.uint8]  # the same, (B, T, H, W, 3)
    fps: Tensor  # (B,)


def cache_folder() -> Path:
    root = os.environ.get("ONEDVA_CACHE") or Path.home() / ".cache" / "onedva"
    return Path(root) / "clips"


def find_videos(folder: str | Path, *, split: Split) -> list[Path]:
    """Videos of one split. With a `MANIFEST.csv` (columns name, split) it decides; without, everything is `train`.

    Raises FileNotFoundError when the folder is missing or the split is empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    manifest = folder / "MANIFEST.csv"
    if manifest.exists():
        with manifest.open(newline="") as handle:
            paths = [folder / row["name"] for row in csv.DictReader(handle) if row["split"] == split]
    elif split == "train":
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    else:
        paths = []
    if not paths:
        raise FileNotFoundError(f"no videos of split {split!r} in {folder}")
    return paths


def load_clips(folder: str | Path, *, split: Split, minimum_frames: int = 17) -> list[Clip]:
    """Decode (or find cached) every video of a split; unreadable and too short ones are reported and left out."""
    clips, skipped = [], []
    for path in find_videos(folder, split=split):
        try:
            clip = load_clip(path)
        except (VideoError, OSError) as error:
            skipped.append(f"{path.name}: {error}")
            continue
        if clip.frames.shape[0] < minimum_frames:
            skipped.append(f"{path.name}: {clip.frames.shape[0]} frames, {minimum_frames} needed")
            continue
        clips.append(clip)
    for line in skipped:
        logger.warning("skipped %s", line)
    if not clips:
        raise FileNotFoundError(f"no usable video of split {split!r} in {folder}")
    return clips


def load_clip(path: Path) -> Clip:
    """The cached frames of one video; decoded into the cache on first use."""
    stat = path.stat()
    key = f"{CACHE_VERSION}:{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}:{SHORT_SIDE}"
    target = cache_folder() / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    rate = probe(path).fps
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        parts = []
        with open_reader(path) as reader:
            for frames, _ in reader:
                parts.append(scale_short_side(frames, SHORT_SIDE))
        if not parts:
            raise VideoError(f"{path.name} has no frames")
        temporary = target.with_suffix(f".{os.getpid()}.tmp.npy")
        np.save(temporary, np.concatenate(parts))
        temporary.replace(target)
    return Clip(path.name, np.load(target, mmap_mode="r"), float(rate))


def scale_short_side(frames: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(T, H, W, 3) scaled so that min(H, W) = size: bicubic, antialiased."""
    height, width = frames.shape[1:3]
    scale = size / min(height, width)
    if scale == 1.0:
        return frames
    shape = (max(size, round(height * scale)), max(size, round(width * scale)))
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)
    video = F.interpolate(video, size=shape, mode="bicubic", antialias=True)
    return np.ascontiguousarray(video.permute(0, 2, 3, 1).numpy())


def centre_clip(clip: Clip, *, frames: int = 17, size: int = 256) -> NDArray[np.uint8]:
    """The evaluation view: `frames` frames from the middle, centre crop of size × size: (frames, size, size, 3)."""
    total, height, width, _ = clip.frames.shape
    start = (total - frames) // 2
    top, left = (height - size) // 2, (width - size) // 2
    return np.array(clip.frames[start : start + frames, top : top + size, left : left + size])


class ClipSampler:
    """Random training crops. Sizes (H, W) with a weight each share the steps; a batch has one size."""

    def __init__(
        self,
        clips: Sequence[Clip],
        *,
        frames: int,
        sizes: Sequence[tuple[int, int, float]],
        positions_per_batch: int,
        seed: int,
    ) -> None:
        self.clips, self.frames, self.sizes, self.seed = clips, frames, sizes, seed
        self.positions_per_batch = positions_per_batch
        # long videos count more, but not in proportion: a minute of one scene is not a hundred scenes
        weights = np.sqrt([clip.frames.shape[0] for clip in clips])
        self.clip_probability = weights / weights.sum()
        shares = np.array([weight for *_, weight in sizes], dtype=np.float64)
        self.size_probability = shares / shares.sum()

    def __call__(self, step: int) -> Batch:
        """The batch of one step: as many clips as keep B·Tg·Hg·Wg near `positions_per_batch`."""
        random = np.random.default_rng([self.seed, step])
        height, width, _ = self.sizes[random.choice(len(self.sizes), p=self.size_probability)]
        positions = (1 + (self.frames - 1) // 4) * (height // 16) * (width // 16)
        count = max(1, round(self.positions_per_batch / positions))
        rows, rates = [], []
        for index in random.choice(len(self.clips), size=count, p=self.clip_probability):
            frames, fps = self._crop(self.clips[index], height, width, random)
            rows.append(frames)
            rates.append(fps)
        frames = np.stack(rows)
        video = torch.from_numpy(frames).permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0
        return Batch(video, frames, torch.tensor(rates))

    def _crop(
        self, clip: Clip, height: int, width: int, random: np.random.Generator
    ) -> tuple[NDArray[np.uint8], float]:
        total, full_height, full_width = clip.frames.shape[:3]
        stride = 2 if random.random() < 0.2 and total >= 2 * self.frames else 1
        start = random.integers(0, total - stride * (self.frames - 1))
        # the window is the crop's own size most of the time (what evaluation sees), else up to twice as large
        most = min(full_height / height, full_width / width, 2.0)
        zoom = 1.0 if random.random() < 0.6 else random.uniform(min(0.75, most), most)
        window = (min(round(height * zoom), full_height), min(round(width * zoom), full_width))
        top = random.integers(0, full_height - window[0] + 1)
        left = random.integers(0, full_width - window[1] + 1)
        time = slice(start, start + stride * (self.frames - 1) + 1, stride)
        frames = np.array(clip.frames[time, top : top + window[0], left : left + window[1]])
        if random.random() < 0.5:
            frames = frames[:, :, ::-1]
        if random.random() < 0.2:
            frames = frames[::-1]  # most motion is as plausible backwards
        if window != (height, width):
            video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)
            video = F.interpolate(video, size=(height, width), mode="bilinear", antialias=True)
            frames = video.permute(0, 2, 3, 1).numpy()
        return np.ascontiguousarray(frames), clip.fps / stride
