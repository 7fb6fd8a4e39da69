"""Frames to clips: kinds and lengths follow interval, cuts and requests, whatever the batches; and a cut detector that
finds hard cuts and leaves all else alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime.clipper import Clip, Clipper
from onedva_runtime.clips import make_clip
from onedva_runtime.cuts import CutDetector
from onedva_runtime.video_io import open_reader

NOISE = np.random.default_rng(0).integers(0, 256, (60, 4, 6, 3), np.uint8)


def kinds(clips: list[Clip]) -> list[tuple[int, int, bool]]:
    return [(clip.first_frame, len(clip.frames), clip.is_key) for clip in clips]


@pytest.mark.parametrize(
    ("clip_frames", "interval", "wanted"),
    [
        (17, 1, [(0, 17, True), (17, 17, True), (34, 17, True), (51, 9, True)]),
        (17, 2, [(0, 17, True), (17, 16, False), (33, 17, True), (50, 10, False)]),
        (17, 0, [(0, 17, True), (17, 16, False), (33, 16, False), (49, 11, False)]),
        (5, 0, [(0, 5, True), *((5 + 4 * i, min(4, 55 - 4 * i), False) for i in range(14))]),
        (1, 0, [(i, 1, True) for i in range(60)]),
    ],
)
def test_kinds_and_lengths(clip_frames: int, interval: int, wanted: list[tuple[int, int, bool]]) -> None:
    clipper = Clipper(clip_frames=clip_frames, keyframe_interval=interval, cuts=False)
    clips = clipper.push(NOISE) + clipper.flush()
    assert kinds(clips) == wanted
    np.testing.assert_array_equal(np.concatenate([clip.frames for clip in clips]), NOISE)
    for clip in clips:
        if not clip.is_key:
            np.testing.assert_array_equal(clip.coded_frames, NOISE[clip.first_frame - 1 :][: 1 + len(clip.frames)])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 25), min_size=1, max_size=12), st.sampled_from([5, 17]), st.integers(0, 3))
def test_the_batches_do_not_matter(sizes: list[int], clip_frames: int, interval: int) -> None:
    scenes = np.concatenate([NOISE[:9] // 8, 255 - NOISE[:20] // 8, NOISE[:11] // 8])  # cuts at 9 and 29
    scenes[:, :, :3] //= 2  # something to correlate
    frames = scenes[: min(len(scenes), sum(sizes))]
    whole = Clipper(clip_frames=clip_frames, keyframe_interval=interval, cuts=True)
    wanted = whole.push(frames, np.arange(len(frames)) * 3) + whole.flush()
    clipper = Clipper(clip_frames=clip_frames, keyframe_interval=interval, cuts=True)
    clips: list[Clip] = []
    for start, end in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        piece = frames[start:end].copy()
        if len(piece):
            clips += clipper.push(piece, np.arange(start, start + len(piece)) * 3)
            piece[:] = 7  # pushed arrays may be reused
    clips += clipper.flush()
    assert kinds(clips) == kinds(wanted)
    for got, want in zip(clips, wanted, strict=True):
        np.testing.assert_array_equal(got.coded_frames, want.coded_frames)
        np.testing.assert_array_equal(got.timestamps, np.arange(got.first_frame, got.first_frame + len(got.frames)) * 3)


def test_a_cut_ends_a_clip_early_and_begins_with_a_key() -> None:
    scenes = np.concatenate([make_clip(24, 48, 64, seed=seed)[:12] for seed in (1, 2, 5)])  # one scene of each
    clipper = Clipper(clip_frames=17, keyframe_interval=0, cuts=True)
    assert kinds(clipper.push(scenes) + clipper.flush()) == [(0, 12, True), (12, 12, True), (24, 12, True)]
    blind = Clipper(clip_frames=17, keyframe_interval=0, cuts=False)
    assert kinds(blind.push(scenes) + blind.flush()) == [(0, 17, True), (17, 16, False), (33, 3, False)]


def test_a_key_that_is_asked_for_begins_with_the_next_frame() -> None:
    clipper = Clipper(clip_frames=17, keyframe_interval=0, cuts=False)
    clips = clipper.push(NOISE[:20])
    clipper.request_key()
    assert kinds(clips + clipper.push(NOISE[20:]) + clipper.flush()) == [
        (0, 17, True), (17, 3, False), (20, 17, True), (37, 16, False), (53, 7, False),
    ]  # fmt: skip


def test_flushing_goes_on_with_a_continuation_clip() -> None:
    clipper = Clipper(clip_frames=17, keyframe_interval=8, cuts=False)
    clips = clipper.push(NOISE[:6]) + clipper.flush() + clipper.flush() + clipper.push(NOISE[6:9]) + clipper.flush()
    assert kinds(clips) == [(0, 6, True), (6, 3, False)]
    assert (clipper.held, clipper.next_frame) == (0, 9)


def cuts_of(frames: np.ndarray) -> list[int]:
    detector = CutDetector()
    return [index for index, frame in enumerate(frames) if detector.is_cut(frame)]


@pytest.mark.parametrize("size", [(48, 64), (1, 1), (17, 300), (270, 480)])
def test_hard_cuts_are_found_and_nothing_else(size: tuple[int, int]) -> None:
    if size == (1, 1):
        assert cuts_of(np.random.default_rng(0).integers(0, 256, (20, 1, 1, 3), np.uint8)) == []
        return
    scenes = np.concatenate([make_clip(20, *size, seed=seed)[:10] for seed in range(4)])
    assert cuts_of(scenes) == [10, 20, 30]


def test_light_motion_noise_and_fades_are_no_cuts() -> None:
    scene = make_clip(80, 96, 128, seed=3)[:40].astype(np.int16)
    flash = scene.copy()
    flash[20:22] += 60  # a lamp that goes on: the picture stays
    dim = scene[0][None] * np.linspace(1, 0, 40)[:, None, None, None]
    noisy = scene + np.random.default_rng(0).normal(0, 25, scene.shape).astype(np.int16)
    fade = make_clip(80, 96, 128, seed=9)[:40]
    share = np.clip((np.arange(40) - 10) / 16, 0, 1)[:, None, None, None]
    for frames in (scene, flash, dim, noisy, scene * (1 - share) + fade * share):
        assert cuts_of(frames.clip(0, 255).astype(np.uint8)) == []


def test_shots_of_one_frame_do_not_make_every_frame_a_key() -> None:
    strobe = np.concatenate([make_clip(2, 48, 64, seed=seed)[:1] for seed in range(30)])
    assert cuts_of(strobe) == []


def test_real_clips_have_few_alarms_and_their_splices_are_found(dev_clips: list[Path]) -> None:
    """Two clips spliced at a frame: the splice is found; beside it no more than one frame in 400 is called a cut."""
    looked, alarms, missed = 0, 0, 0
    heads: list[np.ndarray] = []
    for path in dev_clips:
        with open_reader(path, batch=48, threads=1) as reader:
            frames, _ = next(iter(reader))
        found = cuts_of(frames)
        looked, alarms = looked + len(frames), alarms + len(found)
        heads.append(frames[:12, :128, :128])
    for before, after in itertools.pairwise(heads):
        if before.shape == after.shape:
            missed += len(before) not in cuts_of(np.concatenate([before, after]))
    assert alarms <= looked / 400
    assert missed <= len(heads) // 10
