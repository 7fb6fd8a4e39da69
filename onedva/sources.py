"""Where videos come from: files in a folder, or members of webdataset shards (tar files), found and named.

A shard is indexed once, by its tar headers, and a video in it is then read at its offset: any order, any number of
processes, nothing unpacked. Only local files are opened: no addresses, no pipes, no links inside a tar file.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Literal, TypeVar, get_args

from onedva.workers import each
from onedva_runtime.errors import VideoError
from onedva_runtime.limits import Limits

logger = logging.getLogger("onedva")

Split = Literal["train", "dev"]
SHORT_SIDE = 256  # of decoded frames, in pixels, where nothing else is asked for
VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".m4v"})
MANIFEST = "MANIFEST.csv"
Number = TypeVar("Number", int, float)
LARGEST_JSON = 1 << 20  # bytes; what stands beside a video in a shard is a few facts


@dataclass(frozen=True)
class Source:
    """One video somewhere on this machine."""

    name: str
    """What reports call it."""
    path: Path
    """The video file, or the shard that holds it."""
    offset: int | None = None
    """Where it begins in the shard, in bytes; None for a file of its own."""
    size: int = 0
    """Its length in the shard, in bytes."""
    frames: int | None = None
    """Frames it has, where its shard says so."""
    fps: float | None = None
    """Frames per second, where its shard says so."""
    short_side: int = SHORT_SIDE
    """Pixels that its short side is scaled to when it is decoded."""


@dataclass(frozen=True)
class Skipped:
    """A video, or a shard's end, that is left out, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def find_sources(where: str | Path, *, split: Split, workers: int = 0) -> tuple[list[Source], list[Skipped]]:
    """The videos of one split, and the shards that cannot be read to their end.

    where: a folder of videos (see `find_videos`), a folder of *.tar shards, one shard, or a brace pattern of shards
    such as "clips-{000000..000009}.tar". A video in a shard is of the split that its JSON names, else `train`.
    Raises FileNotFoundError when something named is missing or the split is empty; ValueError for a bad manifest.
    """
    shards = find_shards(where)
    if not shards:
        return [Source(path.name, path) for path in find_videos(where, split=split)], []
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for found, problem in each(index_shard, shards, workers=workers, crashed=_unreadable):
        sources += [source for source, its_split in found if its_split == split]
        skipped += problem
    if not sources:
        raise FileNotFoundError(f"no videos of split {split!r} in {where}")
    return sources, skipped


def find_videos(folder: str | Path, *, split: Split) -> list[Path]:
    """Videos of one split. With a `MANIFEST.csv` (columns name, split) it decides; without, everything is `train`.

    Raises FileNotFoundError when the folder is missing or the split is empty; ValueError for a manifest without them.
    """
    folder = Path(folder)
    listed = list_videos(folder)
    unknown = sorted({its_split for _, its_split in listed} - set(get_args(Split)))
    if unknown:
        known = " and ".join(get_args(Split))
        logger.warning("%s: splits are %s; left out: the videos of %s", MANIFEST, known, ", ".join(unknown))
    paths = [path for path, its_split in listed if its_split == split]
    if not paths:
        raise FileNotFoundError(f"no videos of split {split!r} in {folder}")
    return paths


def list_videos(folder: Path) -> list[tuple[Path, str]]:
    """Every video of a folder with its split; raises as `find_videos`, but not for an empty folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    manifest = folder / MANIFEST
    if not manifest.exists():
        return [(path, "train") for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES]
    with manifest.open(newline="") as handle:
        table = csv.DictReader(handle)
        if not {"name", "split"} <= set(table.fieldnames or ()):
            raise ValueError(f"{manifest} needs the columns name and split, got {', '.join(table.fieldnames or ())}")
        return [(folder / row["name"], row["split"]) for row in table]


def find_shards(where: str | Path) -> list[Path]:
    """The shards that a path or pattern names; empty for a folder of videos.

    Raises FileNotFoundError for a missing shard, ValueError for a folder that could be meant either way.
    """
    folder = Path(where)
    if folder.is_dir():
        shards = [] if (folder / MANIFEST).exists() else sorted(folder.glob("*.tar"))
        if shards and any(path.suffix.lower() in VIDEO_SUFFIXES for path in folder.rglob("*")):
            raise ValueError(
                f"{folder} holds both videos and .tar files: name the shards by a pattern such as "
                f"{folder}/clips-{{000000..000009}}.tar, or the videos in a {MANIFEST}"
            )
        return shards
    text = os.fspath(where)
    if not text.endswith(".tar"):
        return []
    from braceexpand import braceexpand

    shards = [Path(name) for name in braceexpand(text, escape=False)]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise FileNotFoundError(f"no such shard: {missing[0]} ({len(missing)} of {len(shards)} are missing)")
    return shards


def index_shard(shard: Path) -> tuple[list[tuple[Source, str]], list[Skipped]]:
    """The videos of a shard with their splits, and a line for what cannot be read: a shard may be cut off anywhere."""
    from webdataset.tariterators import base_plus_ext

    videos: dict[str, tuple[str, int, int]] = {}  # key → member, offset, bytes
    facts: dict[str, dict[str, Any]] = {}
    problems: list[Skipped] = []
    try:
        length = shard.stat().st_size
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                key, suffix = base_plus_ext(member.name)
                whole = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
                if key is None or suffix is None or not whole or member.offset_data + member.size > length:
                    continue
                if f".{suffix.rpartition('.')[2].lower()}" in VIDEO_SUFFIXES:
                    videos[key] = member.name, member.offset_data, member.size
                elif suffix == "json" and member.size <= LARGEST_JSON:
                    facts[key] = _facts(archive, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.append(Skipped(shard.name, f"{error}, after {len(videos)} videos"))
    found = []
    for key, (member, offset, size) in videos.items():
        known = facts.get(key, {})
        name = str(known.get("name") or f"{shard.name}/{member}")
        frames, fps = _positive(known.get("frames"), int), _positive(known.get("fps"), float)
        source = Source(name, shard, offset=offset, size=size, frames=frames, fps=fps)
        found.append((source, str(known.get("split") or "train")))
    return found, problems


@contextmanager
def on_disk(source: Source, *, scratch: Path) -> Iterator[Path]:
    """A file with the bytes of a video: its own, or a copy in the folder `scratch` that is gone at the end.

    Raises VideoError, which names the video and not the copy.
    """
    if source.offset is None:
        yield source.path
        return
    limit = Limits().max_bytes
    if source.size > limit:
        raise VideoError(f"{source.name}: {source.size} bytes, over the limit of {limit} (Limits.max_bytes)")
    scratch.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=scratch, prefix="member-", suffix=".tmp") as copy:
        with source.path.open("rb") as shard:
            shard.seek(source.offset)
            left = source.size
            while left and (part := shard.read(min(left, 1 << 20))):
                copy.write(part)
                left -= len(part)
        copy.flush()
        if left:
            raise VideoError(f"{source.name}: {source.path.name} ends inside it")
        try:
            yield Path(copy.name)
        except VideoError as error:
            raise VideoError(str(error).replace(copy.name, source.name)) from error


def _facts(archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, Any]:
    file = archive.extractfile(member)
    assert file is not None  # a regular member has one
    try:
        facts = json.loads(file.read())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}


def _positive(value: Any, kind: Callable[[Any], Number]) -> Number | None:
    """The number that a shard's JSON gives, None where it is missing or no use: the video itself can be asked."""
    try:
        return kind(value) if 0 < float(value) < 1e9 else None
    except (TypeError, ValueError):
        return None


def _unreadable(shard: Path) -> tuple[list[tuple[Source, str]], list[Skipped]]:
    return [], [Skipped(shard.name, "reading it ended the process that tried")]
