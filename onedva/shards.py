"""A folder of videos packed into webdataset shards: tar files of a few hundred megabytes that file systems, copies and
many readers take better than a million small files.

    onedva shard FOLDER -o OUT --max-size 256MB --workers 8

A sample is the video's own bytes and a JSON with name, split, fps, frames, width and height:
`00000012.json`, `00000012.mp4`. Every video is decoded once to be sure of it. A shard appears whole or not at all, and
the same videos give the same bytes.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory

from onedva.cache import scale_short_side
from onedva.sources import Skipped, index_shard, list_videos
from onedva.workers import each, is_worker
from onedva_runtime.errors import OneDVAError, VideoError
from onedva_runtime.files import AtomicFile
from onedva_runtime.video_io import VideoReader, VideoWriter, open_reader

__all__ = ["Packed", "pack_folder"]

logger = logging.getLogger("onedva")
SHARD = "clips-{:06d}.tar"
OURS = re.compile(r"clips-\d{6}\.tar")


@dataclass(frozen=True)
class Packed:
    """What `pack_folder` did."""

    shards: tuple[Path, ...]
    """Written now."""
    videos: int
    """Packed now."""
    frames: int
    """Of these videos."""
    bytes: int
    """Of these shards."""
    present: int
    """Videos that earlier shards held already (`resume`)."""
    damaged: tuple[str, ...]
    """Packed, but some of their frames cannot be decoded."""
    skipped: tuple[Skipped, ...]
    """Left out, and why."""


@dataclass(frozen=True)
class Checked:
    """A video that was decoded to its end, ready to be packed."""

    name: str
    split: str
    content: Path
    """The file with its bytes; in the scratch folder where it was encoded anew."""
    fps: float
    frames: int
    width: int
    height: int
    damaged: bool

    def facts(self) -> bytes:
        keys = ("name", "split", "fps", "frames", "width", "height")
        return json.dumps({key: getattr(self, key) for key in keys}, ensure_ascii=False).encode()


def pack_folder(
    folder: Path,
    output: Path,
    *,
    max_size: int = 256_000_000,
    split: str | None = None,
    short_side: int | None = None,
    workers: int = 0,
    force: bool = False,
    resume: bool = False,
    advance: Callable[[int], None] | None = None,
) -> Packed:
    """Pack the videos of a folder into shards `clips-000000.tar`, … in the folder `output`.

    max_size: bytes of a shard; a larger video gets one of its own. split: pack only this one. short_side: videos whose
    short side is longer are scaled to it and encoded anew (H.264, near lossless), in pixels, even, at least 16.
    workers: processes that decode; 0 for this one. force: remove shards that are there. resume: go on after them.
    advance: called with the number of videos done.

    Raises FileNotFoundError for a missing folder, or no video in it that can be packed; FileExistsError for shards that
    are there; ValueError for wrong options; OneDVAError where writing fails.
    """
    if max_size < 1:
        raise ValueError(f"max_size must be at least 1 byte, got {max_size}")
    if short_side is not None and (short_side < 16 or short_side % 2):
        raise ValueError(f"the short side must be an even number of at least 16 pixels, got {short_side}")
    videos = [(path, its_split) for path, its_split in list_videos(folder) if split in (None, its_split)]
    if not videos:
        raise FileNotFoundError(f"no videos{f' of split {split!r}' if split else ''} in {folder}")
    output.mkdir(parents=True, exist_ok=True)
    if output.samefile(folder):
        raise ValueError(f"the shards of {folder} must go to another folder")
    present, number = _earlier(output, force=force, resume=resume)
    total = len(videos)
    videos = [(path, its_split) for path, its_split in videos if path.relative_to(folder).as_posix() not in present]
    if advance is not None:
        advance(total - len(videos))
    with TemporaryDirectory(dir=output, prefix=".shards-", ignore_cleanup_errors=True) as scratch:
        check = partial(_check, folder=folder, short_side=short_side, scratch=Path(scratch))
        checked = each(check, videos, workers=workers, crashed=partial(_crashed, folder=folder))
        packed = _write(_reported(checked, advance), output, number=number, key=len(present), max_size=max_size)
    if not packed.videos and not present:
        raise FileNotFoundError(f"no usable video in {folder}: all {len(packed.skipped)} were skipped")
    return replace(packed, present=len(present))


def _earlier(output: Path, *, force: bool, resume: bool) -> tuple[set[str], int]:
    """Names of the videos that shards in `output` hold, to be left alone, and the number of the next shard."""
    shards = sorted(path for path in output.glob("*.tar") if OURS.fullmatch(path.name))
    if force and resume:
        raise ValueError("force removes earlier shards and resume keeps them: give one of them")
    if shards and not force and not resume:
        raise FileExistsError(f"{output} holds {len(shards)} shards: go on after them (--resume), or replace them (-f)")
    present: set[str] = set()
    for shard in shards:
        if force:
            shard.unlink()
            continue
        found, problems = index_shard(shard)
        if problems:
            raise OneDVAError(f"{shard} is damaged ({problems[0].reason}): remove it, then resume")
        present |= {source.name for source, _ in found}
    return present, 0 if force or not shards else int(shards[-1].stem.rpartition("-")[2]) + 1


def _check(video: tuple[Path, str], *, folder: Path, short_side: int | None, scratch: Path) -> Checked | Skipped:
    """Decode a video to its end, and encode it anew where it is too large; runs in workers."""
    path, split = video
    name = path.relative_to(folder).as_posix()
    try:
        with open_reader(path, threads=1 if is_worker() else 0) as reader:
            small = short_side is None or min(reader.info.width, reader.info.height) <= short_side
            if small:
                content, width, height = path, reader.info.width, reader.info.height
                for _ in reader:
                    pass
            else:
                assert short_side is not None
                content = scratch / f"{token_hex(8)}.mp4"
                width, height = _encode(reader, content, short_side)
            info = reader.info  # final now
    except (VideoError, OSError) as error:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Skipped(name, text.removeprefix(f"{path}: "))
    return Checked(name, split, content, float(info.fps), info.frames or 0, width, height, info.truncated)


def _encode(reader: VideoReader, target: Path, short_side: int) -> tuple[int, int]:
    """Write what is left of a video with a smaller picture and its own time stamps; returns width and height."""
    info, writer = reader.info, None
    try:
        for frames, timestamps in reader:
            frames = scale_short_side(frames, short_side, multiple=2)
            if writer is None:
                height, width = frames.shape[1:3]
                writer = VideoWriter(target, width=width, height=height, fps=info.fps, time_base=info.time_base)
            writer.write(frames, timestamps)
        assert writer is not None  # a reader has at least one frame
        writer.close()
        return width, height
    except VideoError as error:
        if writer is not None:
            writer.abort()
        if str(error).startswith(str(target)):  # a full disk, most likely: no fault of the video
            raise OneDVAError(str(error)) from error
        raise


def _crashed(video: tuple[Path, str], *, folder: Path) -> Skipped:
    return Skipped(video[0].relative_to(folder).as_posix(), "decoding it ended the process that tried")


def _reported(
    checked: Iterable[Checked | Skipped], advance: Callable[[int], None] | None
) -> Iterator[Checked | Skipped]:
    """The same, with a log line for what is left out."""
    for one in checked:
        if isinstance(one, Skipped):
            logger.warning("skipped %s", one)
        yield one
        if advance is not None:
            advance(1)


def _write(checked: Iterable[Checked | Skipped], output: Path, *, number: int, key: int, max_size: int) -> Packed:
    """Write shards from `number` on, their samples counted from `key` on."""
    shards: list[Path] = []
    packed: list[Checked] = []
    skipped: list[Skipped] = []
    shard: Shard | None = None
    written = 0
    try:
        for one in checked:
            if isinstance(one, Skipped):
                skipped.append(one)
                continue
            try:
                content = one.content.read_bytes()
            except OSError as error:  # it was there when it was decoded
                skipped.append(Skipped(one.name, error.strerror or str(error)))
                continue
            if shard is not None and shard.size + len(content) > max_size:
                written += shard.commit()
                shard = None
            if shard is None:
                shard = Shard(output / SHARD.format(number + len(shards)))
                shards.append(shard.path)
            shard.add(f"{key + len(packed):08d}", one, content)
            packed.append(one)
            if one.content.is_relative_to(output):  # encoded anew
                one.content.unlink()
        if shard is not None:
            written += shard.commit()
            shard = None
    finally:
        if shard is not None:
            shard.abort()
    return Packed(
        shards=tuple(shards),
        videos=len(packed),
        frames=sum(one.frames for one in packed),
        bytes=written,
        present=0,
        damaged=tuple(one.name for one in packed if one.damaged),
        skipped=tuple(skipped),
    )


class Shard:
    """A tar file that takes its name when it is committed."""

    def __init__(self, path: Path) -> None:
        from webdataset.writer import TarWriter

        self.path = path
        self._output = AtomicFile(path, overwrite=False, error=OneDVAError)
        self._archive = TarWriter(self._output.file, encoder=False, mtime=0)  # the same time: the same bytes

    @property
    def size(self) -> int:
        """Bytes so far, without the end of the archive."""
        return self._archive.tarstream.offset

    def add(self, key: str, one: Checked, content: bytes) -> None:
        """Append a sample. Raises OneDVAError where writing fails."""
        suffix = one.content.suffix.removeprefix(".").lower()
        try:
            self._archive.write({"__key__": key, "json": one.facts(), suffix: content})
        except OSError as error:
            raise OneDVAError(f"{self.path}: cannot be written ({error.strerror})") from error

    def commit(self) -> int:
        """Publish the shard; returns its bytes."""
        try:
            self._archive.close()
        except OSError as error:
            raise OneDVAError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._output.commit()
        return self.path.stat().st_size

    def abort(self) -> None:
        """Remove what was written."""
        with suppress(OSError):
            self._archive.close()  # or it tries to when it is collected, and complains
        self._output.abort()
