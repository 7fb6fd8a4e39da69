"""`VideoCodec` on the fake bundle, whose every value can be computed by hand: padding, order, lengths, seeds, batches,
errors."""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onedva_runtime import placement
from onedva_runtime.backends.onnxruntime import load_onnxruntime
from onedva_runtime.clips import make_clip
from onedva_runtime.codec import VideoCodec
from onedva_runtime.errors import BackendError
from onedva_runtime.noise import gaussian


def video(frames: int, height: int = 32, width: int = 48, *, seed: int = 0) -> np.ndarray:
    """Frames whose patches differ in colour and in detail."""
    random = np.random.default_rng(seed)
    base = random.integers(30, 226, (frames, -(-height // 16), -(-width // 16), 3))
    texture = random.integers(-30, 30, (frames, height, width, 3)) * random.random((1, height, width, 1))
    blocks = base.repeat(16, 1).repeat(16, 2)[:, :height, :width]
    return (blocks + texture).clip(0, 255).astype(np.uint8)


def padded(frames: np.ndarray) -> np.ndarray:
    count, height, width, _ = frames.shape
    extra = ((0, -(count - 1) % 4), (0, -height % 16), (0, -width % 16), (0, 0))
    return np.pad(frames, extra, mode="edge")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 17), st.integers(1, 50), st.integers(1, 50), st.sampled_from([0, 1, 16, 20, 64, "auto", "30dB"]))
def test_any_size_and_length_is_what_the_graphs_compute_and_comes_back(
    fake: ModuleType, codec: VideoCodec, frames: int, height: int, width: int, tokens: int | str
) -> None:
    clip = video(frames, height, width)
    whole = padded(clip)
    assume(np.abs(4 * fake.patch_means(whole) % 1 - 0.5).min() > 1e-5)  # a half may round either way
    packet = codec.encode_clip(clip, tokens=tokens, first_frame=7, follow_camera=False)
    structural, latents = fake.encode_reference(whole, packet.anchors)
    np.testing.assert_allclose(packet.structural, structural, atol=1e-6)
    np.testing.assert_allclose(packet.latents, latents, atol=1e-4)  # ONNX Runtime sums 1024 pixels in float32
    decoded = codec.decode_clip(packet, seed=5)
    assert decoded.shape == clip.shape and decoded.dtype == np.uint8
    noise = gaussian(5, first_frame=7, frames=len(whole), height=whole.shape[1], width=whole.shape[2])
    wanted = fake.decode_reference(structural, latents, packet.anchors, noise=noise)[:frames, :height, :width]
    assert np.abs(decoded.astype(int) - wanted).max() <= 1  # a half may round the other way


@pytest.mark.parametrize(("asked", "got"), [(0, 0), (1, 16), (16, 16), (17, 32), ("33", 48), (48, 48), (10_000, 48)])
def test_counts_are_rounded_up_and_capped_by_what_was_trained(codec: VideoCodec, asked: int | str, got: int) -> None:
    packet = codec.encode_clip(video(17, 64, 64), tokens=asked)
    assert packet.tokens == got == len(packet.anchors)


def test_counts_are_capped_by_the_positions_of_the_clip(codec: VideoCodec) -> None:
    assert codec.encode_clip(video(1, 32, 48), tokens=48).tokens == 6


def test_a_maximum_is_never_exceeded(codec: VideoCodec) -> None:
    clip = video(17, 64, 64)
    for most, got in {0: 0, 15: 0, 16: 16, 31: 16, 47: 32, 1000: 48}.items():
        for tokens in (48, "auto", "99dB"):
            assert codec.encode_clips([clip], tokens=tokens, max_tokens=most)[0].tokens == got
    assert codec.encode_clips([video(1)], tokens=48, max_tokens=7)[0].tokens == 6


def test_auto_follows_the_detail(codec: VideoCodec) -> None:
    flat = np.full((5, 64, 64, 3), 90, np.uint8)
    assert codec.encode_clip(flat).tokens == 0
    packet = codec.encode_clip(video(5, 64, 64))
    detail = placement.detail_map(video(5, 64, 64))
    assert packet.tokens == placement.choose_tokens(detail, density=500, max_tokens=48)
    np.testing.assert_array_equal(packet.anchors, placement.place(detail, packet.tokens))


def test_a_shorter_budget_is_a_prefix_and_thinning_is_the_same(codec: VideoCodec) -> None:
    clip = video(17, 64, 64)
    long, short = codec.encode_clip(clip, tokens=48), codec.encode_clip(clip, tokens=16)
    thin = long.thin(16)
    for name in ("structural", "latents", "anchors", "predicted_error"):
        np.testing.assert_array_equal(getattr(thin, name), getattr(short, name), err_msg=name)
    np.testing.assert_array_equal(codec.decode_clip(thin), codec.decode_clip(short))
    assert (codec.decode_clip(thin) != codec.decode_clip(long)).any()
    assert long.thin(1000).tokens == 48 and long.thin(0).latents.shape == (0, 3)


@pytest.mark.parametrize(("target", "got"), [("1dB", 16), ("9.4 db", 16), ("10dB", 32), ("13dB", 48), ("99dB", 48)])
def test_a_target_keeps_the_shortest_prefix_predicted_to_reach_it(codec: VideoCodec, target: str, got: int) -> None:
    # the fake predicts ln MSE = fps - 1 - 0.05·i for i latents: at fps 1, 16/32/48 of them 9.5, 13.0, 16.4 dB
    limits = {count: 10 * math.log10(4 / math.exp(-0.05 * count)) for count in (16, 32, 48)}
    wanted = float(target.lower().removesuffix("db"))
    expected = next((count for count, reached in limits.items() if reached >= wanted), 48)
    packet = codec.encode_clip(video(17, 64, 64), tokens=target, fps=1)
    assert packet.tokens == expected == got


def test_without_latents_the_absent_vector_is_used(codec: VideoCodec, fake: ModuleType) -> None:
    packet = codec.encode_clip(video(5), tokens=0)
    preview = codec.decode_clip(packet, num_steps=0)
    wanted = fake.decode_reference(packet.structural, packet.latents, packet.anchors, noise=None)
    assert np.abs(preview.astype(int) - wanted).max() <= 1


def test_more_steps_follow_the_same_path(codec: VideoCodec, fake: ModuleType) -> None:
    packet = codec.encode_clip(video(5), tokens=16)
    noise = gaussian(0, first_frame=0, frames=5, height=32, width=48)
    state, preview = noise.copy(), fake.preview_reference(packet.structural, packet.latents, packet.anchors)
    for t in (1, 0.75, 0.5, 0.25):
        state = state - 0.25 * (state - preview - 0.1 * state) / t
    wanted = np.clip(np.rint((state + 1) * 127.5), 0, 255).transpose(1, 2, 3, 0)
    assert np.abs(codec.decode_clip(packet, num_steps=4).astype(int) - wanted).max() <= 1
    assert codec.decode_clip(packet, num_steps=50).shape == (5, 32, 48, 3)


def test_seeds_and_frame_numbers_decide_the_noise_and_nothing_else_does(codec: VideoCodec) -> None:
    packet = codec.encode_clip(video(9), tokens=16)
    once = codec.decode_clip(packet, seed=1)
    np.testing.assert_array_equal(once, codec.decode_clip(packet, seed=1))
    assert (once != codec.decode_clip(packet, seed=2)).any()
    assert (once != codec.decode_clip(replace(packet, first_frame=1), seed=1)).any()
    still = codec.decode_clip(packet, num_steps=0, seed=1)
    np.testing.assert_array_equal(still, codec.decode_clip(packet, num_steps=0, seed=2))


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("frames", [1, 16, 17, 18, 40])
def test_a_video_of_any_length_comes_back_in_order(codec: VideoCodec, frames: int, batch_size: int) -> None:
    clip = video(frames, 20, 30)
    packets = codec.encode(clip, tokens=16, fps=30, keyframe_interval=1, batch_size=batch_size)
    assert [packet.first_frame for packet in packets] == list(range(0, frames, 17))
    assert sum(packet.frames for packet in packets) == frames and {packet.fps for packet in packets} == {30}
    decoded = codec.decode(packets, num_steps=0, batch_size=batch_size)
    assert decoded.shape == clip.shape
    for packet in packets:
        part = slice(packet.first_frame, packet.first_frame + packet.frames)
        np.testing.assert_array_equal(decoded[part], codec.decode_clip(packet, num_steps=0))


def test_a_batch_of_mixed_clips_is_grouped_and_equals_one_at_a_time(codec: VideoCodec, fake_bundle: Path) -> None:
    shapes = [(17, 32, 48), (5, 32, 48), (17, 32, 48), (4, 30, 41), (5, 32, 48), (17, 64, 16), (1, 1, 1)]
    clips = [video(*shape, seed=index) for index, shape in enumerate(shapes)]
    calls: list[str] = []
    counted = VideoCodec.from_pretrained(fake_bundle, threads=1, on_timing=lambda stage, seconds: calls.append(stage))
    calls.clear()  # of the golden test
    packets = counted.encode_clips(clips, tokens=16, first_frames=range(0, 700, 100))
    assert calls.count("encode") == 4  # (4, 30, 41) pads to the size of (5, 32, 48), which stands twice
    outputs = counted.decode_clips(packets, seed=3)
    assert calls.count("condition") == 4
    for index, (clip, packet, output) in enumerate(zip(clips, packets, outputs, strict=True)):
        single = codec.encode_clip(clip, tokens=16, first_frame=100 * index)
        np.testing.assert_allclose(packet.latents, single.latents, atol=1e-6)
        assert packet.first_frame == 100 * index and output.shape == clip.shape
        assert np.abs(output.astype(int) - codec.decode_clip(single, seed=3)).max() <= 1


def test_stages_are_timed_for_whoever_asks(fake_bundle: Path) -> None:
    seen: dict[str, float] = {}
    codec = VideoCodec.from_pretrained(fake_bundle, on_timing=seen.__setitem__)
    codec.decode_clip(codec.encode_clip(video(5)))
    assert list(seen) == ["camera", "place", "encode", "condition", "noise", "velocity", "pack"]
    assert all(seconds > 0 for seconds in seen.values())


FRAMES = video(5)
BAD_FRAMES: list[tuple[Any, type[Exception], str]] = [
    (FRAMES.astype(np.float32) / 255, TypeError, r"got float32; scale to 0\.\.255"),
    (FRAMES.astype(np.int64), TypeError, "got int64"),
    (FRAMES.tolist(), TypeError, r"got builtins\.list"),
    (None, TypeError, "got builtins.NoneType"),
    (FRAMES[0], ValueError, r"got the shape \(32, 48, 3\)"),
    (FRAMES[None], ValueError, "encode_clips"),
    (FRAMES.transpose(0, 3, 1, 2), ValueError, r"T C H W: transpose\(0, 2, 3, 1\)"),
    (FRAMES.transpose(3, 0, 1, 2), ValueError, r"C T H W: transpose\(1, 2, 3, 0\)"),
    (FRAMES[..., :1], ValueError, r"\(T, H, W, 3\) of uint8"),
    (FRAMES[:0], ValueError, "at least one frame"),
    (FRAMES[:, :0], ValueError, "one pixel"),
]


@pytest.mark.parametrize(("frames", "kind", "message"), BAD_FRAMES)
def test_wrong_frames_say_what_was_got_and_is_allowed(
    codec: VideoCodec, frames: Any, kind: type[Exception], message: str
) -> None:
    for call in (codec.encode_clip, codec.encode, codec.open_encoder().push):
        with pytest.raises(kind, match=message):
            call(frames)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tokens": "many"}, ValueError, "'auto', a count such as 64"),
        ({"tokens": "0dB"}, ValueError, "got '0dB'"),
        ({"tokens": "101dB"}, ValueError, "got '101dB'"),
        ({"tokens": -1}, ValueError, "got -1"),
        ({"tokens": 1.5}, TypeError, "must be an integer, got 1.5"),
        ({"tokens": True}, TypeError, "must be an integer, got True"),
        ({"fps": 0}, ValueError, "positive and finite, got 0"),
        ({"fps": math.nan}, ValueError, "got nan"),
        ({"fps": "fast"}, TypeError, "must be a number, got 'fast'"),
        ({"first_frame": -1}, ValueError, "first_frame must be in 0"),
    ],
)
def test_wrong_encode_options(codec: VideoCodec, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        codec.encode_clip(FRAMES, **options)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"num_steps": 51}, ValueError, r"num_steps must be in 0\.\.50, got 51"),
        ({"num_steps": -1}, ValueError, "got -1"),
        ({"num_steps": 1.0}, TypeError, "must be an integer"),
        ({"seed": 2**64}, ValueError, "seed must be in 0"),
        ({"seed": -1}, ValueError, "seed must be in 0"),
    ],
)
def test_wrong_decode_options(codec: VideoCodec, options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        codec.decode_clip(codec.encode_clip(FRAMES), **options)


def test_clips_that_are_too_long_or_too_large_raise(codec: VideoCodec) -> None:
    with pytest.raises(ValueError, match=r"48x32 has 1\.\.17 frames in fake-v1, got 18; use encode"):
        codec.encode_clip(video(18))
    with pytest.raises(ValueError, match=r"176x176 has 1\.\.13 frames in fake-v1, got 14"):  # 5·11·11 > 600 positions
        codec.encode_clip(np.zeros((14, 176, 176, 3), np.uint8))
    with pytest.raises(ValueError, match="one frame of 400x400 is 625 grid positions of 16x16, fake-v1 takes 600"):
        codec.encode_clip(np.zeros((1, 400, 400, 3), np.uint8))
    with pytest.raises(ValueError, match="first_frames must have one entry per clip, got 1 for 2"):
        codec.encode_clips([FRAMES, FRAMES], first_frames=[0])


def test_decode_wants_one_size(codec: VideoCodec) -> None:
    packets = [codec.encode_clip(video(5, 32, 48)), codec.encode_clip(video(5, 48, 32))]
    with pytest.raises(ValueError, match="one frame size, got 32x48, 48x32"):
        codec.decode(packets)
    with pytest.raises(ValueError, match="got no packets"):
        codec.decode([])


def test_a_model_without_preview_has_no_zero_steps(make_bundle: Callable[..., Path]) -> None:
    codec = VideoCodec.from_pretrained(make_bundle(edit=lambda content: content["model"].update(preview=False)))
    with pytest.raises(ValueError, match="fake-v1 has no preview"):
        codec.decode_clip(codec.encode_clip(FRAMES), num_steps=0)


def test_fixed_anchors_do_not_look_at_the_clip(make_bundle: Callable[..., Path]) -> None:
    codec = VideoCodec.from_pretrained(make_bundle(edit=lambda content: content["model"].update(anchors="fixed")))
    packet = codec.encode_clip(FRAMES, tokens=16)
    np.testing.assert_array_equal(packet.anchors, placement.fixed_anchors((2, 2, 3), 12))
    assert codec.encode_clip(video(17, 64, 64)).tokens > 0


def test_a_backend_that_computes_something_else_is_refused_by_the_golden_test(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(edit=lambda content: content["golden"]["cases"][0].update(seed=4))
    with pytest.raises(BackendError, match=r"no backend passes the golden test of fake-v1: .*onnxruntime fp32"):
        VideoCodec.from_pretrained(folder)
    codec = VideoCodec.from_pretrained(folder, backend="onnxruntime")
    (case,) = codec.selftest()
    assert not case["passed"] and case["psnr_db"] < 40 and case["max_error"]["latents"] < 1e-5


def test_onnxruntime_is_loaded_without_its_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    load_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")  # who asks for it has it
    load_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_graphs_of_special_uses_are_opened_when_they_are_used(shipped_bundle: Path, backend: str) -> None:
    codec = VideoCodec.from_pretrained(shipped_bundle, backend=backend, dtype="fp32", threads=1)
    runs: Any = codec._backend
    opened = runs._opened if backend == "onnxruntime" else runs._models
    packet = codec.encode_clip(make_clip(5, 32, 48), tokens=0)
    codec.decode_clip(packet)
    assert opened.keys() == {"encoder", "one_step"}
    codec.decode_clip(packet, num_steps=0)
    codec.decode_clip(packet, num_steps=3)
    assert opened.keys() == {"encoder", "one_step", "condition", "begin", "step", "finish"}
