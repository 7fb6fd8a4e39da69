"""Packets: what is inconsistent, of another model or over a limit is refused by name; cutting one gives a prefix."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onedva_runtime.codec import VideoCodec
from onedva_runtime.container import save_packets
from onedva_runtime.errors import PacketError, WrongModel
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet, padded_frames, padded_grid, padded_size
from onedva_runtime.prepare import Decibels, reaches
from onedva_runtime.warp import Camera

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def packet(codec: VideoCodec) -> Packet:
    return codec.encode_clip(FRAMES, tokens=16)


BAD_PACKETS: list[tuple[dict[str, Any], str]] = [
    ({"model": "0" * 64}, "made by the model 000000000000…, not by fake-v1"),
    ({"model": ""}, "made by the model unknown"),
    ({"is_key": False}, "first_frame of a continuation clip must be from 1"),
    ({"frames": 21, "structural": np.zeros((6, 2, 3, 3), np.float32)}, "21 frames; allowed: 17"),
    ({"frames": 0}, "at least 1"),
    ({"frames": 9}, "structural must be float32 of shape"),
    ({"height": 33}, "structural must be float32 of shape"),
    ({"latents": np.zeros((16, 3))}, "latents must be float32"),
    ({"latents": np.full((12, 3), np.nan, np.float32)}, "not finite"),
    ({"latents": np.zeros((12, 4), np.float32)}, r"channels \(3, 4\), fake-v1 has \(3, 3\)"),
    ({"anchors": np.zeros(12, np.int64)}, "unique"),
    ({"anchors": np.arange(1, 13)}, r"in \[0, 12\), got 1\.\.12"),
    ({"anchors": np.arange(12.0)}, "anchors must be int64"),
    ({"predicted_error": np.zeros(3, np.float32)}, "predicted_error must be float32"),
    ({"camera": Camera(np.zeros((5, 6), np.int64))}, r"camera\.path must be int16"),  # pyright: ignore[reportArgumentType]
    ({"camera": Camera(np.zeros((4, 6), np.int16))}, "camera.path must be int16 of shape"),
    ({"camera": Camera(np.full((5, 6), 769, np.int16))}, "camera must stay within the frame, 48x32 pixels"),
    ({"camera": Camera(np.array([[0, 0, 0, 0, 0, 4097]] * 5, np.int16))}, "larger or turned by a quarter at most"),
    ({"camera": Camera(np.zeros((5, 6), np.int16), (16, 16, 0, 0))}, "bars must leave some of the frame"),
    ({"camera": Camera(np.zeros((5, 6), np.int16), (0, 0, -1, 0))}, "bars must leave some of the frame"),
    ({"timestamps": np.zeros(5, np.int64)}, "time_base"),
    ({"fps": 0.0}, "fps must be positive"),
    ({"first_frame": 2**32 - 4}, "first_frame must be from 0"),
    ({"corner": (8, 0), "frame_size": (64, 64)}, "multiples of 16 from 0: got a tile of 48x32"),
    ({"corner": (0, -16), "frame_size": (64, 64)}, "multiples of 16 from 0"),
    ({"corner": (16, 0)}, "inside the frame"),
    (
        {"corner": (0, 32), "frame_size": (32, 64)},
        r"inside the frame: got a tile of 48x32 at \(top, left\) = \(0, 32\)",
    ),
    ({"frame_size": (31, 48)}, "inside the frame"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_PACKETS)
def test_packets_that_are_wrong_are_refused(
    codec: VideoCodec, packet: Packet, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PacketError, match=message):
        codec.decode_clip(replace(packet, **changes))


def test_another_model_is_an_error_of_its_own(codec: VideoCodec, packet: Packet) -> None:
    with pytest.raises(WrongModel, match=r"made by the model abcabcabcabc…, not by fake-v1"):
        codec.decode_clip(replace(packet, model="abc" * 20))


def test_the_reader_sets_the_limits(fake_bundle: Path, packet: Packet) -> None:
    codec = VideoCodec.from_pretrained(fake_bundle, limits=Limits(max_latents=8))
    with pytest.raises(PacketError, match="12 latents; allowed: 8"):
        codec.decode_clip(packet)
    assert codec.decode_clip(packet.thin(8)).shape == FRAMES.shape
    small = VideoCodec.from_pretrained(fake_bundle, limits=Limits(max_pixels=1535))
    with pytest.raises(PacketError, match="1536 pixels; allowed: 1535"):
        small.decode_clip(packet)


def test_a_whole_packet_passes(packet: Packet) -> None:
    timed = replace(packet, timestamps=np.arange(5), time_base=Fraction(1, 24), first_frame=2**32 - 5)
    assert timed.validate() is timed
    assert (packet.tokens, packet.grid, packet.padded_frames) == (12, (2, 2, 3), 5)


def test_thinning_keeps_a_prefix_of_everything_that_has_one(packet: Packet) -> None:
    thin = packet.thin(5)
    assert len(thin.latents) == len(thin.anchors) == thin.tokens == 5
    assert thin.predicted_error is not None and len(thin.predicted_error) == 5
    np.testing.assert_array_equal(thin.anchors, packet.anchors[:5])
    assert thin.structural is packet.structural
    assert replace(packet, predicted_error=None).thin(5).predicted_error is None
    with pytest.raises(ValueError, match="at least 0, got -1"):
        packet.thin(-1)


def test_a_continuation_clip_counts_new_frames_only() -> None:
    """Its context frame has a group of the grid, and nothing else."""
    packet = Packet(
        structural=np.concatenate([np.zeros((1, 2, 3, 4), np.float32), np.ones((1, 2, 3, 4), np.float32)]),
        latents=np.ones((2, 5), np.float32),
        anchors=np.array([6, 11]),
        is_key=False,
        frames=4,
        height=30,
        width=48,
        first_frame=1,
        timestamps=np.arange(4),
        time_base=Fraction(1, 24),
    )
    assert packet.validate() is packet
    assert (packet.padded_frames, packet.grid) == (5, (2, 2, 3))
    assert replace(packet, frames=5).padded_frames == 9
    bad: list[tuple[dict[str, Any], str]] = [
        ({"anchors": np.array([5, 11])}, r"in \[6, 12\), got 5\.\.11"),
        ({"structural": np.ones((2, 2, 3, 4), np.float32)}, "zeros in group 0"),
        ({"first_frame": 0}, "first_frame of a continuation clip must be from 1"),
        ({"timestamps": np.arange(5)}, r"timestamps must be int64 of shape \(4\)"),
    ]
    for changes, message in bad:
        with pytest.raises(PacketError, match=message):
            replace(packet, **changes).validate()


def test_a_tile_knows_the_frame_that_it_is_part_of(packet: Packet) -> None:
    assert packet.whole_size == (32, 48)
    tile = replace(packet, corner=(16, 32), frame_size=(48, 80)).validate()
    assert tile.whole_size == (48, 80) and tile.grid == packet.grid


def test_padding() -> None:
    assert [padded_frames(n) for n in (1, 2, 5, 6, 17)] == [1, 5, 5, 9, 17]
    assert [padded_frames(n, is_key=False) for n in (1, 4, 5, 16)] == [5, 5, 9, 17]
    assert padded_grid(16, 456, 256, is_key=False) == (5, 29, 16)
    assert [padded_size(n) for n in (1, 16, 17, 456)] == [16, 16, 32, 464]
    assert padded_grid(17, 456, 256) == (5, 29, 16)


def test_a_target_is_reached_by_what_the_last_latent_promises(packet: Packet) -> None:
    errors = np.log(np.array([4e-2, 4e-4], np.float32))  # 20 dB, then 40 dB
    assert reaches(replace(packet, predicted_error=errors), Decibels(39.9))
    assert not reaches(replace(packet, predicted_error=errors), Decibels(40.1))
    assert reaches(replace(packet, predicted_error=None), Decibels(90.0))


def test_what_is_no_packet_is_named(codec: VideoCodec) -> None:
    """Frames where packets belong, one packet where several do, a target where a number belongs."""
    frames = np.zeros((5, 20, 33, 3), np.uint8)
    packet = codec.encode_clip(frames, tokens=16)
    wrong: Any = frames
    with pytest.raises(TypeError, match=r"got one Packet: decode_clip decodes that"):
        codec.decode(packet)  # type: ignore[arg-type]
    for call in (
        lambda: codec.decode(wrong),
        lambda: codec.decode_clip(wrong),
        lambda: codec.open_decoder().push(wrong),
        lambda: save_packets(io.BytesIO(), wrong, quantiser=codec.quantiser()),
    ):
        with pytest.raises(
            TypeError, match=r"wanted a Packet, got an array of shape \((5, )?20, 33, 3\): encode makes"
        ):
            call()
    with pytest.raises(TypeError, match="wanted a Packet, got str: encode and open_packets give packets"):
        codec.decode(["a.odva"])  # type: ignore[list-item]
    for tokens in ("35dB", 3.0, None, True):
        with pytest.raises(TypeError, match=r"tokens must be a whole number, got .*; a target in dB"):
            packet.thin(tokens)  # type: ignore[arg-type]
    assert packet.thin(np.int64(3)).tokens == 3  # type: ignore[arg-type]


def test_a_packet_shows_what_it_is(codec: VideoCodec) -> None:
    packet = codec.encode_clip(np.zeros((5, 20, 33, 3), np.uint8), tokens=6, first_frame=7)
    assert repr(packet) == f"Packet(key clip, frames 7 to 11, 33x20, {packet.tokens} latents)"
    tile = replace(packet, corner=(16, 0), frame_size=(64, 33), is_key=False)
    expected = f"Packet(continuation clip, frames 7 to 11, 33x20 at (16, 0) of 33x64, {packet.tokens} latents)"
    assert repr(tile) == expected
