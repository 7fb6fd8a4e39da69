"""Streams whose backend fails for a while: no frame is lost, and what was ready comes with the next call."""

from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest

from onedva_runtime.backends import Backend
from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import BackendError, PacketError
from onedva_runtime.packet import Packet
from onedva_runtime.stream_report import StreamReport
from onedva_runtime.tiles import check_tiles

VIDEO = np.random.default_rng(0).integers(0, 256, (90, 20, 33, 3), np.uint8)


class Failing:
    """A backend that fails in calls of these numbers."""

    def __init__(self, codec: VideoCodec, *calls: int) -> None:
        self._backend, self._calls, self._count = codec._engine.backend, calls, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _called(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self._count += 1
        if self._count - 1 in self._calls:
            raise BackendError("no memory")
        return getattr(self._backend, name)(*arguments)

    def encode(self, *arguments: Any) -> Any:
        return self._called("encode", arguments)

    def condition(self, *arguments: Any) -> Any:
        return self._called("condition", arguments)

    def one_step(self, *arguments: Any) -> Any:
        return self._called("one_step", arguments)


def failing(codec: VideoCodec, *calls: int) -> VideoCodec:
    return VideoCodec(codec._bundle, cast(Backend, Failing(codec, *calls)))


@pytest.fixture(scope="module")
def packets(codec: VideoCodec) -> list[Packet]:
    """Keys at 0, 33 and 66."""
    return codec.encode(VIDEO, tokens=0, keyframe_interval=2, cuts=False)


def test_an_encoder_tries_again_and_loses_nothing(codec: VideoCodec, packets: list[Packet]) -> None:
    """The third clip of a large push fails, and so does trying again: frames that were pushed are not pushed again."""
    encoder = failing(codec, 2, 3).open_encoder(tokens=0, keyframe_interval=2, cuts=False)
    for part in (VIDEO[:60], VIDEO[60:80]):
        with pytest.raises(BackendError, match="no memory"):
            encoder.push(part)
    got = [*encoder.push(VIDEO[80:]), *encoder.flush()]
    assert [packet.first_frame for packet in got] == [packet.first_frame for packet in packets]
    for a, b in zip(got, packets, strict=True):
        np.testing.assert_array_equal(a.structural, b.structural)


def test_an_encoder_whose_errors_are_ignored_does_not_grow(codec: VideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onedva_runtime.stream_encoder.MOST_WAITING", 2)
    encoder = failing(codec, *range(100)).open_encoder(tokens=0, keyframe_interval=1, cuts=False)
    for _ in range(3):
        with pytest.raises(BackendError, match="no memory"):
            encoder.push(VIDEO[:17])
    for _ in range(2):
        with pytest.raises(BackendError, match="3 clips wait, and these frames were not taken"):
            encoder.push(VIDEO[:17])
    with pytest.raises(BackendError, match="no memory"):
        encoder.flush()
    assert encoder._clipper.next_frame == 3 * 17


def test_what_is_ready_and_never_taken_is_warned_about(codec: VideoCodec) -> None:
    with pytest.warns(RuntimeWarning, match="60 pushed frames were not encoded"):  # noqa: SIM117
        with failing(codec, 1).open_encoder(tokens=0, cuts=False) as encoder:
            with pytest.raises(BackendError):
                encoder.push(VIDEO[:60])


def test_frames_that_are_refused_leave_no_trace(codec: VideoCodec) -> None:
    encoder = codec.open_encoder(tokens=0, time_base=Fraction(1, 25))
    encoder.push(VIDEO[:3], np.arange(3))
    with pytest.raises(ValueError, match="one size"):
        encoder.push(VIDEO[3:6, :16], np.arange(3, 6))
    encoder.push(VIDEO[3:6], np.arange(3, 6))  # the same times again
    (packet,) = encoder.flush()
    assert packet.timestamps is not None and packet.timestamps.tolist() == list(range(6))


@pytest.mark.parametrize("again", [True, False])
def test_a_decoder_keeps_what_was_ready_and_counts_what_failed(
    codec: VideoCodec, packets: list[Packet], again: bool
) -> None:
    """A packet after a gap fails: the frames that conceal the gap are not lost with it."""
    whole = codec.decode(packets)
    reports: list[StreamReport] = []
    decoder = failing(codec, 1).open_decoder(on_report=reports.append)
    outputs = decoder.push(packets[0])
    with pytest.raises(BackendError, match="no memory"):
        decoder.push(packets[2])  # packets[1] is lost
    for packet in packets[2 if again else 3 :]:
        outputs += decoder.push(packet)
    frames = np.concatenate(outputs)
    assert len(frames) == 90 == sum(report.frames for report in reports)
    assert (frames[17:33] == whole[16]).all()
    np.testing.assert_array_equal(frames[66:], whole[66:])
    if again:
        np.testing.assert_array_equal(frames[33:], whole[33:])
    else:
        assert (frames[33:66] == whole[16]).all()


def test_a_first_packet_that_fails_can_be_concealed(codec: VideoCodec, packets: list[Packet]) -> None:
    decoder = failing(codec, 0).open_decoder()
    with pytest.raises(BackendError, match="no memory"):
        decoder.push(packets[0])
    (grey,) = decoder.lost(17)
    assert grey.shape == (17, 20, 33, 3) and (grey == 128).all()


def test_two_sizes_are_refused_before_anything_was_shown(codec: VideoCodec) -> None:
    first = codec.encode_clip(VIDEO[:5, :16, :16], tokens=0)
    tile = replace(first, frame_size=(32, 16))
    decoder = codec.open_decoder()
    assert decoder.push(tile) == []
    with pytest.raises(PacketError, match="one size; got a packet of 16x48 after 16x32"):
        decoder.push(replace(tile, frame_size=(48, 16), first_frame=5))


def test_many_tiles_are_not_gone_through_each_time(codec: VideoCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def counted(packets: Any) -> bool:
        seen.append(len(packets))
        return check_tiles(packets)

    monkeypatch.setattr("onedva_runtime.stream_decoder.check_tiles", counted)
    tile = codec.encode_clip(VIDEO[:1, :16, :16], tokens=0)
    decoder = codec.open_decoder()
    for left in range(0, 16 * 300, 16):
        decoder.push(replace(tile, corner=(0, left), frame_size=(32, 16 * 301)))
    assert sum(seen) <= 2 * 300
    with pytest.raises(PacketError, match="several heights"):
        decoder.push(replace(tile, corner=(0, 16 * 300), frame_size=(32, 16 * 301), height=15))


def test_one_step_in_one_graph_does_not_make_steps_look_free(
    codec: VideoCodec, packets: list[Packet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of 100 ms do not fit 200 ms; once one is taken it stays so, though in one graph it cannot be timed."""
    backend, now = codec._engine.backend, [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Timed(Failing):
        has_one_step, has_few_steps = True, False

        def velocity(self, *arguments: Any) -> Any:
            now[0] += 0.1
            return backend.velocity(*arguments)

        def condition(self, *arguments: Any) -> Any:
            now[0] += 0.05
            return backend.condition(*arguments)

        def one_step(self, structural: np.ndarray, *arguments: Any) -> np.ndarray:
            now[0] += 0.15
            batch, groups, height, width, _ = structural.shape
            return np.zeros((batch, 4 * groups - 3, 16 * height, 16 * width, 3), np.uint8)

    reports: list[StreamReport] = []
    timed = VideoCodec(codec._bundle, cast(Backend, Timed(codec)))
    for _ in range(2):
        decoder = timed.open_decoder(num_steps=2, deadline_ms=200, on_report=reports.append)
        for packet in packets:
            decoder.push(packet)
        assert [report.num_steps for report in reports] == [2, 1, 1, 1, 1, 1]
        assert [report.late for report in reports] == [True] + [False] * 5
        reports.clear()
