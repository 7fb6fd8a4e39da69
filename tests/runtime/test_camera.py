"""A moving camera: its path is found, the scene is held still and moves again, and clips come back better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onedva_runtime import VideoCodec
from onedva_runtime.camera import PARTS, camera_path, follow, hold_still, reference_resample
from onedva_runtime.container import load_packets, save_packets
from onedva_runtime.errors import PacketError
from onedva_runtime.metrics import psnr
from onedva_runtime.noise import native

Frames = NDArray[np.uint8]


def scenery(height: int, width: int, *, seed: int = 0) -> Frames:
    """A picture (H, W, 3) with detail of several sizes."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for size in (4, 8, 32):
        coarse = np.kron(random.normal(size=(height // size + 3, width // size + 3, 3)), np.ones((size, size, 1)))
        for axis in (0, 1):  # from blocks to slopes
            coarse = np.mean([np.roll(coarse, shift, axis) for shift in range(size)], axis=0)
        picture += size**0.5 * coarse[size : size + height, size : size + width]
    return np.clip(128 + 16 * picture, 0, 255).astype(np.uint8)


def pan(frames: int = 17, height: int = 128, width: int = 160, *, down: float = 1.5, right: float = -2.5) -> Frames:
    """The scene moves by so many pixels a frame."""
    way = np.rint(np.arange(frames)[:, None] * (down, right)).astype(int)
    margin = np.abs(way).max()
    picture = scenery(height + 2 * margin, width + 2 * margin)
    return np.stack([picture[margin - y : margin - y + height, margin - x : margin - x + width] for y, x in way])


@pytest.mark.parametrize(("down", "right"), [(0.0, 3.0), (1.5, -2.5), (-4.0, 0.6)])
def test_the_way_of_a_pan_is_found(down: float, right: float) -> None:
    path = camera_path(pan(down=down, right=right))
    assert path is not None and path.dtype == np.int16 and path.shape == (17, 2)
    expected = np.rint(np.arange(17)[:, None] * (down, right))
    assert np.abs(path - PARTS * (expected - expected[8])).max() <= PARTS // 4
    assert not path[8].any()


def test_what_is_held_still_stands_still_and_follows_back_exactly() -> None:
    frames = pan(down=0, right=3)
    path = camera_path(frames)
    assert path is not None
    held = hold_still(frames, path)
    assert (held[:, :, 32:-32] == held[8, :, 32:-32]).all()
    back = follow(held, path)
    np.testing.assert_array_equal(back[:, :, 1:-1], frames[:, :, 1:-1])
    np.testing.assert_array_equal(back[:8, :, 0], frames[:8, :, 1])  # what joins the edges is made anew
    np.testing.assert_array_equal(back[8], frames[8])  # where nothing is turned, nothing is joined


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 272), (272, 128), (240, 256)])
def test_sizes_of_frames_and_tiles(height: int, width: int) -> None:
    path = camera_path(pan(height=height, width=width, down=1, right=1))
    assert path is not None and np.abs(path - PARTS * (np.arange(17)[:, None] - 8)).max() <= PARTS // 4


def test_fractions_of_a_pixel_come_back_closely() -> None:
    frames = pan(frames=9, height=48, width=40)
    random = np.random.default_rng(0)
    path = random.integers(-90, 90, (9, 2)).astype(np.int16)
    held = hold_still(frames, path)
    assert held.dtype == np.uint8 and psnr(frames, held) < 30
    assert psnr(frames[:, 1:-1, 1:-1], follow(held, path)[:, 1:-1, 1:-1]) > 45


def test_a_fraction_of_a_pixel_is_what_the_scene_moved_by() -> None:
    """A wave that moves by three eighths of a pixel a frame stands still."""
    x, t = np.arange(96)[None, None, :, None], np.arange(17)[:, None, None, None]
    wave = np.broadcast_to(128 + 90 * np.sin((x - 0.375 * (t - 8)) / 5), (17, 32, 96, 3))
    path = np.stack([np.zeros(17), 3 * (np.arange(17) - 8)], axis=1).astype(np.int16)
    held = hold_still(np.rint(wave).astype(np.uint8), path)
    inside = held[:, :, 16:-16].astype(int)
    assert np.abs(inside - inside[8]).max() <= 2


@pytest.mark.parametrize("shape", [(5, 64, 80, 3), (3, 1, 1, 1), (2, 5, 3, 3), (4, 33, 47, 1)])
def test_the_cpp_gives_the_bits_of_the_reference(shape: tuple[int, ...]) -> None:
    random, module = np.random.default_rng(0), native()
    assert module is not None, "the suite must test the C++ path"
    frames = random.integers(0, 256, shape, np.uint8)
    filters = random.normal(0, 0.3, (shape[0], 2, 17)).astype(np.float32)
    for threads in (1, 3):
        out = np.empty_like(frames)
        module.resample(out, frames, filters, threads)
        np.testing.assert_array_equal(out, reference_resample(frames, filters))


def test_where_no_camera_moves_nothing_is_done() -> None:
    random = np.random.default_rng(0)
    still = np.repeat(scenery(128, 128)[None], 17, axis=0)
    assert camera_path(still) is None
    walker = still.copy()
    figure = scenery(48, 32, seed=1)
    for number, frame in enumerate(walker):
        frame[40:88, 4 * number : 4 * number + 32] = figure
    assert camera_path(walker) is None
    grain = np.clip(still + random.normal(0, 12, still.shape), 0, 255).astype(np.uint8)
    assert camera_path(grain) is None
    assert camera_path(random.integers(0, 256, (17, 128, 128, 3), np.uint8)) is None
    assert camera_path(np.full((17, 128, 128, 3), 90, np.uint8)) is None


def test_black_bars_stay_where_they_are() -> None:
    frames = pan()
    assert camera_path(frames) is not None
    frames[:, :, :5] = 3
    assert camera_path(frames) is None


def test_a_switch_is_true_or_false(tiny: VideoCodec) -> None:
    frames = pan(frames=1)
    with pytest.raises(TypeError, match="follow_camera must be True or False, got 'no'"):
        tiny.encode_clip(frames, follow_camera="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="follow_camera"):
        tiny.encode(frames, follow_camera="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="follow_camera"):
        tiny.open_encoder(follow_camera=None)  # type: ignore[arg-type]


def test_too_little_to_look_at_and_too_fast_to_follow() -> None:
    frames = pan()
    assert camera_path(frames[:2]) is None and camera_path(frames[:, :48]) is None
    assert camera_path(pan(down=0, right=11)) is None  # 88 pixels each way, of 160


@pytest.fixture(scope="module")
def tiny() -> VideoCodec:
    return VideoCodec.from_pretrained("tiny", backend="onnxruntime", dtype="fp32")


def test_a_pan_comes_back_better(tiny: VideoCodec) -> None:
    frames = pan(height=120, width=150)  # padded in both directions
    followed, plain = (tiny.encode_clip(frames, tokens=32, follow_camera=choice) for choice in (True, False))
    assert followed.camera is not None and plain.camera is None
    better, worse = (psnr(frames, tiny.decode_clip(packet)) for packet in (followed, plain))
    assert better > worse + 2
    preview = psnr(frames, tiny.decode_clip(followed, num_steps=0))
    assert preview > worse + 2


def test_a_video_in_clips_that_go_on(tiny: VideoCodec, tmp_path: Path) -> None:
    frames = pan(frames=40, height=96, width=112, down=0, right=1.5)
    packets = tiny.encode(frames, tokens=16)
    assert [packet.is_key for packet in packets] == [True, False, False]
    assert all(packet.camera is not None for packet in packets[:2])
    plain = tiny.encode(frames, tokens=16, follow_camera=False)
    decoded = tiny.decode(packets)
    assert psnr(frames, decoded) > psnr(frames, tiny.decode(plain)) + 1
    with tiny.open_encoder(tokens=16) as encoder:
        streamed = [*encoder.push(frames), *encoder.flush()]
    for packet, other in zip(packets, streamed, strict=True):
        np.testing.assert_array_equal(packet.camera, other.camera)
    save_packets(tmp_path / "pan.odva", packets, quantiser=tiny.quantiser())
    loaded = load_packets(tmp_path / "pan.odva").packets
    for packet, other in zip(packets, loaded, strict=True):
        np.testing.assert_array_equal(packet.camera, other.camera)
    assert psnr(decoded, tiny.decode(loaded)) > 35


def test_steps_follow_too(tiny: VideoCodec) -> None:
    frames = pan()
    packet = tiny.encode_clip(frames, tokens=64)
    assert psnr(frames, tiny.decode_clip(packet, num_steps=4)) > psnr(frames, tiny.decode_clip(packet)) - 3
    with pytest.raises(PacketError, match="camera must be"):
        tiny.decode_clip(replace(packet, camera=np.zeros((3, 2), np.int16)))
