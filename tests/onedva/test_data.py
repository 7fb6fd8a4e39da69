"""Videos to clips: what is found, what is skipped and why, what the cache keeps and lets go."""

import csv
import errno
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onedva import cache as clip_cache
from onedva.data import (
    CacheError,
    Clip,
    centre_clip,
    find_videos,
    load_clip,
    load_clips,
    scale_short_side,
)
from onedva_runtime.metrics import psnr

WriteVideo = Callable[..., np.ndarray]


def test_a_video_becomes_a_clip(tmp_path: Path, cache: Path, write_video: WriteVideo) -> None:
    source = write_video(tmp_path / "a.mp4", frames=6, height=256, width=320, fps=30)
    clip = load_clip(tmp_path / "a.mp4")
    assert clip.name == "a.mp4" and clip.fps == 30
    assert clip.frames.shape == (6, 256, 320, 3) and clip.frames.dtype == np.uint8
    assert psnr(source, np.asarray(clip.frames)) > 30
    assert isinstance(clip.frames, np.memmap)


def test_a_video_is_decoded_once(
    tmp_path: Path, cache: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.mp4", frames=5)
    first = load_clip(tmp_path / "a.mp4")
    assert first.frames.shape == (5, 256, 341, 3)  # 96×128, short side 256
    assert sorted(file.suffix for file in (cache / "clips").iterdir()) == [".json", ".npy"]  # and no temporary

    def decode_again(path: Path) -> None:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(clip_cache, "open_reader", decode_again)
    monkeypatch.setattr(clip_cache, "probe", decode_again)
    np.testing.assert_array_equal(load_clip(tmp_path / "a.mp4").frames, first.frames)
    (tmp_path / "a.mp4").touch()  # changed, for all we know
    with pytest.raises(AssertionError, match="decoded again"):
        load_clip(tmp_path / "a.mp4")


def test_each_short_side_is_cached_apart(tmp_path: Path, cache: Path, write_video: WriteVideo) -> None:
    write_video(tmp_path / "a.mp4", frames=5)
    for side, shape in ((48, (48, 64)), (256, (256, 341)), (48, (48, 64))):
        clips = load_clips(tmp_path, split="train", minimum_frames=5, short_side=side)
        assert clips[0].frames.shape[1:3] == shape


def test_unreadable_and_short_videos_are_reported_and_left_out(
    tmp_path: Path, cache: Path, write_video: WriteVideo, caplog: pytest.LogCaptureFixture
) -> None:
    write_video(tmp_path / "good.mp4", frames=8)
    write_video(tmp_path / "short.mp4", frames=4)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "empty.mkv").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no video, not even tried")
    with caplog.at_level(logging.WARNING, logger="onedva"):
        clips = load_clips(tmp_path, split="train", minimum_frames=5)
    assert [clip.name for clip in clips] == ["good.mp4"]
    lines = sorted(record.getMessage() for record in caplog.records)
    names = ["empty.mkv", "noise.mp4", "short.mp4"]
    assert [line.split(":")[0] for line in lines] == [*(f"skipped {name}" for name in names), "train"]
    assert lines[3] == "train: 1 videos used, 3 skipped"
    assert sorted(one.name for one in clips.skipped) == names
    assert {one.name: one.reason for one in clips.skipped}["short.mp4"] == "4 frames, 5 needed"


def test_a_folder_of_nothing_usable_is_an_error(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "noise.mp4").write_bytes(b"noise")
    with pytest.raises(FileNotFoundError, match="no usable video of split 'train'"):
        load_clips(tmp_path, split="train")


def test_the_manifest_decides_the_split(
    tmp_path: Path, cache: Path, write_video: WriteVideo, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b", "c", "unlisted"):
        write_video(tmp_path / f"{name}.mp4", frames=5, height=64, width=64)
    with (tmp_path / "MANIFEST.csv").open("w", newline="") as handle:
        rows = [("name", "split", "seconds"), ("b.mp4", "train", 1), ("a.mp4", "dev", 1), ("gone.mp4", "train", 1)]
        csv.writer(handle).writerows([*rows, ("c.mp4", "train", 1)])
    assert [path.name for path in find_videos(tmp_path, split="train")] == ["b.mp4", "gone.mp4", "c.mp4"]
    assert [clip.name for clip in load_clips(tmp_path, split="train", minimum_frames=5)] == ["b.mp4", "c.mp4"]
    assert "skipped gone.mp4" in caplog.text
    assert [clip.name for clip in load_clips(tmp_path, split="dev", minimum_frames=5)] == ["a.mp4"]


def test_without_a_manifest_everything_is_for_training(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.MP4", "a.webm", "deep/c.mkv", "d.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_videos(tmp_path, split="train")] == ["a.webm", "b.MP4", "c.mkv"]
    with pytest.raises(FileNotFoundError, match="no videos of split 'dev'"):
        find_videos(tmp_path, split="dev")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_videos(tmp_path / "missing", split="train")
    (tmp_path / "archive.tar").touch()  # what they came in, or shards?
    with pytest.raises(ValueError, match=r"both videos and \.tar files"):
        load_clips(tmp_path, split="train")


def test_the_evaluation_view_is_the_middle() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (21, 64, 96, 3), np.uint8)
    clip = Clip("a", frames, 24.0)
    np.testing.assert_array_equal(centre_clip(clip, frames=17, size=32), frames[2:19, 16:48, 32:64])
    np.testing.assert_array_equal(centre_clip(clip, frames=5, size=64), frames[8:13, :, 16:80])


@pytest.mark.parametrize(
    ("size", "wanted"), [((32, 48), (64, 96)), ((128, 64), (128, 64)), ((200, 100), (128, 64)), ((100, 99), (65, 64))]
)
def test_the_short_side_is_scaled(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    frames = np.full((2, *size, 3), 77, np.uint8)
    scaled = scale_short_side(frames, 64)
    assert scaled.shape == (2, *wanted, 3)
    assert (scaled == 77).all()


def test_a_manifest_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.csv").write_text("file,part\na.mp4,train\n")
    with pytest.raises(ValueError, match="needs the columns name and split, got file, part"):
        find_videos(tmp_path, split="train")


def test_decoding_in_workers_gives_the_same_clips(tmp_path: Path, cache: Path, write_video: WriteVideo) -> None:
    for seed in range(3):
        write_video(tmp_path / f"{seed}.mp4", frames=6 + seed, height=64, width=80, seed=seed, fps=20 + seed)
    (tmp_path / "1b.mp4").write_bytes(b"noise")
    parallel = load_clips(tmp_path, split="train", minimum_frames=5, workers=2)
    found = [(clip.name, clip.fps, np.array(clip.frames)) for clip in parallel]
    assert [one.name for one in parallel.skipped] == ["1b.mp4"]
    for file in (cache / "clips").iterdir():
        file.unlink()
    alone = load_clips(tmp_path, split="train", minimum_frames=5)
    assert [name for name, *_ in found] == [clip.name for clip in alone] == ["0.mp4", "1.mp4", "2.mp4"]
    for (_, fps, frames), clip in zip(found, alone, strict=True):
        assert fps == clip.fps
        np.testing.assert_array_equal(frames, clip.frames)


def test_a_cached_clip_that_is_lost_or_damaged_is_decoded_again(
    tmp_path: Path, cache: Path, write_video: WriteVideo
) -> None:
    write_video(tmp_path / "a.mp4", frames=6)
    clips = load_clips(tmp_path, split="train", minimum_frames=5)
    expected = np.array(clips[0].frames)
    (kept,) = (cache / "clips").glob("*.npy")
    kept.unlink()
    np.testing.assert_array_equal(clips[0].frames, expected)
    kept.write_bytes(kept.read_bytes()[:-1000])
    np.testing.assert_array_equal(clips[0].frames, expected)
    kept.write_bytes(b"nothing like it")
    np.testing.assert_array_equal(load_clip(tmp_path / "a.mp4").frames, expected)


def test_with_a_limit_nothing_is_decoded_before_use_and_the_oldest_makes_room(
    tmp_path: Path, cache: Path, write_video: WriteVideo
) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", frames=5, height=64, width=64, seed=ord(name))
    one = 5 * 256 * 256 * 3 + 128
    clips = load_clips(tmp_path, split="train", minimum_frames=5, cache_limit=2 * one)
    assert clips.frame_counts.tolist() == [5, 5, 5]

    def cached() -> list[str]:
        return sorted(file.name[0] for file in (cache / "clips").glob("*.npy"))

    assert cached() == []
    first = clips[0].frames
    expected = np.array(first)
    clips[1]
    os.utime(next((cache / "clips").glob("a-*.npy")), (1, 1))  # a is the one used longest ago
    clips[2]
    assert cached() == ["b", "c"]
    np.testing.assert_array_equal(first, expected)  # in use: what was mapped stays
    os.utime(next((cache / "clips").glob("b-*.npy")), (1, 1))
    assert len(clips[1].frames) == 5  # using it makes it the newest
    os.utime(next((cache / "clips").glob("c-*.npy")), (2, 2))
    np.testing.assert_array_equal(clips[0].frames, expected)
    assert cached() == ["a", "b"]


def test_a_video_larger_than_the_limit_is_an_error_that_says_so(
    tmp_path: Path, cache: Path, write_video: WriteVideo
) -> None:
    write_video(tmp_path / "a.mp4", frames=5, height=64, width=64)
    clips = load_clips(tmp_path, split="train", minimum_frames=5, cache_limit=100_000)
    with pytest.raises(clip_cache.VideoError, match="more than the cache limit of 100000 bytes"):
        clips[0]
    assert [file.suffix for file in (cache / "clips").iterdir()] == [".json"]


def test_a_full_disk_names_the_cache(
    tmp_path: Path, cache: Path, write_video: WriteVideo, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.mp4", frames=5)

    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip_cache, "_write_header", full)
    with pytest.raises(CacheError, match=r"disk of the clip cache is full .* ONEDVA_CACHE"):
        load_clips(tmp_path, split="train", minimum_frames=5)  # not a video that is skipped
    assert not list((cache / "clips").glob("*.npy")) and not list((cache / "clips").glob("*.tmp"))


def test_what_a_killed_process_left_behind_is_swept_away(tmp_path: Path, cache: Path, write_video: WriteVideo) -> None:
    write_video(tmp_path / "a.mp4", frames=5, height=64, width=64)
    folder = cache / "clips"
    folder.mkdir(parents=True)
    old, new = folder / "x.npy.77.tmp", folder / "y.npy.78.tmp"
    for file in (old, new):
        file.touch()
    long_ago = time.time() - 2 * clip_cache.STALE
    os.utime(old, (long_ago, long_ago))
    load_clips(tmp_path, split="train", minimum_frames=5)
    assert not old.exists() and new.exists()


def test_a_part_of_a_set_is_a_set(tmp_path: Path, cache: Path, write_video: WriteVideo) -> None:
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", frames=5, height=64, width=64)
    clips = load_clips(tmp_path, split="train", minimum_frames=5)
    assert [clip.name for clip in clips[1:]] == ["b.mp4", "c.mp4"] and clips[:2].frame_counts.tolist() == [5, 5]
    assert clips[-1].name == "c.mp4"
    with pytest.raises(IndexError):
        clips[3]


def test_a_split_with_another_name_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "MANIFEST.csv").write_text("name,split\na.mp4,train\nb.mp4,val\n")
    assert [path.name for path in find_videos(tmp_path, split="train")] == ["a.mp4"]
    assert caplog.messages == ["MANIFEST.csv: splits are train and dev; left out: the videos of val"]
