"""The shipped `tiny`: the promises of a bundle, held by the real weights on real (or made-up) video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from onedva.model import OneDVA, to_video
from onedva_runtime import VideoCodec
from onedva_runtime.metrics import psnr
from onedva_runtime.noise import gaussian
from onedva_runtime.video_io import open_reader

QUANTISATION_STEP = 1 / 16  # of a latent with deviation 1: fine enough to cost nothing, as a file would use


@pytest.fixture(scope="module")
def codec(shipped_bundle: Path) -> VideoCodec:
    return VideoCodec.from_pretrained(shipped_bundle, backend="onnxruntime")


@pytest.fixture(scope="module")
def model(shipped_bundle: Path) -> OneDVA:
    return OneDVA.from_pretrained(shipped_bundle)


@pytest.fixture(scope="module")
def clip(dev_clips: list[Path]) -> np.ndarray:
    """17 frames of 128×160 from the middle of a real video's picture."""
    with open_reader(dev_clips[len(dev_clips) * 2 // 3], batch=17) as reader:
        frames, _ = next(iter(reader))
    top, left = (frames.shape[1] - 128) // 2, (frames.shape[2] - 160) // 2
    return np.ascontiguousarray(frames[:, top : top + 128, left : left + 160])


def float_video(decoded: np.ndarray) -> np.ndarray:
    return decoded.astype(np.float32) / 127.5 - 1


def test_a_prefix_is_what_a_shorter_budget_gives(codec: VideoCodec, clip: np.ndarray):
    long, short = codec.encode_clip(clip, tokens=codec.max_tokens), codec.encode_clip(clip, tokens=64)
    assert long.tokens == 5 * 8 * 10  # one per position
    prefix = long.thin(64)
    assert np.array_equal(prefix.anchors, short.anchors)
    for one, other in ((prefix.latents, short.latents), (prefix.structural, short.structural)):
        same = np.round(one / QUANTISATION_STEP) == np.round(other / QUANTISATION_STEP)
        assert same.mean() >= 0.999
    assert psnr(codec.decode_clip(prefix), codec.decode_clip(short)) >= 60


def test_more_latents_decode_better(codec: VideoCodec, clip: np.ndarray):
    quality = [psnr(clip, codec.decode_clip(codec.encode_clip(clip, tokens=count))) for count in (0, 64, 400)]
    assert quality[0] + 0.3 < quality[1] < quality[2] - 0.3


def test_training_beat_what_is_linear(shipped_bundle: Path):
    """The card's scores: at every length above each linear row beside it."""
    cells = [line.split("|")[1:-1] for line in (shipped_bundle / "README.md").read_text().splitlines()]
    of_dev = [row for row in cells if row and row[0].strip().endswith(", dev")]
    rows = {row[0].strip(): [float(cell) for cell in row[1:]] for row in of_dev}
    trained = rows[f"{shipped_bundle.name}, dev"]
    linear = [row for name, row in rows.items() if name.startswith("linear")]
    assert len(trained) == 4 and linear
    assert all(after > before for row in linear for after, before in zip(trained, row, strict=True))


def test_same_call_same_bytes(codec: VideoCodec, clip: np.ndarray):
    first, second = (codec.encode_clip(clip, tokens=96) for _ in range(2))
    assert first.latents.tobytes() == second.latents.tobytes()
    once, again = (codec.decode_clip(first, num_steps=3, seed=5) for _ in range(2))
    assert once.tobytes() == again.tobytes()
    assert codec.decode_clip(first, num_steps=3, seed=6).tobytes() != once.tobytes()


@pytest.mark.parametrize(("steps", "bar"), [(1, 60.0), (4, 50.0)])
def test_onnxruntime_decodes_what_pytorch_decodes(
    codec: VideoCodec, model: OneDVA, clip: np.ndarray, steps: int, bar: float
):
    """A whole encode and decode by each, against uint8 rounding of the same: 60 dB is an error of 0.25 levels."""
    packet = codec.encode_clip(clip, tokens=96)
    noise = gaussian(3, first_frame=0, frames=17, height=128, width=160)
    with torch.inference_mode():
        z = model.encode(to_video(torch.from_numpy(clip)[None]), tokens=96, follow_camera=True).latent_dist.mode()
        video = model.decode(z, num_steps=steps, noise=torch.from_numpy(noise)[None]).sample[0]
    pixels = ((video + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 3, 0).numpy()
    assert psnr(pixels, codec.decode_clip(packet, num_steps=steps, seed=3)) >= bar


def test_decibel_target_is_met_by_the_shortest_prefix_that_promises_it(codec: VideoCodec, clip: np.ndarray):
    whole = codec.encode_clip(clip, tokens=codec.max_tokens)
    assert whole.predicted_error is not None
    promised = 10 * np.log10(4 / np.exp(whole.predicted_error))
    target = float((promised[15] + promised[-1]) / 2)
    packet = codec.encode_clip(clip, tokens=f"{target:.2f}dB")
    assert 16 <= packet.tokens < whole.tokens
    assert promised[packet.tokens - 1] >= target - 0.02
    assert abs(psnr(clip, codec.decode_clip(packet)) - target) < 2.0
