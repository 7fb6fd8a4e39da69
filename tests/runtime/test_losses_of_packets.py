"""What a stream decoder makes of a stream with holes: as many frames as were sent, concealed by name, exact again from
the next key clip on."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import PacketError
from onedva_runtime.limits import Limits
from onedva_runtime.packet import Packet
from onedva_runtime.stream_report import StreamReport

VIDEO = np.random.default_rng(0).integers(0, 256, (90, 20, 33, 3), np.uint8)
TICKS = np.cumsum(np.random.default_rng(1).integers(5, 90, 90))


@pytest.fixture(scope="module")
def packets(codec: VideoCodec) -> list[Packet]:
    """Keys at 0, 33 and 66."""
    return codec.encode(VIDEO, tokens=16, keyframe_interval=2, timestamps=TICKS, time_base=Fraction(1, 1000))


@pytest.fixture(scope="module")
def whole(codec: VideoCodec, packets: list[Packet]) -> np.ndarray:
    return codec.decode(packets)


def decoded(codec: VideoCodec, packets: list[Packet], **options: Any) -> tuple[np.ndarray, list[StreamReport]]:
    reports: list[StreamReport] = []
    decoder = codec.open_decoder(on_report=reports.append, **options)
    outputs = [frames for packet in packets for frames in decoder.push(packet)] + decoder.flush()
    assert [len(frames) for frames in outputs] == [report.frames for report in reports]
    return np.concatenate(outputs), reports


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(1, 5)), st.sampled_from(["hold", "continue"]))
def test_as_many_frames_as_were_sent_and_all_but_the_hurt_ones_are_exact(
    codec: VideoCodec, packets: list[Packet], whole: np.ndarray, gone: set[int], conceal: str
) -> None:
    sent = [packet for index, packet in enumerate(packets) if index not in gone]
    frames, reports = decoded(codec, sent, conceal=conceal)
    assert len(frames) == sent[-1].first_frame + sent[-1].frames
    broken = False
    for index, packet in enumerate(packets[: packets.index(sent[-1]) + 1]):
        broken = index in gone or (broken and not packet.is_key)
        part = slice(packet.first_frame, packet.first_frame + packet.frames)
        if not broken:
            np.testing.assert_array_equal(frames[part], whole[part])
        elif index in gone or conceal == "hold":
            assert (frames[part] == frames[packet.first_frame - 1]).all()
    hurt = sum(report.frames for report in reports if report.concealed)
    assert (hurt > 0) == any(index in gone for index in range(packets.index(sent[-1])))
    assert [report.first_frame for report in reports] == list(np.cumsum([0, *(r.frames for r in reports[:-1])]))


def test_what_was_lost_is_named(codec: VideoCodec, packets: list[Packet]) -> None:
    decoder = codec.open_decoder()
    assert decoder.needs_key
    decoder.push(packets[0])
    assert not decoder.needs_key
    _, reports = decoded(codec, [packets[0], packets[2], packets[4], packets[5]], conceal="hold")
    told = [(report.first_frame, report.frames, report.concealed) for report in reports]
    assert told == [(0, 17, ""), (17, 16, "lost"), (33, 17, ""), (50, 16, "lost"), (66, 17, ""), (83, 7, "")]
    _, reports = decoded(codec, [packets[0], packets[3], packets[4]], conceal="hold")
    told = [(report.first_frame, report.frames, report.concealed) for report in reports]
    assert told == [(0, 17, ""), (17, 33, "lost"), (50, 16, "after a loss"), (66, 17, "")]
    frames, reports = decoded(codec, [packets[0], packets[3]], conceal="continue")
    assert [(report.num_steps, report.concealed) for report in reports[1:]] == [(0, "lost"), (1, "after a loss")]
    np.testing.assert_array_equal(frames[50:], codec.decode_clip(packets[3], context_frame=frames[16]))


def test_times_of_lost_frames_lie_between_their_neighbours(codec: VideoCodec, packets: list[Packet]) -> None:
    _, reports = decoded(codec, [packets[0], packets[2], *packets[4:]])
    times = np.concatenate([report.timestamps for report in reports if report.timestamps is not None])
    assert len(times) == 90 and (np.diff(times) > 0).all()
    kept = np.r_[0:17, 33:50, 66:90]
    np.testing.assert_array_equal(times[kept], TICKS[kept])


def test_a_sender_can_be_asked_for_a_key(codec: VideoCodec) -> None:
    encoder, decoder = codec.open_encoder(keyframe_interval=0, tokens=0), codec.open_decoder()
    shown = 0
    for start in range(0, 90, 6):
        for packet in encoder.push(VIDEO[start : start + 6]):
            if packet.first_frame == 17:
                shown += sum(map(len, decoder.lost(packet.frames)))
                assert decoder.needs_key
                encoder.request_key()
                continue
            shown += sum(map(len, decoder.push(packet)))
    assert shown == packet.first_frame + packet.frames and not decoder.needs_key


def test_a_named_loss_is_concealed_at_once(codec: VideoCodec, packets: list[Packet], whole: np.ndarray) -> None:
    decoder = codec.open_decoder(conceal="raise")
    partly: list[dict[str, Any]] = [{}, {"first_frame": 0}, {"frame_size": (20, 33)}]
    for options in partly:
        with pytest.raises(PacketError, match=r"nothing was shown yet: .* or give first_frame and frame_size"):
            decoder.lost(1, **options)
    decoder.push(packets[0])
    (held,) = decoder.lost(16)
    assert held.shape == (16, 20, 33, 3) and (held == whole[16]).all()
    np.testing.assert_array_equal(decoder.push(packets[2])[0], whole[33:50])
    with pytest.raises(ValueError, match="frames must be in 1"):
        decoder.lost(0)


def test_a_strict_decoder_raises_and_stays_as_it_was(
    codec: VideoCodec, packets: list[Packet], whole: np.ndarray
) -> None:
    decoder = codec.open_decoder(conceal="raise")
    with pytest.raises(PacketError, match="the key clip before the packet from frame 17 on did not come"):
        decoder.push(packets[1])
    decoder.push(packets[0])
    with pytest.raises(PacketError, match="16 frames before the packet from frame 33 on did not come"):
        decoder.push(packets[2])
    np.testing.assert_array_equal(decoder.push(packets[1])[0], whole[17:33])


def test_a_reader_that_joins_in_the_middle_sees_grey_until_the_next_key(
    codec: VideoCodec, packets: list[Packet], whole: np.ndarray
) -> None:
    frames, reports = decoded(codec, packets[1:])
    assert (frames[:16] == 128).all() and reports[0].concealed == "after a loss" and reports[0].first_frame == 17
    np.testing.assert_array_equal(frames[16:], whole[33:])
    frames, _ = decoded(codec, packets[2:])
    np.testing.assert_array_equal(frames, whole[33:])


def test_packets_that_come_twice_late_or_of_another_size_are_refused(
    codec: VideoCodec, packets: list[Packet], whole: np.ndarray
) -> None:
    decoder = codec.open_decoder()
    decoder.push(packets[0])
    for packet in (packets[0], replace(packets[1], first_frame=16)):
        with pytest.raises(PacketError, match="is late or comes twice: next is frame 17"):
            decoder.push(packet)
    with pytest.raises(PacketError, match="one size; got a packet of 30x20 after 33x20"):
        decoder.push(replace(packets[1].thin(0), width=30, structural=packets[1].structural[:, :, :2]))
    np.testing.assert_array_equal(decoder.push(packets[1])[0], whole[17:33])


def test_a_gap_is_bounded_by_the_readers_limits(fake_bundle: Any, packets: list[Packet]) -> None:
    codec = VideoCodec.from_pretrained(fake_bundle, limits=Limits(max_frames=30))
    decoder = codec.open_decoder()
    decoder.push(packets[0])
    with pytest.raises(PacketError, match=r"49 frames are missing before the packet, over the limit of 30"):
        decoder.push(packets[4])
    with pytest.raises(ValueError, match=r"frames must be in 1\.\.30"):
        decoder.lost(31)


def test_held_frames_take_no_memory_of_their_own(codec: VideoCodec, packets: list[Packet]) -> None:
    decoder = codec.open_decoder()
    decoder.push(packets[0])
    (held,) = decoder.lost(900_000)
    assert held.shape[0] == 900_000 and held.strides[0] == 0 and not held.flags.writeable


def test_the_start_of_a_stream_can_be_lost(codec: VideoCodec, packets: list[Packet], whole: np.ndarray) -> None:
    reports: list[StreamReport] = []
    decoder = codec.open_decoder(on_report=reports.append)
    (grey,) = decoder.lost(33, timestamps=TICKS[:33], first_frame=0, frame_size=(20, 33))
    assert grey.shape == (33, 20, 33, 3) and (grey == 128).all() and decoder.needs_key
    np.testing.assert_array_equal(decoder.push(packets[2])[0], whole[33:50])
    assert [(report.first_frame, report.frames, report.concealed) for report in reports] == [
        (0, 33, "lost"),
        (33, 17, ""),
    ]
    assert reports[0].timestamps is not None and (reports[0].timestamps == TICKS[:33]).all()
    with pytest.raises(ValueError, match="one per lost frame"):
        decoder.lost(3, timestamps=TICKS[:2])


def test_a_stream_that_was_left_takes_nothing_more(codec: VideoCodec) -> None:
    frames = VIDEO[:5]
    with codec.open_encoder() as encoder:
        packets = [*encoder.push(frames), *encoder.flush()]
    with codec.open_decoder() as decoder:
        decoder.push(packets[0])
    for call in (
        lambda: encoder.push(frames),
        encoder.flush,
        lambda: decoder.push(packets[0]),
        decoder.flush,
        lambda: decoder.lost(1),
    ):
        with pytest.raises(ValueError, match="left by its with block: push and flush inside it, or open another"):
            call()
