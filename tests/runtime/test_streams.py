"""Streams: any chunking of the frames gives the packets and pixels that the whole video gives, bit for bit; nothing is
dropped silently; latency and deadlines are told."""

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime.backends import Backend
from onedva_runtime.codec import VideoCodec
from onedva_runtime.packet import Packet
from onedva_runtime.stream_report import StreamReport

VIDEO = np.random.default_rng(0).integers(0, 256, (41, 20, 33, 3), np.uint8)


def same(got: list[Packet], wanted: list[Packet]) -> None:
    """Assert that packets are equal, bit for bit."""
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        for name in Packet.__dataclass_fields__:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 3))
def test_any_chunking_gives_the_same_packets(codec: VideoCodec, sizes: list[int], interval: int) -> None:
    ends = list(itertools.accumulate(sizes))
    frames = VIDEO[: ends[-1]]
    pieces = np.split(frames, ends[:-1]) if ends[-1] <= len(VIDEO) else [frames]
    with codec.open_encoder(fps=25, tokens=16, keyframe_interval=interval) as encoder:
        packets = [packet for piece in pieces if len(piece) for packet in encoder.push(piece)] + encoder.flush()
        assert encoder.flush() == []
    same(packets, codec.encode(frames, tokens=16, fps=25, keyframe_interval=interval))


def test_clips_may_wait_for_each_other(codec: VideoCodec) -> None:
    """Packets of a batch differ from those one by one in their last bits at most."""
    wanted = codec.encode(VIDEO, tokens=16, keyframe_interval=1)
    with codec.open_encoder(tokens=16, keyframe_interval=1, batch_size=2) as encoder:
        given = [encoder.push(VIDEO[start : start + 17]) for start in (0, 17, 34)]
        assert [len(packets) for packets in given] == [0, 2, 0]
        packets = given[1] + encoder.flush()
    for got, want in zip(packets, wanted, strict=True):
        assert (got.first_frame, got.frames) == (want.first_frame, want.frames)
        np.testing.assert_allclose(got.latents, want.latents, atol=1e-5)
    with pytest.warns(RuntimeWarning, match="20 pushed frames were not encoded"):  # noqa: SIM117
        with codec.open_encoder(tokens=16, batch_size=2) as encoder:
            encoder.push(VIDEO[:20])


def chunked(codec: VideoCodec, frames: np.ndarray, size: int, **options: Any) -> tuple[list[Packet], np.ndarray]:
    """Packets, and what a decoder makes of each as it comes, for pushes of `size` frames."""
    packets: list[Packet] = []
    outputs: list[np.ndarray] = []
    with codec.open_encoder(**options) as encoder, codec.open_decoder(seed=7) as decoder:
        for start in range(0, len(frames), size):
            packets += encoder.push(frames[start : start + size])
        packets += encoder.flush()
        for packet in packets:
            outputs += decoder.push(packet)
        outputs += decoder.flush()
    return packets, np.concatenate(outputs)


@pytest.mark.parametrize("model", ["fake", pytest.param("tiny", marks=pytest.mark.slow)])
@pytest.mark.parametrize("clip_frames", [5, 17])
def test_chunks_of_1_7_16_and_1000_are_bit_equal(
    request: pytest.FixtureRequest, model: str, clip_frames: int, dev_clips: list[Path]
) -> None:
    """Real frames with a cut in them; n in, n out."""
    from onedva_runtime.video_io import read_video

    if model == "fake":
        codec = request.getfixturevalue("codec")
    else:
        codec = VideoCodec.from_pretrained(request.getfixturevalue("shipped_bundle"), threads=1)
    heads = [read_video(path, max_frames=27, threads=1).frames[:, :90, :100] for path in dev_clips[:2]]
    frames = np.concatenate([np.concatenate(heads)[:53], make_other_scene(90, 100)])
    wanted = chunked(codec, frames, 1, clip_frames=clip_frames)
    assert len(wanted[1]) == len(frames) == sum(packet.frames for packet in wanted[0])
    assert wanted[1].tobytes() == codec.decode(wanted[0], seed=7).tobytes()
    for size in (7, 16, 1000):
        packets, decoded = chunked(codec, frames, size, clip_frames=clip_frames)
        same(packets, wanted[0])
        assert decoded.tobytes() == wanted[1].tobytes()


def make_other_scene(height: int, width: int) -> np.ndarray:
    from onedva_runtime.clips import make_clip

    return make_clip(14, height, width, seed=4)[:7]


def test_a_stream_decodes_to_what_the_whole_video_decodes_to(codec: VideoCodec) -> None:
    outputs: list[np.ndarray] = []
    with codec.open_encoder(fps=24, max_tokens=16) as encoder, codec.open_decoder(num_steps=2, seed=9) as decoder:
        for packet in encoder.push(VIDEO) + encoder.flush():
            assert packet.tokens == (16 if packet.frames > 8 else 12)
            outputs += decoder.push(packet)
        outputs += decoder.flush()
    whole = codec.decode(codec.encode(VIDEO, tokens=16), num_steps=2, seed=9)
    np.testing.assert_array_equal(np.concatenate(outputs), whole)


def test_a_pushed_array_may_be_reused(codec: VideoCodec) -> None:
    encoder, buffer = codec.open_encoder(tokens=16), np.empty_like(VIDEO[:1])
    for frame in VIDEO[:5]:
        buffer[0] = frame
        assert encoder.push(buffer) == []
    (packet,) = encoder.flush()
    np.testing.assert_array_equal(packet.latents, codec.encode_clip(VIDEO[:5], tokens=16).latents)


def test_time_stamps_of_a_variable_rate_come_out_as_they_went_in(codec: VideoCodec) -> None:
    ticks = np.cumsum(np.random.default_rng(1).integers(1, 90, len(VIDEO)))
    reports: list[StreamReport] = []
    encoder = codec.open_encoder(tokens=0, time_base=Fraction(1, 1000))
    decoder = codec.open_decoder(on_report=reports.append)
    packets = [p for start in range(0, 41, 6) for p in encoder.push(VIDEO[start : start + 6], ticks[start : start + 6])]
    for packet in packets + encoder.flush():
        assert packet.time_base == Fraction(1, 1000)
        decoder.push(packet)
    np.testing.assert_array_equal(np.concatenate([report.timestamps for report in reports]), ticks)  # pyright: ignore
    with pytest.raises(ValueError, match=f"must rise from frame to frame, got {ticks[-1]} after {ticks[-1]}"):
        encoder.push(VIDEO[:1], ticks[-1:])
    with pytest.raises(ValueError, match="with every push of a stream"):
        encoder.push(VIDEO[:1])
    with pytest.raises(ValueError, match="need time_base"):
        codec.open_encoder().push(VIDEO[:1], ticks[:1])


def test_latency_is_told(codec: VideoCodec) -> None:
    """A clip waits for its own frames, and where a request ends it early for one more; nothing else is looked ahead
    at."""
    reports: list[StreamReport] = []
    encoder = codec.open_encoder(tokens=16, clip_frames=5, keyframe_interval=0, on_report=reports.append)
    for frame in VIDEO[:15]:
        encoder.push(frame[None])
    encoder.request_key()
    encoder.push(VIDEO[15:18])
    encoder.flush()
    told = [(r.first_frame, r.frames, r.is_key, r.delay_frames, r.tokens) for r in reports]
    assert told == [
        (0, 5, True, 4, 12),
        (5, 4, False, 3, 6),
        (9, 4, False, 3, 6),
        (13, 2, False, 2, 6),
        (15, 3, True, 2, 12),
    ]
    assert all(0 < report.seconds <= report.latency_s for report in reports)
    assert not any(report.late or report.reduced or report.concealed for report in reports)


def test_a_low_latency_clip_is_out_with_its_fifth_frame(codec: VideoCodec) -> None:
    encoder = codec.open_encoder(clip_frames=5, tokens=0)
    given = [len(encoder.push(frame[None])) for frame in VIDEO[:17]]
    assert given == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1]


class Clock:
    """A clock that only the model's work moves: a second for each, and a step for each evaluation of velocity."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, codec: VideoCodec, *, step_s: float, latent_s: float) -> None:
        self.now = 0.0
        self.backend = codec._engine.backend
        self.step_s, self.latent_s = step_s, latent_s
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        self.name, self.threads, self.dtype = self.backend.name, self.backend.threads, self.backend.dtype
        self.has_one_step = self.has_few_steps = self.samples_on_device = False

    def encode(self, frames: Any, resolution: Any, is_key: Any, anchors: Any) -> Any:
        self.now += 0.1 + self.latent_s * anchors.shape[1]
        return self.backend.encode(frames, resolution, is_key, anchors)

    def condition(self, structural: Any, latents: Any, *rest: Any) -> Any:
        self.now += 0.1 + self.latent_s * latents.shape[1]
        return self.backend.condition(structural, latents, *rest)

    def velocity(self, *rest: Any) -> Any:
        self.now += self.step_s
        return self.backend.velocity(*rest)


def slowed(codec: VideoCodec, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> tuple[VideoCodec, Clock]:
    clock = Clock(monkeypatch, codec, **seconds)
    return VideoCodec(codec._bundle, cast(Backend, clock)), clock


def test_a_late_decoder_takes_fewer_steps_then_fewer_latents_and_says_so(
    codec: VideoCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = codec.encode(np.tile(VIDEO, (5, 2, 2, 1)), tokens=48, cuts=False)
    slow, clock = slowed(codec, monkeypatch, step_s=0.1, latent_s=0.001)
    reports: list[StreamReport] = []
    decoder = slow.open_decoder(num_steps=8, deadline_ms=600, on_report=reports.append)
    for packet in packets[:5]:
        decoder.push(packet)
    assert (reports[0].num_steps, reports[0].late, reports[0].reduced) == (
        8,
        True,
        False,
    )  # nothing was known before it
    for report in reports[1:]:
        assert (report.num_steps, report.tokens, report.late, report.reduced) == (3, 48, False, True)
    clock.step_s, clock.latent_s = 0.2, 0.02  # now not even one step is in time with all latents
    for packet in packets[5:]:
        decoder.push(packet)
    assert reports[-1].num_steps == 1 and 0 <= reports[-1].tokens < 24 and not reports[-1].late
    assert len({report.tokens for report in reports}) > 2


def test_an_encoder_in_time_is_left_alone_and_a_late_one_takes_fewer_latents(
    codec: VideoCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.tile(VIDEO, (5, 2, 2, 1))
    wanted = codec.encode(frames, tokens=48, cuts=False)
    slow, _ = slowed(codec, monkeypatch, step_s=0, latent_s=0.01)
    reports: list[StreamReport] = []
    packets = slow.open_encoder(tokens=48, cuts=False, deadline_ms=900, on_report=reports.append).push(frames)
    same(packets, wanted[: len(packets)])
    assert not any(report.late or report.reduced for report in reports)
    reports.clear()
    packets = slow.open_encoder(tokens=48, cuts=False, deadline_ms=300, on_report=reports.append).push(frames)
    assert reports[0].late and not reports[0].reduced and packets[0].tokens == 48
    assert all(report.reduced and report.tokens < 48 for report in reports[1:])
    assert not reports[-1].late
    same([packet.thin(0) for packet in packets], [packet.thin(0) for packet in wanted[: len(packets)]])


def test_frames_left_behind_are_warned_about(codec: VideoCodec) -> None:
    with pytest.warns(RuntimeWarning, match="3 pushed frames were not encoded: call flush"):  # noqa: SIM117
        with codec.open_encoder() as encoder:
            encoder.push(VIDEO[:3])
    with pytest.raises(KeyError), codec.open_encoder() as encoder:  # an error on its way out is enough
        encoder.push(VIDEO[:3])
        raise KeyError


def test_a_stream_has_one_size(codec: VideoCodec) -> None:
    encoder = codec.open_encoder()
    encoder.push(VIDEO[:3])
    with pytest.raises(ValueError, match="one size; got 20x33 after 33x20"):
        encoder.push(VIDEO[:3].transpose(0, 2, 1, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": "most"}, "tokens must be"),
        ({"max_tokens": -1}, "max_tokens must be"),
        ({"fps": -24}, "fps must be"),
        ({"keyframe_interval": -1}, "keyframe_interval must be"),
        ({"clip_frames": 16}, r"clip_frames must be 1 \+ 4n, up to 17, got 16"),
        ({"clip_frames": 21}, r"clip_frames must be in 1\.\.17"),
        ({"deadline_ms": 0}, "deadline_ms must be positive"),
        ({"time_base": Fraction(0)}, "time_base must be a positive Fraction"),
    ],
)
def test_wrong_encoder_options_are_said_when_the_stream_is_opened(
    codec: VideoCodec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codec.open_encoder(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, r"num_steps must be in 1\.\.50, got 0"),
        ({"seed": -1}, "seed must be"),
        ({"conceal": "hide"}, "conceal must be 'hold', 'continue' or 'raise', got 'hide'"),
        ({"deadline_ms": float("nan")}, "deadline_ms must be positive"),
    ],
)
def test_wrong_decoder_options_are_said_when_the_stream_is_opened(
    codec: VideoCodec, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        codec.open_decoder(**options)
