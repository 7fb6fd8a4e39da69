"""Videos to latents: what `onedva tokenize` does, in one process, several, or as a Ray Data job.

A plan says which videos make which shard before anything is encoded, and a shard is a pure function of plan and index:
so any number of workers or machines may make them in any order, a run that was killed goes on where it stopped, and no
clip is lost or doubled.
"""

from __future__ import annotations

import csv
import functools
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onedva.cache import scale_short_side
from onedva.checkpoint import CONFIG, WEIGHTS, write_whole
from onedva.config import MAX_VIDEO_POSITIONS
from onedva.distributed import check_device
from onedva.generation.checkpoint import latent_space
from onedva.generation.config import AnchorMode
from onedva.generation.latent_shards import AUTOENCODER, PLAN, Plan, Row, read_plan, shard_path, write_shard
from onedva.model import OneDVA, to_video
from onedva.sources import MANIFEST, Source, Split, find_shards, find_sources, on_disk
from onedva.workers import each, is_worker
from onedva_runtime import placement
from onedva_runtime.bundle import find
from onedva_runtime.errors import VideoError
from onedva_runtime.placement import shared_anchors
from onedva_runtime.video_io import open_reader

__all__ = ["Tokenised", "make_plan", "make_shard", "tokenise"]

logger = logging.getLogger("onedva")
BATCH = 8  # clips per pass; part of the definition of a shard, as sums of another batch differ in their last bits


@dataclass(frozen=True)
class Tokenised:
    """What one shard, or a run, came to."""

    clips: int
    skipped: tuple[str, ...]
    shards: int = 1
    present: int = 0
    """Shards that were there already."""


def make_plan(
    where: Path,
    model: str | Path,
    *,
    split: Split = "train",
    size: tuple[int, int],
    frames: int | None = None,
    tokens: int | None = None,
    anchors: AnchorMode = "fixed",
    continuation: bool = False,
    clips_per_video: int = 0,
    videos_per_shard: int = 64,
) -> Plan:
    """Which videos of a folder, or of shards, go into which shard of latents, and how they are encoded.

    where, split: as `sources.find_sources` takes them; the class of a video is the column `class` of its manifest, or
    the folder it is in. model: the autoencoder. size: (height, width), multiples of 16; videos are scaled so that they
    cover it, then cropped at their centre. frames: per clip, default all the autoencoder takes. tokens: 1D latents,
    default 256 or what the clip holds. Raises FileNotFoundError without videos, ValueError for bad options.
    """
    folder = find(model)
    config = OneDVA.from_pretrained(folder).config
    frames = frames or config.clip_frames
    grid = placement.grid_of(frames, *size)
    if frames > config.clip_frames:
        raise ValueError(f"frames must be at most the model's {config.clip_frames}, got {frames}")
    if math.prod(grid) > MAX_VIDEO_POSITIONS:
        raise ValueError(
            f"{frames} frames of {size[1]}x{size[0]} make {math.prod(grid)} positions; generate takes "
            f"{MAX_VIDEO_POSITIONS}: choose a smaller size or fewer frames"
        )
    if min(videos_per_shard, clips_per_video + 1) < 1:
        raise ValueError(f"videos_per_shard must be at least 1, got {videos_per_shard}")
    longest = placement.longest(grid, max_tokens=min(config.queries, config.trained_tokens), is_key=not continuation)
    count = placement.round_tokens(256 if tokens is None else tokens, longest, length_multiple=config.length_multiple)
    if count < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}; train-ldm shortens them as it likes")
    sources, skipped = find_sources(where, split=split)
    for line in skipped:
        logger.warning("skipped %s", line)
    named = sorted(zip(relative_names(where, sources), sources, strict=True), key=lambda pair: pair[0])
    classes_of = class_names(where, [name for name, _ in named])
    classes = tuple(sorted(set(classes_of) - {""}))
    labels = [classes.index(name) if name else len(classes) for name in classes_of]
    starts = range(0, len(named), videos_per_shard)
    return Plan(
        autoencoder=latent_space(folder),
        split=split,
        frames=frames,
        size=size,
        tokens=count,
        anchors=anchors,
        continuation=continuation,
        clips_per_video=clips_per_video,
        classes=classes,
        videos=tuple(tuple(name for name, _ in named[start : start + videos_per_shard]) for start in starts),
        labels=tuple(tuple(labels[start : start + videos_per_shard]) for start in starts),
    )


def relative_names(where: Path, sources: Sequence[Source]) -> list[str]:
    """What plans call videos: their place in the folder, or the name that their shard gives."""
    if find_shards(where):
        return [source.name for source in sources]
    return [source.path.relative_to(where).as_posix() for source in sources]


def class_names(where: Path, names: Sequence[str]) -> list[str]:
    """The class of each video: by the manifest's column `class`, else the folder it is in; "" for none."""
    manifest = Path(where) / MANIFEST
    listed: dict[str, str] = {}
    if manifest.is_file():
        with manifest.open(newline="") as handle:
            listed = {row["name"]: row["class"] for row in csv.DictReader(handle) if row.get("class")}
    return [listed.get(name, Path(name).parent.name) for name in names]


def tokenise(
    where: Path,
    output: Path,
    plan: Plan,
    *,
    model: str | Path,
    workers: int = 0,
    resume: bool = False,
    device: str = "cpu",
    advance: Callable[[int], None] = lambda shards: None,
) -> Tokenised:
    """Make the shards of a plan that are not there yet. advance: called with the number of shards done.

    workers: processes, 0 for this one. resume: go on with a plan that was begun. device: "cpu" or "cuda". Raises
    FileExistsError for a folder that holds latents, ValueError where its plan is another or the device is not there.
    """
    check_device(device)
    todo = begin(output, plan, model=model, resume=resume)
    advance(len(plan.videos) - len(todo))
    make = functools.partial(make_shard, where, output, plan, device=device)
    crashed = functools.partial(crashed_shard, output, plan)
    total = Tokenised(0, (), shards=0, present=len(plan.videos) - len(todo))
    for one in each(make, todo, workers=workers, crashed=crashed):
        for line in one.skipped:
            logger.warning("skipped %s", line)
        total = replace(
            total, clips=total.clips + one.clips, skipped=total.skipped + one.skipped, shards=total.shards + 1
        )
        advance(1)
    return total


def begin(output: Path, plan: Plan, *, model: str | Path, resume: bool) -> list[int]:
    """Write the plan and the autoencoder, or check that they are the ones there; returns the shards still to make."""
    if (output / PLAN).exists():
        if not resume:
            raise FileExistsError(f"{output} holds latents: go on with them (--resume), or choose another folder")
        there = read_plan(output)
        if there != plan:
            raise ValueError(
                f"{output} was begun with another plan ({', '.join(differences(there, plan))}): use the same options "
                "and videos"
            )
        for stale in output.glob(".latents-*.tmp"):  # of a process that was killed
            with suppress(FileNotFoundError):
                stale.unlink()
    else:
        folder = find(model)
        (output / AUTOENCODER).mkdir(parents=True, exist_ok=True)
        for name in (CONFIG, WEIGHTS):
            write_whole(output / AUTOENCODER / name, functools.partial(shutil.copyfile, folder / name))
        write_whole(output / PLAN, lambda path: path.write_text(plan.to_json()))
    return [index for index in range(len(plan.videos)) if not shard_path(output, index).exists()]


def differences(there: Plan, plan: Plan) -> list[str]:
    """In what two plans differ, as options are called. The same videos in shards of another size differ in that."""
    differ = [name for name in vars(plan) if getattr(plan, name) != getattr(there, name)]
    names, others = ([name for shard in one.videos for name in shard] for one in (there, plan))
    if "videos" in differ and names == others:
        return ["videos_per_shard", *(name for name in differ if name not in ("videos", "labels"))]
    return differ


def make_shard(where: Path, output: Path, plan: Plan, index: int, *, device: str = "cpu") -> Tokenised:
    """Encode the videos of one shard and write it; the same arguments give the same bytes on one kind of machine."""
    sources = sources_of(where, plan.split)
    model = autoencoder(output / AUTOENCODER, device)
    rows: list[Row] = []
    skipped: list[str] = []
    pending: list[tuple[str, int, NDArray[np.uint8], float]] = []

    def flush() -> None:
        rows.extend(encode(model, plan, pending))
        pending.clear()

    for name, label in zip(plan.videos[index], plan.labels[index], strict=True):
        try:
            for number, (clip, fps) in enumerate(clips_of(sources[name], plan, scratch=output)):
                if pending and pending[0][3] != fps:
                    flush()  # a pass has one rate
                pending.append((f"{name}#{number}", label, clip, fps))
                if len(pending) == BATCH:
                    flush()
        except (VideoError, OSError, KeyError) as error:
            skipped.append(f"{name}: {error}")
    flush()
    write_shard(shard_path(output, index), rows, empty=empty_tensors(model, plan), skipped=skipped)
    return Tokenised(len(rows), tuple(skipped))


def crashed_shard(output: Path, plan: Plan, index: int) -> Tokenised:
    names = f"{plan.videos[index][0]} to {plan.videos[index][-1]}"
    raise VideoError(
        f"making {shard_path(output, index).name} ({names}) ended the process that tried: out of memory, or a crash in "
        "a decoder; --workers 0 shows it"
    )


@functools.cache
def sources_of(where: Path, split: Split) -> dict[str, Source]:
    sources, _ = find_sources(where, split=split)
    return dict(zip(relative_names(where, sources), sources, strict=True))


@functools.cache
def autoencoder(folder: Path, device: str) -> OneDVA:
    return OneDVA.from_pretrained(folder).to(device).eval().requires_grad_(False)


def clips_of(source: Source, plan: Plan, *, scratch: Path) -> Iterator[tuple[NDArray[np.uint8], float]]:
    """Clips of a video one after the other, scaled and cropped (frames, H, W, 3), with its rate. Raises VideoError for
    one that is shorter than a clip."""
    height, width = plan.size
    found, kept = 0, np.empty((0, height, width, 3), np.uint8)
    with on_disk(source, scratch=scratch) as path, open_reader(path, threads=1 if is_worker() else 0) as reader:
        fps = float(reader.info.fps)
        for frames, _ in reader:
            kept = np.concatenate([kept, centre_crop(frames, height, width)])
            while len(kept) >= plan.frames:
                yield kept[: plan.frames], fps
                kept, found = kept[plan.frames :], found + 1
                if found == plan.clips_per_video:
                    return
    if not found:
        raise VideoError(f"{len(kept)} frames, {plan.frames} needed")


def centre_crop(frames: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """(T, H, W, 3) scaled so that it covers height × width, and its middle."""
    tall, wide = frames.shape[1:3]
    scale = max(height / tall, width / wide)
    frames = scale_short_side(frames, max(round(min(tall, wide) * scale), min(height, width)))
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


@torch.inference_mode()
def encode(model: OneDVA, plan: Plan, clips: Sequence[tuple[str, int, NDArray[np.uint8], float]]) -> Iterator[Row]:
    """The rows of a few clips."""
    if not clips:
        return
    device = model.encoder.queries.device
    video = to_video(torch.from_numpy(np.stack([frames for _, _, frames, _ in clips])).to(device))
    fps = clips[0][3]
    kinds = {"": True, **({"continuation.": False} if plan.continuation else {})}
    tensors: dict[str, Tensor] = {}
    for prefix, key in kinds.items():
        is_key = torch.full((len(video),), key, device=device)
        anchors = None
        if plan.anchors == "fixed":
            grid = placement.grid_of(*video.shape[2:])
            order = shared_anchors(grid, plan.tokens, is_key=key, layered=model.config.pca)
            anchors = torch.from_numpy(order).to(device).expand(len(video), -1)
        z = model.encode(video, tokens=plan.tokens, anchors=anchors, is_key=is_key, fps=fps).latent_dist.mode()
        structural = z.structural.clone()
        if not key:
            structural[:, 0] = 0  # it is not sent
        tensors[f"{prefix}structural"], tensors[f"{prefix}latents"] = structural, z.latents
        tensors[f"{prefix}anchors"] = z.anchors
    if plan.continuation:
        tensors["first"] = first_latents(model, video[:, :, :1], fps=fps)
    stored = {
        name: value.to(torch.int32 if name.endswith("anchors") else torch.float16).cpu().contiguous()
        for name, value in tensors.items()
    }
    for row, (name, label, _, _) in enumerate(clips):
        yield Row(name, label, {key: value[row] for key, value in stored.items()})


def first_latents(model: OneDVA, first: Tensor, *, fps: float) -> Tensor:
    """All latents of a frame as a clip of its own, one 1D latent a position: (B, 3, 1, H, W) → (B, Hg, Wg, Zs + Z)."""
    grid = placement.grid_of(*first.shape[2:])
    count = placement.longest(grid, max_tokens=min(model.config.queries, model.config.trained_tokens))
    anchors = torch.arange(count, device=first.device).expand(len(first), -1)
    z = model.encode(first, anchors=anchors, fps=fps).latent_dist.mode()
    layers = z.latents.new_zeros(len(first), grid[1] * grid[2], z.latents.shape[-1])
    layers[:, :count] = z.latents
    return torch.cat([z.structural[:, 0], layers.unflatten(1, grid[1:])], dim=-1)


def empty_tensors(model: OneDVA, plan: Plan) -> dict[str, Tensor]:
    """The tensors of a shard in which no video could be read."""
    blank = np.zeros((plan.frames, *plan.size, 3), np.uint8)
    row = next(iter(encode(model, plan, [("", 0, blank, 24.0)])))
    return {name: tensor[None][:0].contiguous() for name, tensor in row.tensors.items()}
