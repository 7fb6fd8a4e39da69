"""Batches: a function of (seed, step) whoever draws them, shared by ranks, of several lengths, with the clip before."""

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worker_tasks

from onedva.data import Batch, Clip, ClipSampler, batches, load_clips
from onedva_runtime.errors import OneDVAError, VideoError


def numbered(frames: int, height: int = 64, width: int = 96, *, fps: float = 24.0) -> Clip:
    """A clip whose every pixel of frame i is i."""
    values = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return Clip("numbered", np.broadcast_to(values, (frames, height, width, 3)), fps)


def sampler(clips: Any, *, size: tuple[int, int] = (32, 48), positions: int = 48, **options: Any) -> ClipSampler:
    options = {"frames": 5, "seed": 0, **options}
    return ClipSampler(clips, sizes=((*size, 1.0),), positions_per_batch=positions, **options)


def assert_same(one: Batch, two: Batch) -> None:
    np.testing.assert_array_equal(one.frames, two.frames)
    assert torch.equal(one.video, two.video) and torch.equal(one.fps, two.fps)
    assert (one.before is None) == (two.before is None)
    if one.before is not None and two.before is not None:
        np.testing.assert_array_equal(one.before, two.before)


@pytest.fixture
def scenes(make_frames: Callable[..., np.ndarray]) -> list[Clip]:
    return [Clip(str(i), frames, 24.0 + i) for i, frames in enumerate(make_frames(3, 12, 64, 80))]


def test_a_batch_is_a_function_of_seed_and_step(scenes: list[Clip]) -> None:
    one, two = sampler(scenes), sampler(scenes)
    for step in (0, 9):
        two(step)  # what was drawn before does not matter
    for step in (0, 5):
        assert_same(one(step), two(step))
    assert not np.array_equal(one(0).frames, one(1).frames)
    assert not np.array_equal(one(0).frames, sampler(scenes, seed=1)(0).frames)


def test_a_batch_has_the_asked_shape_and_scale(make_frames: Callable[..., np.ndarray]) -> None:
    clips = [Clip("0", make_frames(1, 12, 64, 80)[0], 24.0)]
    batch = sampler(clips)(0)
    assert batch.frames.shape == (4, 5, 32, 48, 3) and batch.frames.dtype == np.uint8  # 48 positions: 4 clips of 12
    assert batch.video.shape == (4, 3, 5, 32, 48) and batch.video.dtype == torch.float32
    torch.testing.assert_close(batch.video.permute(0, 2, 3, 4, 1), torch.from_numpy(batch.frames) / 127.5 - 1)
    assert len(sampler(clips, positions=1)(0).frames) == 1
    assert batch.before is None and batch.share == 1


def test_sizes_share_the_steps() -> None:
    sizes = ((16, 16, 0.75), (32, 48, 0.25))
    draw = ClipSampler([numbered(20)], frames=5, sizes=sizes, positions_per_batch=2, seed=0)
    shapes = [tuple(draw(step).video.shape[3:]) for step in range(200)]
    assert set(shapes) == {(16, 16), (32, 48)}
    assert shapes.count((16, 16)) / 200 == pytest.approx(0.75, abs=0.08)


def test_lengths_share_the_steps_and_keep_the_positions() -> None:
    draw = sampler([numbered(20), numbered(6)], frames=((17, 0.5), (9, 0.3), (1, 0.2)), positions=60)
    shapes = Counter(draw(step).frames.shape[:2] for step in range(200))
    assert set(shapes) == {(2, 17), (3, 9), (10, 1)}  # 5, 3, 1 groups of 6 positions
    assert shapes[2, 17] / 200 == pytest.approx(0.5, abs=0.1) and shapes[10, 1] / 200 == pytest.approx(0.2, abs=0.1)


def test_lengths_must_be_clips_that_exist() -> None:
    with pytest.raises(ValueError, match=r"1 \+ 4n frames, got 16"):
        sampler([numbered(20)], frames=16)
    with pytest.raises(ValueError, match="no video has the 33 frames of a clip; the longest has 20"):
        sampler([numbered(20)], frames=((17, 0.9), (33, 0.1)))


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


def test_a_frame_smaller_than_the_crop_keeps_its_shape() -> None:
    """A square clip under a wide crop: a column of pixels that is 4 wide is as much wider as a row is higher."""
    frames = np.zeros((5, 32, 32, 3), np.uint8)
    frames[:, 14:18, 14:18] = 255
    batch = sampler([Clip("square", frames, 24.0)], size=(64, 96), positions=96)(0)
    for clip in batch.frames:
        lit = clip[0, :, :, 0] > 127
        assert np.ptp(np.flatnonzero(lit.any(1))) == pytest.approx(np.ptp(np.flatnonzero(lit.any(0))), abs=2)


def test_the_clip_before_ends_where_the_clip_begins() -> None:
    draw, seen = sampler([numbered(30), numbered(8)], positions=480), set()
    for step in range(3):
        batch = draw(step, before=True)
        assert batch.before is not None and batch.before.shape == batch.frames.shape
        run = np.concatenate([batch.before, batch.frames[:, 1:]], axis=1)[:, :, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(batch.before[:, -1], batch.frames[:, 0])
        steps = np.diff(run, axis=1)
        assert (steps == steps[:, :1]).all()  # one movement across the edge, and never from the video of 8 frames
        seen |= set(steps[:, 0].tolist())
    assert seen == {1, -1, 2, -2}
    assert draw(0).before is None


def test_without_a_video_that_long_there_is_no_clip_before(caplog: pytest.LogCaptureFixture) -> None:
    draw = sampler([numbered(8)])
    with caplog.at_level(logging.WARNING, logger="onedva"), closing(batches(draw, before=lambda step: True)) as stream:
        for step, batch in enumerate(islice(stream, 3)):
            assert batch.before is None
            assert_same(batch, draw(step))
    assert [record.getMessage()[:23] for record in caplog.records] == ["no video is long enough"]


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_share_the_rows_of_a_step(scenes: list[Clip], world: int) -> None:
    options: dict[str, Any] = {"frames": ((5, 0.5), (1, 0.5)), "still_motion": 0.3}
    whole = sampler(scenes, **options)
    parts = [sampler(scenes, rank=rank, world=world, **options) for rank in range(world)]
    for step in range(4):
        together, shared = whole(step, before=step == 3), [part(step, before=step == 3) for part in parts]
        np.testing.assert_array_equal(together.frames, np.concatenate([batch.frames for batch in shared]))
        assert torch.equal(together.fps, torch.cat([batch.fps for batch in shared]))
        if together.before is not None:
            befores = [batch.before for batch in shared if batch.before is not None]
            np.testing.assert_array_equal(together.before, np.concatenate(befores))
        assert sum(batch.share for batch in shared) == pytest.approx(1)
        assert [batch.share for batch in shared] == [len(b.frames) / len(together.frames) for b in shared]
        assert max(len(b.frames) for b in shared) - min(len(b.frames) for b in shared) <= 1


def test_ranks_without_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match=r"fewer clips of 5×32×48 than there are ranks \(5\).*raise it to at least 60"):
        sampler([numbered(20)], rank=0, world=5)
    with pytest.raises(ValueError, match="rank must be from 0 to world - 1 = 1, got 2"):
        sampler([numbered(20)], rank=2, world=2)


def test_stills_move_as_a_camera_would() -> None:
    """A picture whose colours are its coordinates says where the camera looked."""
    ramp = np.zeros((5, 128, 128, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(128)[:, None], np.arange(128)[None]
    batch = sampler([Clip("ramp", ramp, 24.0)], frames=5, size=(32, 48), positions=1200, still_motion=1.0)(0)
    values = batch.frames.astype(float)
    speeds = np.diff(values[:, :, :, :, :2].mean(axis=(2, 3)), axis=1)  # (B, T - 1, 2): of the middle of the picture
    assert np.abs(speeds).max() < 4 * 2 + 1  # pixels of the source, of which the crop may take every second
    assert np.abs(speeds).mean() > 0.3  # it does move
    np.testing.assert_allclose(speeds, np.broadcast_to(speeds.mean(axis=1, keepdims=True), speeds.shape), atol=1)
    spread = values[..., 0].max(axis=(2, 3)) - values[..., 0].min(axis=(2, 3))
    assert (spread[:, -1] > spread[:, 0] + 1).any() and (spread[:, -1] < spread[:, 0] - 1).any()  # out and in
    assert (batch.fps == 24).all()
    mixed = sampler([numbered(30)], positions=1200, still_motion=0.5)(0).frames
    still = [len(np.unique(clip)) == 1 for clip in mixed]
    assert 0.3 < np.mean(still) < 0.7


class Failing(list[Clip]):
    """Clips of which one cannot be read."""

    bad = 1

    def __getitem__(self, index: Any) -> Any:
        if index == self.bad:
            raise VideoError(f"{index}.mp4: damaged")
        return super().__getitem__(index)


def test_a_video_that_went_bad_is_replaced_and_reported_once(
    scenes: list[Clip], caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = sampler(scenes, positions=120), sampler(Failing(scenes), positions=120)
    with caplog.at_level(logging.WARNING, logger="onedva"), closing(batches(bad)) as stream:
        for step, batch in enumerate(islice(stream, 4)):
            expected, again = good(step), bad(step)
            assert_same(batch, again)  # still a function of the step
            kept = ~torch.isin(expected.fps, torch.tensor([25.0, 12.5]))  # rows of the others are as they were
            np.testing.assert_array_equal(batch.frames[kept], expected.frames[kept])
            assert not torch.isin(batch.fps, torch.tensor([25.0, 12.5])).any() and len(batch.frames) == 10
            assert len(batch.skipped) >= int((~kept).sum())
    assert [record.getMessage() for record in caplog.records] == ["skipped 1.mp4: damaged (1 so far)"]


def test_nothing_readable_ends_with_what_was_wrong(scenes: list[Clip]) -> None:
    with pytest.raises(VideoError, match=r"50 videos in a row could not be read, the last: 1\.mp4: damaged"):
        sampler(Failing([numbered(4), scenes[0], numbered(4)]))(0)  # the others are too short


def test_workers_give_the_same_batches(
    tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    for seed in range(3):
        write_video(tmp_path / f"{seed}.mp4", frames=12, height=64, width=80, seed=seed)
    clips = load_clips(tmp_path, split="train", minimum_frames=5)
    draw = sampler(clips, frames=((5, 0.7), (1, 0.3)), size=(64, 64), still_motion=0.2)
    (tmp_path / "1.mp4").write_bytes(b"noise")  # and its frames are no longer cached: bad after it was loaded
    next((cache / "clips").glob("1-*.npy")).unlink()

    def wants_before(step: int) -> bool:
        return step % 3 == 0

    expected = [draw(step, before=wants_before(step)) for step in range(2, 8)]
    assert any(batch.skipped for batch in expected)
    for workers in (0, 1, 2):
        caplog.clear()
        with closing(batches(draw, start_step=2, workers=workers, before=wants_before)) as stream:
            for batch, wanted in zip(stream, expected, strict=False):
                assert_same(batch, wanted)
                assert batch.skipped == wanted.skipped
        assert sum("1.mp4: not a video" in record.getMessage() for record in caplog.records) == 1


def test_a_worker_that_dies_ends_training_with_a_reason() -> None:
    draw = sampler(worker_tasks.Lethal([numbered(8)]))
    with closing(batches(draw, workers=1)) as stream, pytest.raises(OneDVAError, match="one of 1 data workers died"):
        next(stream)
