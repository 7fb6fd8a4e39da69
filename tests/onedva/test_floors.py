"""Linear codes against reconstructions made patch by patch."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva.config import OneDVAConfig
from onedva.data import Clip
from onedva.floors import decibels, errors_by_components, floor_scores, same_total_scores
from onedva.model import to_video
from onedva.patches import PatchPCA, patchify, unpatchify


def rebuilt(frames: np.ndarray, pca: PatchPCA, components: int) -> np.ndarray:
    patches = patchify(to_video(torch.from_numpy(frames)[None])) - pca.mean
    basis = pca.components[:components]
    return unpatchify(patches @ basis.T @ basis + pca.mean)[0].permute(1, 2, 3, 0).numpy()


def test_errors_are_those_of_projections(
    make_frames: Callable[..., np.ndarray], quick_pca: Callable[[Tensor, int], PatchPCA]
) -> None:
    frames = make_frames(2, 9, 64, 64)
    pca = quick_pca(to_video(torch.from_numpy(frames[:1])), 12)
    errors = errors_by_components(frames[1], pca)
    assert errors.shape == (13,) and (np.diff(errors) <= 0).all()
    target = to_video(torch.from_numpy(frames[1:]))[0].permute(1, 2, 3, 0).numpy()
    # frame 0 averages its four copies where the sum of squares counts each: nearly the same
    for count in (0, 5, 12):
        assert errors[count] == pytest.approx(np.square(rebuilt(frames[1], pca, count) - target).mean(), rel=0.02)


def test_the_same_total_spends_as_many_values(
    make_frames: Callable[..., np.ndarray],
    quick_pca: Callable[[Tensor, int], PatchPCA],
    nano: Callable[..., OneDVAConfig],
) -> None:
    frames = make_frames(1, 5, 64, 64)
    config = nano()
    pca = quick_pca(to_video(torch.from_numpy(make_frames(2, 5, 64, 64)[1:])), 16)
    scores = same_total_scores([Clip("a", frames[0], 24.0)], pca, config, tokens=(0, 16, 1000), size=64)
    errors = errors_by_components(frames[0], pca)
    # 6 values at each of 32 positions, and 10 more for each token: 6, 11 and 16 components a patch
    assert [score.tokens for score in scores] == [0, 16, 32]
    assert [score.psnr for score in scores] == [pytest.approx(decibels(errors[count])) for count in (6, 11, 16)]


def test_a_fraction_of_a_component_lies_between(
    make_frames: Callable[..., np.ndarray],
    quick_pca: Callable[[Tensor, int], PatchPCA],
    nano: Callable[..., OneDVAConfig],
) -> None:
    frames = make_frames(1, 5, 64, 64)
    pca = quick_pca(to_video(torch.from_numpy(frames)), 20)
    config = nano(latent_channels=9)
    (score,) = same_total_scores([Clip("a", frames[0], 24.0)], pca, config, tokens=(16,), size=64)
    errors = errors_by_components(frames[0], pca)
    assert score.psnr == pytest.approx(decibels((errors[10] + errors[11]) / 2))  # 6 + 16·9/32 = 10.5


def test_without_and_with_all_latents_both_floors_agree(
    make_frames: Callable[..., np.ndarray],
    quick_pca: Callable[[Tensor, int], PatchPCA],
    nano: Callable[..., OneDVAConfig],
) -> None:
    """Placement makes no difference where there is nothing to place, or everything."""
    frames = make_frames(1, 5, 64, 64)
    pca = quick_pca(to_video(torch.from_numpy(frames)), 16)
    clips = [Clip("a", frames[0], 24.0)]
    placed, spread = (
        [score.psnr for score in scored(clips, pca, nano(), tokens=(0, 16, 32), size=64)]
        for scored in (floor_scores, same_total_scores)
    )
    assert placed[0] == pytest.approx(spread[0], abs=1e-3) and placed[2] == pytest.approx(spread[2], abs=1e-3)
    assert placed[0] < placed[1] < placed[2]
