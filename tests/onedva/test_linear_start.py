"""What is found in closed form: components from as many crops of every clip, neighbours by least squares."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva import linear_start
from onedva.data import Clip
from onedva.evaluate import evaluate
from onedva.linear_start import fit_neighbours, fit_pca, linear_model, random_crops, row_weights
from onedva.model import OneDVA, to_video
from onedva.patches import PatchPCA


@pytest.fixture
def clips(make_frames: Callable[..., np.ndarray]) -> list[Clip]:
    return [Clip(f"clip{i}", frames, 24.0) for i, frames in enumerate(make_frames(2, 7, 80, 64))]


class Recorder:
    """Stands in for PatchStatistics, whose eigenvectors of 3072×3072 take a minute."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, patches: Tensor) -> None:
        self.rows.append(patches.reshape(-1, 3072))

    def pca(self, components: int) -> PatchPCA:
        rows = torch.cat(self.rows)
        return PatchPCA(rows.mean(dim=0), torch.eye(components, 3072), rows.std(dim=0)[:components])


def test_components_are_fit_on_as_many_crops_of_every_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_start, "PatchStatistics", Recorder)
    shapes = ((17, 256, 256), (40, 256, 300))
    clips = [Clip(str(value), np.full((*shape, 3), value, np.uint8), 24.0) for value, shape in enumerate(shapes)]
    pca = fit_pca(clips, 4, per_clip=2)
    assert pca.components.shape == (4, 3072)
    torch.testing.assert_close(pca.mean, torch.full((3072,), 0.5 / 127.5 - 1))  # half zeros, half ones


def test_the_linear_model_is_the_same_every_time_and_starts_at_the_components(
    clips: list[Clip], nano, quick_pca, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fit(given: list[Clip], components: int) -> PatchPCA:
        asked.append(components)
        return quick_pca(to_video(torch.from_numpy(np.asarray(given[0].frames))[None, :5]), components)

    monkeypatch.setattr(linear_start, "fit_pca", fit)
    one = linear_model(nano(), clips)
    torch.manual_seed(99)
    two = linear_model(nano(), clips)
    assert asked == [16, 16]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert one.encoder.pca.weight.any() and one.decoder.structural_pca.weight.any()
    few, many = (score.psnr for score in evaluate(one, clips[:1], tokens=(0, 32), size=64))
    assert many > few + 0.5


@pytest.fixture
def start(clips: list[Clip], nano, quick_pca, monkeypatch: pytest.MonkeyPatch) -> OneDVA:
    """The linear floor on made-up clips, in eval mode."""
    crop = to_video(torch.from_numpy(np.asarray(clips[0].frames))[None, :5])
    monkeypatch.setattr(linear_start, "fit_pca", lambda given, components: quick_pca(crop, components))
    return linear_model(nano(preview_rank=24), clips).eval()


def preview_error(model: OneDVA, clips: list[Clip], tokens: int) -> float:
    """Mean squared error of previews over the crops that `fit_neighbours` sees."""
    with torch.inference_mode():
        errors = [
            (model.condition(model.encode(video, tokens=tokens).latent_dist.mode()).preview - video).square().mean()
            for video in random_crops(clips, frames=5, per_clip=12, seed=1)
        ]
    return float(torch.stack(errors).mean())


def test_neighbours_lower_the_error_at_every_length(start: OneDVA, clips: list[Clip]) -> None:
    before = [preview_error(start, clips, tokens) for tokens in (0, 16, 32)]
    fit_neighbours(start, clips, per_clip=12)
    after = [preview_error(start, clips, tokens) for tokens in (0, 16, 32)]
    assert all(new < 0.8 * old for new, old in zip(after, before, strict=True)), (before, after)


def test_the_fit_is_the_least_squares_solution(start: OneDVA, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few positions and rank to spare: the prediction is exact, and fitting again changes nothing."""
    video = torch.rand(1, 3, 5, 48, 48) * 2 - 1  # 18 positions, fewer than the 24 dimensions
    monkeypatch.setattr(linear_start, "random_crops", lambda *args, **kwargs: iter([video]))
    monkeypatch.setattr(linear_start, "random_length", lambda *args: 0)
    monkeypatch.setattr(linear_start, "RIDGE", 1e-4)
    fit_neighbours(start, [])
    z = start.encode(video, tokens=0).latent_dist.mode()
    with torch.inference_mode():
        preview = start.condition(z).preview
    assert (preview - video).square().mean() < 0.05 * video.square().mean()


def test_a_crop_with_little_error_weighs_more() -> None:
    small, large = torch.full((8, 3), 0.01), torch.full((8, 3), 1.0)
    assert row_weights(small, area=2)[2] > 50 * row_weights(large, area=2)[2]
    weights = row_weights(large, area=2)[:, 0]
    assert torch.allclose(weights[:2] * 4, weights[2:4])
