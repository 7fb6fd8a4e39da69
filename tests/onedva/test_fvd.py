"""The Fréchet distance against values worked out by hand, and the network a user gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onedva.fvd import frechet_distance, load_video_features


def test_one_dimension_by_hand() -> None:
    """(μ₁ − μ₂)² + (σ₁ − σ₂)²: means 2 and 5, variances 4 and 16 (divided by N − 1)."""
    one, other = np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [5.0], [9.0]])
    assert frechet_distance(one, other) == pytest.approx(9 + 4)


def test_covariances_that_do_not_commute() -> None:
    """tr (Σ₁Σ₂)^½ of 2×2 matrices is √(tr Σ₁Σ₂ + 2·√(det Σ₁Σ₂)): here Σ₁ = [[2, 1], [1, 2]] and Σ₂ = diag(1, 4)."""
    corners = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) * np.sqrt(3 / 2)  # covariance: the identity
    first = corners @ np.linalg.cholesky(np.array([[2.0, 1], [1, 2]])).T
    second = corners @ np.diag([1.0, 2.0])
    expected = 4 + 5 - 2 * np.sqrt(10 + 2 * np.sqrt(12))
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(first, second + np.array([3, 4])) == pytest.approx(expected + 25)


def test_equal_sets_have_no_distance_even_with_fewer_rows_than_columns() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 40))
    assert frechet_distance(rows, rows[::-1]) == pytest.approx(0, abs=1e-6)


def test_sets_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 3\)"):
        frechet_distance(np.zeros((1, 3)), np.zeros((2, 3)))


class Network(nn.Module):
    def forward(self, video: Tensor, rescale: bool, resize: bool, return_features: bool) -> Tensor:
        assert rescale and resize and return_features
        return torch.stack([video[:, 0, 0].mean(dim=(1, 2)), video[:, 2].amax(dim=(1, 2, 3))], dim=1)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_network_sees_levels_of_255(tmp_path: Path, make_frames: Callable[..., np.ndarray]) -> None:
    torch.jit.script(Network()).save(str(tmp_path / "i3d.pt"))
    features = load_video_features(tmp_path / "i3d.pt")
    frames = make_frames(1, 12, 32, 48)[0]
    found = features(frames)
    assert found.dtype == np.float64
    assert found == pytest.approx([frames[0, ..., 0].mean(), frames[..., 2].max()], rel=1e-5)
    with pytest.raises(ValueError, match="at least 10 frames"):
        features(frames[:9])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no FVD weights"):
        load_video_features(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not a network")
    with pytest.raises(ValueError, match=r"text\.pt is no TorchScript"):
        load_video_features(tmp_path / "text.pt")
