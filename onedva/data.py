"""Clips for training and evaluation: the public names. Video files or shards (sources.py, shards.py) → decoded uint8
frames in a cache (cache.py, clip_set.py) → random crops (crops.py) in batches, prepared by workers (sampler.py).

    clips = load_clips(folder, split="train", workers=4)
    sampler = ClipSampler(clips, frames=17, sizes=((256, 256, 1.0),), positions_per_batch=2560, seed=0)
    with closing(batches(sampler, start_step=step, workers=4)) as stream:
        for batch in stream: ...
"""

from __future__ import annotations

from onedva.cache import CacheError, Clip, cache_folder, load_clip, scale_short_side
from onedva.clip_set import ClipSet, centre_clip, load_clips
from onedva.sampler import Batch, ClipSampler, batches
from onedva.sources import VIDEO_SUFFIXES, Skipped, Source, Split, find_shards, find_sources, find_videos

__all__ = [
    "VIDEO_SUFFIXES",
    "Batch",
    "CacheError",
    "Clip",
    "ClipSampler",
    "ClipSet",
    "Skipped",
    "Source",
    "Split",
    "batches",
    "cache_folder",
    "centre_clip",
    "find_shards",
    "find_sources",
    "find_videos",
    "load_clip",
    "load_clips",
    "scale_short_side",
]
