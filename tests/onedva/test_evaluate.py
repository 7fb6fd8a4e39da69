"""Scores against PSNR and SSIM worked out directly, lengths, and the strip."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva.config import OneDVAConfig
from onedva.data import Clip
from onedva.evaluate import (
    PSNR_CAP,
    Score,
    as_json,
    evaluate,
    lengths_of,
    mean_by_length,
    reconstructions,
    strip,
)
from onedva.model import DecodeOutput, HybridLatents, OneDVA, to_frames, to_video
from onedva_runtime.metrics import ssim


@pytest.fixture
def clips(make_frames: Callable[..., np.ndarray]) -> list[Clip]:
    return [Clip(f"clip{i}", frames, 24.0) for i, frames in enumerate(make_frames(2, 7, 80, 64))]


def test_scores_are_the_psnr_of_separate_encodes(clips: list[Clip], random_model: Callable[..., OneDVA]) -> None:
    model = random_model()
    scores = evaluate(model, clips, tokens=(0, 16, 32), steps=(1, 2), size=64, seed=3)
    assert len(scores) == 2 * 3 * 2
    for score in scores:
        clip = next(clip for clip in clips if clip.name == score.clip)
        frames = np.asarray(clip.frames)[1:6, 8:72]  # the middle
        video = to_video(torch.from_numpy(frames)[None])
        z = model.encode(video, tokens=score.tokens).latent_dist.mode()
        noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(3))
        decoded = to_frames(model.decode(z, num_steps=score.steps, noise=noise).sample)[0]
        mse = np.square(decoded.astype(float) - frames).mean()
        assert score.psnr == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-3)


def test_the_seed_makes_the_noise(
    clips: list[Clip], random_model: Callable[..., OneDVA], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    seen: list[Tensor] = []
    decode = model.decode

    def watch(z: HybridLatents, *, num_steps: int, noise: Tensor) -> DecodeOutput:
        seen.append(noise)
        return decode(z, num_steps=num_steps, noise=noise)

    monkeypatch.setattr(model, "decode", watch)
    first, again, _ = (evaluate(model, clips[:1], tokens=(16,), size=64, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_a_perfect_clip_scores_the_cap(pca_model: Callable[..., OneDVA]) -> None:
    blank = np.full((5, 64, 64, 3), 51, np.uint8)
    model = pca_model(to_video(torch.from_numpy(blank)[None]))
    scores = evaluate(model, [Clip("blank", blank, 24.0)], tokens=(0,), size=64)
    assert [score.psnr for score in scores] == [PSNR_CAP]


def test_means_are_per_length_at_one_step_count() -> None:
    scores = [
        Score("a", 0, 1, 20.0),
        Score("b", 0, 1, 30.0),
        Score("a", 64, 1, 40.0),
        Score("b", 64, 1, 42.0),
        Score("a", 0, 4, 99.0),
        Score("a", 64, 4, 10.0),
    ]
    assert mean_by_length(scores) == {0: 25.0, 64: 41.0}
    assert mean_by_length(scores, steps=4) == {0: 99.0, 64: 10.0}
    assert as_json(scores[:1]) == [{"clip": "a", "tokens": 0, "steps": 1, "psnr": 20.0}]


def test_ssim_is_there_where_asked(clips: list[Clip], random_model: Callable[..., OneDVA]) -> None:
    model = random_model()
    (one,) = reconstructions(model, clips[:1], tokens=(16,), size=64)
    (score,) = evaluate(model, clips[:1], tokens=(16,), size=64, with_ssim=True)
    assert score.ssim == ssim(one.frames, one.decoded)
    assert "ssim" in as_json([score])[0]
    assert "ssim" not in as_json(evaluate(model, clips[:1], tokens=(16,), size=64))[0]


def test_lengths_are_what_a_clip_carries(nano: Callable[..., OneDVAConfig]) -> None:
    assert lengths_of(nano(), (0, 5, 16, 30, 31, 1024), size=64) == [0, 16, 32]  # 2×4×4 positions
    assert lengths_of(nano(queries=16, trained_tokens=16), (0, 1024), size=64) == [0, 16]
    assert lengths_of(OneDVAConfig(), (1024, 0, 64), size=256) == [0, 64, 1024]


def test_a_size_must_fit_the_grid(clips: list[Clip], random_model: Callable[..., OneDVA]) -> None:
    for size in (60, 0, 272):
        with pytest.raises(ValueError, match=f"multiple of 16 up to 256, got {size}"):
            evaluate(random_model(), clips, size=size)


def test_the_caller_of_reconstructions_is_not_in_inference_mode(
    clips: list[Clip], random_model: Callable[..., OneDVA]
) -> None:
    for _ in reconstructions(random_model(), clips[:1], tokens=(0, 16), size=64):
        assert not torch.is_inference_mode_enabled()


def test_a_strip_shows_source_decoded_and_error() -> None:
    source = np.zeros((9, 2, 3, 3), np.uint8)
    source[:] = 10 * np.arange(9, dtype=np.uint8)[:, None, None, None]
    decoded = source + 7
    decoded[8] = 200  # an error of 120 is beyond what a pixel shows
    picture = strip(source, decoded, count=3)
    assert picture.shape == (6, 9, 3) and picture.dtype == np.uint8
    assert picture[0, ::3, 0].tolist() == [0, 40, 80]
    assert picture[2, ::3, 0].tolist() == [7, 47, 200]
    assert picture[4, ::3, 0].tolist() == [28, 28, 255]
    assert strip(source[:1], decoded[:1]).shape == (6, 3, 3)
    with pytest.raises(ValueError, match="one shape"):
        strip(source, decoded[:8])
