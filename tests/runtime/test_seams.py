"""The joint between clips: what stands still is eased over, what moves is left alone; and on real clips through the
shipped model, edges between clips jump no more than 1.2 times as much as those between groups inside them."""

from pathlib import Path

import numpy as np
import pytest

from onedva_runtime.clips import make_clip
from onedva_runtime.codec import VideoCodec
from onedva_runtime.metrics import psnr
from onedva_runtime.seams import FRAMES, SHARE, soften
from onedva_runtime.video_io import read_video


def test_a_jump_of_what_stands_still_glides_to_the_new_clip() -> None:
    last = np.full((24, 33, 3), 100, np.uint8)
    frames = np.full((16, 24, 33, 3), 104, np.uint8)
    out = soften(last, frames)
    belief = 64 / (64 + 16)
    wanted = 104 - 4 * SHARE * belief * np.maximum(0, 1 - np.arange(16) / FRAMES)
    np.testing.assert_array_equal(out, np.broadcast_to(np.rint(wanted)[:, None, None, None], out.shape))
    assert (frames == 104).all()  # the argument is as it was


def test_what_moves_or_is_equal_is_left_alone() -> None:
    scene = make_clip(80, 64, 96, seed=1)
    np.testing.assert_array_equal(soften(scene[0], np.repeat(scene[:1], 4, axis=0)), np.repeat(scene[:1], 4, axis=0))
    another = make_clip(80, 64, 96, seed=2)[:16]
    assert psnr(soften(scene[0], another), another) > 42


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (17, 250)])
def test_any_size(size: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (3, *size, 3), np.uint8)
    assert soften(frames[0], frames[1:]).shape == (2, *size, 3)


def test_two_noisy_views_of_a_still_picture_come_closer_to_it_and_to_each_other() -> None:
    random = np.random.default_rng(3)
    picture = make_clip(2, 96, 128, seed=5)[0].astype(np.float32)
    last, new = (np.clip(picture + random.normal(0, 5, picture.shape), 0, 255).astype(np.uint8) for _ in range(2))
    frames = np.repeat(new[None], 16, axis=0)
    out = soften(last, frames)
    still = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    assert psnr(out[0], still) > psnr(frames[0], still) + 1
    assert np.abs(out[0].astype(int) - last).mean() < 0.7 * np.abs(new.astype(int) - last).mean()


def edges_of(codec: VideoCodec, source: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean |e(t+1) − e(t)|, e = decode − source, at continuation edges, and at group edges inside clips."""
    packets = codec.encode(source, tokens=256)
    error = codec.decode(packets).astype(np.int16) - source
    jumps = np.abs(np.diff(error, axis=0)).mean(axis=(1, 2, 3))  # jumps[t]: from frame t to t + 1
    clips: list[float] = []
    groups: list[float] = []
    for packet in packets:
        first = packet.first_frame
        if not packet.is_key:
            clips.append(float(jumps[first - 1]))
        start = first + (5 if packet.is_key else 4)  # the frame 0 of a key clip is a group of its own
        groups.extend(float(jumps[t - 1]) for t in range(start, first + packet.frames, 4))
    return clips, groups


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_edges_of_clips_on_real_video(shipped_bundle: Path, dev_clips: list[Path]) -> None:
    codec = VideoCodec.from_pretrained(shipped_bundle, threads=1)
    ratios: list[tuple[float, float]] = []
    for path in dev_clips:
        source = read_video(path, max_frames=161, threads=1).frames  # ten clips
        height, width = (min(256, side) for side in source.shape[1:3])
        clips, groups = edges_of(codec, np.ascontiguousarray(source[:, :height, :width]))
        ratios.append((float(np.mean(clips)), float(np.mean(groups))))
    clip_edge, group_edge = np.mean(ratios, axis=0)
    assert clip_edge <= 1.2 * group_edge
