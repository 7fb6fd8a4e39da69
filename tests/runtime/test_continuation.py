"""Continuation clips on the fake bundle, whose decode adds a tenth of the context frame: what is sent, what is given,
and that a chain is the same frame for frame however it was decoded."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from onedva_runtime import placement
from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import PacketError
from onedva_runtime.noise import gaussian
from onedva_runtime.seams import soften

VIDEO = np.random.default_rng(0).integers(0, 256, (60, 20, 33, 3), np.uint8)


def padded(frames: np.ndarray) -> np.ndarray:
    count, height, width, _ = frames.shape
    return np.pad(frames, ((0, -(count - 1) % 4), (0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")


@pytest.mark.parametrize(("frames", "tokens"), [(1, 16), (4, 0), (7, 12), (16, "auto"), (16, "30dB")])
def test_a_continuation_clip_is_what_the_graphs_compute(
    codec: VideoCodec, fake: ModuleType, frames: int, tokens: int | str
) -> None:
    context, new = VIDEO[9], VIDEO[10 : 10 + frames]
    packet = codec.encode_clip(new, tokens=tokens, first_frame=10, context_frame=context).validate()
    seen = padded(np.concatenate([context[None], new]))
    structural, latents = fake.encode_reference(seen, packet.anchors)
    assert (packet.is_key, packet.frames, packet.first_frame) == (False, frames, 10)
    assert packet.grid == (1 + -(-frames // 4), 2, 3) and not packet.structural[0].any()
    np.testing.assert_allclose(packet.structural[1:], structural[1:], atol=1e-6)
    np.testing.assert_allclose(packet.latents, latents, atol=1e-4)
    assert packet.tokens == 0 or packet.anchors.min() >= 6
    given = VIDEO[50]  # what a viewer decoded there, which is not what was encoded
    decoded = codec.decode_clip(packet, seed=3, context_frame=given)
    noise = gaussian(3, first_frame=9, frames=len(seen), height=32, width=48)
    wanted = fake.decode_reference(
        packet.structural, packet.latents, packet.anchors, noise=noise, context=padded(given[None])[0]
    )
    wanted = soften(given, wanted[1 : 1 + frames, :20, :33])
    assert np.abs(decoded.astype(int) - wanted).max() <= 1
    preview = codec.decode_clip(packet, num_steps=0)
    wanted = fake.decode_reference(packet.structural, packet.latents, packet.anchors, noise=None)
    assert np.abs(preview.astype(int) - wanted[1 : 1 + frames, :20, :33]).max() <= 1


def test_the_context_stays_through_many_steps(codec: VideoCodec, fake: ModuleType) -> None:
    packet = codec.encode_clip(VIDEO[1:5, :16, :16], tokens=0, first_frame=1, context_frame=VIDEO[0, :16, :16])
    given = np.float32(VIDEO[0, :16, :16].transpose(2, 0, 1)[:, None] / np.float32(127.5) - np.float32(1))
    preview = fake.preview_reference(packet.structural, packet.latents, packet.anchors)
    state = gaussian(0, first_frame=0, frames=5, height=16, width=16)
    for t in (1, 0.75, 0.5, 0.25):
        state = state - 0.25 * (state - preview - 0.1 * state - 0.1 * given) / t
    wanted = np.clip(np.rint((state + 1) * 127.5), 0, 255).transpose(1, 2, 3, 0)[1:]
    wanted = soften(VIDEO[0, :16, :16], wanted.astype(np.uint8))
    decoded = codec.decode_clip(packet, num_steps=4, context_frame=VIDEO[0, :16, :16])
    assert np.abs(decoded.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("anchors", ["content", "fixed"])
def test_latents_stand_on_coded_positions_only(make_bundle: Callable[..., Path], anchors: str) -> None:
    codec = VideoCodec.from_pretrained(make_bundle(edit=lambda content: content["model"].update(anchors=anchors)))
    packet = codec.encode_clip(VIDEO[1:17], tokens=48, first_frame=1, context_frame=VIDEO[0])
    assert packet.tokens == 24  # 4 groups of 2×3
    detail = placement.detail_map(padded(VIDEO[:17]))
    wanted = placement.place(detail, 24, is_key=False)
    if anchors == "fixed":
        wanted = placement.fixed_anchors((5, 2, 3), 24, is_key=False)
    np.testing.assert_array_equal(packet.anchors, wanted)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("interval", [0, 1, 2])
def test_a_video_as_chains_is_each_clip_on_the_frame_before(codec: VideoCodec, interval: int, batch_size: int) -> None:
    packets = codec.encode(VIDEO, tokens=16, keyframe_interval=interval, batch_size=batch_size)
    assert sum(packet.frames for packet in packets) == 60
    decoded = codec.decode(packets, seed=4, batch_size=batch_size)
    assert decoded.shape == VIDEO.shape
    last = None
    for packet in packets:
        part = codec.decode_clip(packet, seed=4, context_frame=last)
        got = decoded[packet.first_frame : packet.first_frame + packet.frames]
        assert np.abs(got.astype(int) - part).max() <= (0 if batch_size == 1 else 1)
        last = got[-1]
    keys = [packet.first_frame for packet in packets if packet.is_key]
    assert keys == {0: [0], 1: [0, 17, 34, 51], 2: [0, 33]}[interval]


def test_kinds_go_together_in_a_batch(codec: VideoCodec) -> None:
    clips, contexts = [VIDEO[:17], VIDEO[17:33], VIDEO[33:49]], [None, VIDEO[16], None]
    packets = codec.encode_clips(clips, tokens=16, first_frames=[0, 17, 33], context_frames=contexts)
    assert [packet.is_key for packet in packets] == [True, False, True]
    outputs = codec.decode_clips(packets, context_frames=[None, VIDEO[2], None])
    for index, packet in enumerate(packets):
        alone = codec.encode_clip(
            clips[index], tokens=16, first_frame=packet.first_frame, context_frame=contexts[index]
        )
        np.testing.assert_allclose(packet.structural, alone.structural, atol=1e-6)
        single = codec.decode_clip(packet, context_frame=None if packet.is_key else VIDEO[2])
        assert np.abs(outputs[index].astype(int) - single).max() <= 1


def test_time_stamps_travel_with_the_clips(codec: VideoCodec) -> None:
    ticks = np.cumsum(np.random.default_rng(1).integers(1, 90, 60))
    packets = codec.encode(VIDEO, tokens=0, timestamps=ticks, time_base=Fraction(1, 1000))
    carried = [packet.timestamps for packet in packets if packet.timestamps is not None]
    np.testing.assert_array_equal(np.concatenate(carried), ticks)
    assert {packet.time_base for packet in packets} == {Fraction(1, 1000)}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"timestamps": ticks}, "need time_base"),
        ({"timestamps": ticks[:5], "time_base": Fraction(1, 9)}, r"shape \(60,\), one per frame"),
        ({"timestamps": ticks[::-1], "time_base": Fraction(1, 9)}, "must rise"),
        ({"time_base": Fraction(-1, 9)}, "positive Fraction"),
    ]
    for options, message in bad:
        with pytest.raises(ValueError, match=message):
            codec.encode(VIDEO, **options)


def test_contexts_that_are_missing_or_wrong_are_said(codec: VideoCodec) -> None:
    packet = codec.encode_clip(VIDEO[1:5], tokens=0, first_frame=1, context_frame=VIDEO[0])
    with pytest.raises(PacketError, match=r"from frame 1 on is a continuation clip: it needs context_frame"):
        codec.decode_clip(packet)
    with pytest.raises(ValueError, match="context_frame must have the packet's size, 33x20; got 32x20"):
        codec.decode_clip(packet, context_frame=VIDEO[0, :, :32])
    wrong: list[tuple[Any, type[Exception], str]] = [
        ([[0]], TypeError, "got list"),
        (VIDEO[0] / 255, TypeError, "got float64"),
        (VIDEO[:1], ValueError, r"got the shape \(1, 20, 33, 3\)"),
    ]
    for frame, kind, message in wrong:
        with pytest.raises(kind, match=rf"context_frame must be a NumPy array \(H, W, 3\) of uint8.*{message}"):
            codec.decode_clip(packet, context_frame=frame)
        with pytest.raises(kind, match=rf"context_frame must be a NumPy array \(H, W, 3\) of uint8.*{message}"):
            codec.encode_clip(VIDEO[1:5], first_frame=1, context_frame=frame)
    with pytest.raises(
        ValueError, match="context_frame must have the size of the clip's frames, got 32x20 for frames of 33x20"
    ):
        codec.encode_clip(VIDEO[1:5], first_frame=1, context_frame=VIDEO[0, :, :32])
    with pytest.raises(ValueError, match=r"first_frame of a continuation clip must be at least 1, got 0"):
        codec.encode_clip(VIDEO[1:5], context_frame=VIDEO[0])
    with pytest.raises(ValueError, match=r"a continuation clip of 33x20 has 1\.\.16 frames in fake-v1, got 17"):
        codec.encode_clip(VIDEO[1:18], first_frame=1, context_frame=VIDEO[0])
    with pytest.raises(PacketError, match="17 frames; allowed: 16"):
        long = replace(packet, frames=17, structural=np.zeros((6, 2, 3, 3), np.float32))
        codec.decode_clip(long, context_frame=VIDEO[0])
    packets = codec.encode(VIDEO, tokens=0)
    with pytest.raises(PacketError, match="the clip before the continuation clip from frame 17 on is missing"):
        codec.decode(packets[1:])
    with pytest.raises(PacketError, match="the clip before the continuation clip from frame 33 on is missing"):
        codec.decode([packets[0], packets[2]])
