"""Streams: any chunking of the frames gives the packets and pixels that the whole video gives, and nothing is dropped
silently."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime.codec import VideoCodec

VIDEO = np.random.default_rng(0).integers(0, 256, (41, 20, 33, 3), np.uint8)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_any_chunking_gives_the_same_packets(codec: VideoCodec, sizes: list[int]) -> None:
    ends = list(itertools.accumulate(sizes))
    frames = VIDEO[: ends[-1]]
    pieces = np.split(frames, ends[:-1]) if ends[-1] <= len(VIDEO) else [frames]
    with codec.open_encoder(fps=25, tokens=16) as encoder:
        packets = [packet for piece in pieces if len(piece) for packet in encoder.push(piece)] + encoder.flush()
        assert encoder.flush() == []
    wanted = codec.encode(frames, tokens=16, fps=25)
    assert [packet.first_frame for packet in packets] == [packet.first_frame for packet in wanted]
    for got, want in zip(packets, wanted, strict=True):
        np.testing.assert_array_equal(got.latents, want.latents)
        assert (got.frames, got.fps) == (want.frames, 25)


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


def test_wrong_options_are_said_when_the_stream_is_opened(codec: VideoCodec) -> None:
    with pytest.raises(ValueError, match="tokens must be"):
        codec.open_encoder(tokens="most")
    with pytest.raises(ValueError, match="max_tokens must be"):
        codec.open_encoder(max_tokens=-1)
    with pytest.raises(ValueError, match="fps must be"):
        codec.open_encoder(fps=-24)
    with pytest.raises(ValueError, match=r"num_steps must be in 1\.\.50, got 0"):
        codec.open_decoder(num_steps=0)
    with pytest.raises(ValueError, match="seed must be"):
        codec.open_decoder(seed=-1)
