"""A moving camera: its path is found, the scene is held still and moves again, and clips come back better."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scenery import filmed, pan, scenery

from onedva_runtime import VideoCodec
from onedva_runtime.camera import find_camera
from onedva_runtime.container import load_packets, save_packets
from onedva_runtime.errors import PacketError
from onedva_runtime.metrics import psnr
from onedva_runtime.warp import PARTS, SWING, Camera, follow, hold_still

Frames = NDArray[np.uint8]


def path_of(frames: Frames) -> NDArray[np.int16]:
    camera = find_camera(frames)
    assert camera is not None
    return camera.path


@pytest.mark.parametrize(("down", "right"), [(0.0, 3.0), (1.5, -2.5), (-4.0, 0.6)])
def test_the_path_of_a_pan_is_found(down: float, right: float) -> None:
    path = path_of(pan(down=down, right=right))
    assert path.dtype == np.int16 and path.shape == (17, 6)
    expected = np.rint(np.arange(17)[:, None] * (down, right))
    assert np.abs(path[:, :2] - PARTS * (expected - expected[8])).max() <= PARTS // 4
    assert np.abs(path[:, 2:]).max() <= SWING // 500
    assert not path[8].any()


@pytest.mark.parametrize("size", [(128, 160), (144, 96), (300, 400)])
@pytest.mark.parametrize("bend", [(4, 0, 0, 4), (0, 3, -3, 0), (0, 0, 3, 0)], ids=["zoom", "turn", "shear"])
def test_zoom_turn_and_shear_are_found(size: tuple[int, int], bend: tuple[int, ...]) -> None:
    way = np.arange(17) - 8
    wanted = np.stack([0 * way, 6 * way, *(SWING // 1000 * number * way for number in bend)], axis=1).astype(np.int16)
    path = path_of(filmed(wanted, *size))
    edge = max(size) / 2  # pixels from the middle, where they show most
    np.testing.assert_allclose(path[:, :2], wanted[:, :2], atol=PARTS / 3)
    np.testing.assert_allclose(path[:, 2:] * edge / SWING, wanted[:, 2:] * edge / SWING, atol=0.4)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 272), (272, 128), (240, 256), (64, 1040)])
def test_sizes_of_frames_and_tiles(height: int, width: int) -> None:
    path = path_of(pan(height=height, width=width, down=1, right=1))
    assert np.abs(path[:, :2] - PARTS * (np.arange(17)[:, None] - 8)).max() <= PARTS // 3


def test_a_camera_that_trembles_by_half_a_pixel_is_followed() -> None:
    way = np.random.default_rng(0).integers(-PARTS // 2, PARTS // 2, (17, 6)).astype(np.int16)
    way[:, 2:] = way[8] = 0
    path = path_of(filmed(way))
    assert np.abs(path[:, :2] - way[:, :2]).max() <= 2


def test_where_no_camera_moves_nothing_is_done() -> None:
    random = np.random.default_rng(0)
    still = np.repeat(scenery(128, 128)[None], 17, axis=0)
    assert find_camera(still) is None
    walker = still.copy()
    figure = scenery(48, 32, seed=1)
    for number, frame in enumerate(walker):
        frame[40:88, 4 * number : 4 * number + 32] = figure
    assert find_camera(walker) is None
    grain = np.clip(still + random.normal(0, 12, still.shape), 0, 255).astype(np.uint8)
    assert find_camera(grain) is None
    assert find_camera(random.integers(0, 256, (17, 128, 128, 3), np.uint8)) is None
    assert find_camera(np.full((17, 128, 128, 3), 90, np.uint8)) is None


def test_black_bars_stay_where_they_are_and_what_is_between_them_is_followed() -> None:
    scene = pan(down=0.5, right=2)
    frames = np.full((17, 180, 200, 3), 16, np.uint8)
    frames[:, 24:152, 16:176] = scene
    frames[:, 24, 16:176] = 60  # half of a bar, half of the picture
    camera = find_camera(frames)
    assert camera is not None and camera.bars == (25, 29, 17, 25)
    way = np.rint(np.arange(17)[:, None] * (0.5, 2))
    np.testing.assert_allclose(camera.path[:, :2], PARTS * (way - way[8]), atol=PARTS / 3)
    held = hold_still(frames, camera)
    between = np.zeros(frames.shape[1:3], bool)
    between[25:151, 17:175] = True
    np.testing.assert_array_equal(held[:, ~between], frames[:, ~between])
    assert psnr(held[8:9].repeat(17, axis=0), held) > psnr(frames[8:9].repeat(17, axis=0), frames) + 8
    assert psnr(frames, follow(held, camera)) > 38
    assert find_camera(np.full((17, 128, 128, 3), 10, np.uint8)) is None


def test_a_title_over_a_trembling_scene_stays_where_it_is() -> None:
    way = np.random.default_rng(0).integers(-PARTS, PARTS, (17, 6)).astype(np.int16)
    way[:, 2:] = way[8] = 0
    frames = filmed(way)
    assert find_camera(frames) is not None
    title = np.random.default_rng(1).random((16, 24)) < 0.5  # letters of 4 by 4 pixels
    frames[:, 40:104, 32:128][:, title.repeat(4, axis=0).repeat(4, axis=1)] = 255
    assert find_camera(frames) is None


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
    assert find_camera(frames[:2]) is None and find_camera(frames[:, :48]) is None
    assert find_camera(pan(down=0, right=11)) is None  # 88 pixels each way, of 160


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
        assert packet.camera == other.camera
    save_packets(tmp_path / "pan.odva", packets, quantiser=tiny.quantiser())
    loaded = load_packets(tmp_path / "pan.odva").packets
    for packet, other in zip(packets, loaded, strict=True):
        assert packet.camera == other.camera
    assert psnr(decoded, tiny.decode(loaded)) > 35


def test_steps_follow_too(tiny: VideoCodec) -> None:
    frames = pan()
    packet = tiny.encode_clip(frames, tokens=64)
    assert psnr(frames, tiny.decode_clip(packet, num_steps=4)) > psnr(frames, tiny.decode_clip(packet)) - 3
    with pytest.raises(PacketError, match=r"camera\.path must be"):
        tiny.decode_clip(replace(packet, camera=Camera(np.zeros((3, 6), np.int16))))
