"""Videos to clips to batches: what is skipped, what is cached, and that a batch is a function of (seed, step)."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from onedva import data
from onedva.data import Clip, ClipSampler, centre_clip, find_videos, load_clip, load_clips, scale_short_side
from onedva_runtime.metrics import psnr

WriteVideo = Callable[..., np.ndarray]


def numbered(frames: int, height: int = 64, width: int = 96, *, fps: float = 24.0) -> Clip:
    """A clip whose every pixel of frame i is i."""
    values = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return Clip("numbered", np.broadcast_to(values, (frames, height, width, 3)), fps)


def sampler(clips: list[Clip], *, seed: int = 0, size: tuple[int, int] = (32, 48), positions: int = 48) -> ClipSampler:
    return ClipSampler(clips, frames=5, sizes=((*size, 1.0),), positions_per_batch=positions, seed=seed)


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
    files = list((cache / "clips").iterdir())
    assert len(files) == 1 and files[0].suffix == ".npy"  # and no temporary

    def decode_again(path: Path) -> None:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(data, "open_reader", decode_again)
    np.testing.assert_array_equal(load_clip(tmp_path / "a.mp4").frames, first.frames)
    (tmp_path / "a.mp4").touch()  # changed, for all we know
    with pytest.raises(AssertionError, match="decoded again"):
        load_clip(tmp_path / "a.mp4")


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
    assert [line.split(":")[0] for line in lines] == [f"skipped {n}" for n in ("empty.mkv", "noise.mp4", "short.mp4")]
    assert "4 frames, 5 needed" in lines[2]


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


def test_a_batch_is_a_function_of_seed_and_step(make_frames: Callable[..., np.ndarray]) -> None:
    clips = [Clip(str(i), frames, 24.0) for i, frames in enumerate(make_frames(3, 12, 64, 80))]
    one, two = sampler(clips), sampler(clips)
    for step in (0, 9):
        two(step)  # what was drawn before does not matter
    for step in (0, 5):
        a, b = one(step), two(step)
        np.testing.assert_array_equal(a.frames, b.frames)
        assert torch.equal(a.video, b.video) and torch.equal(a.fps, b.fps)
    assert not np.array_equal(one(0).frames, one(1).frames)
    assert not np.array_equal(one(0).frames, sampler(clips, seed=1)(0).frames)


def test_a_batch_has_the_asked_shape_and_scale(make_frames: Callable[..., np.ndarray]) -> None:
    clips = [Clip("0", make_frames(1, 12, 64, 80)[0], 24.0)]
    batch = sampler(clips)(0)
    assert batch.frames.shape == (4, 5, 32, 48, 3) and batch.frames.dtype == np.uint8  # 48 positions: 4 clips of 12
    assert batch.video.shape == (4, 3, 5, 32, 48) and batch.video.dtype == torch.float32
    torch.testing.assert_close(batch.video.permute(0, 2, 3, 4, 1), torch.from_numpy(batch.frames) / 127.5 - 1)
    assert len(sampler(clips, positions=1)(0).frames) == 1


def test_sizes_share_the_steps() -> None:
    sizes = ((16, 16, 0.75), (32, 48, 0.25))
    draw = ClipSampler([numbered(20)], frames=5, sizes=sizes, positions_per_batch=2, seed=0)
    shapes = [tuple(draw(step).video.shape[3:]) for step in range(200)]
    assert set(shapes) == {(16, 16), (32, 48)}
    assert shapes.count((16, 16)) / 200 == pytest.approx(0.75, abs=0.08)


def test_crops_follow_time_forwards_or_backwards_at_their_rate() -> None:
    draw, seen = sampler([numbered(30)], positions=480), set()
    for step in range(3):
        batch = draw(step)
        for frames, fps in zip(batch.frames, batch.fps.tolist(), strict=True):
            assert (frames == frames[:, :1, :1, :1]).all()
            steps = np.diff(frames[:, 0, 0, 0].astype(int))
            assert len(set(steps.tolist())) == 1
            seen.add(int(steps[0]))
            assert fps == 24.0 / abs(steps[0])
    assert seen == {1, -1, 2, -2}


def test_the_shortest_clip_still_gives_crops() -> None:
    batch = sampler([numbered(5, 32, 48)])(0)
    assert {tuple(sorted(clip[:, 0, 0, 0].tolist())) for clip in batch.frames} == {(0, 1, 2, 3, 4)}


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
