"""Patches and their principal components against NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva.patches import PatchStatistics, patchify, unpatchify


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 2), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))
def test_unpatchify_inverts_patchify(batch: int, groups: int, height: int, width: int) -> None:
    video = torch.randn(batch, 3, 1 + 4 * groups, 16 * height, 16 * width)
    patches = patchify(video)
    assert patches.shape == (batch, 1 + groups, height, width, 3072)
    # an average of four equal float32 numbers is that number
    assert torch.equal(unpatchify(patches), video)


def test_a_patch_is_its_block_of_pixels() -> None:
    video = torch.randn(1, 3, 9, 32, 48)
    patches = patchify(video).reshape(3, 2, 3, 4, 16, 16, 3)  # groups, grid, then frame, y, x, channel
    assert torch.equal(patches[2, 1, 2], video[0, :, 5:9, 16:32, 32:48].permute(1, 2, 3, 0))
    for copy in range(4):
        assert torch.equal(patches[0, 0, 1, copy], video[0, :, 0, :16, 16:32].permute(1, 2, 0))


def test_frame_zero_is_the_average_of_its_four_outputs() -> None:
    patches = torch.randn(2, 2, 1, 1, 3072)
    video = unpatchify(patches)
    assert video.shape == (2, 3, 5, 16, 16)
    mean = patches[:, 0, 0, 0].reshape(2, 4, 16, 16, 3).mean(dim=1).permute(0, 3, 1, 2)
    torch.testing.assert_close(video[:, :, 0], mean)


def test_principal_components_are_numpys() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 24)) @ random.normal(size=(24, 24)) + random.normal(size=24)
    statistics = PatchStatistics(values=24)
    statistics.add(torch.from_numpy(rows[:100]).reshape(2, 50, 24))  # in parts, of any shape
    statistics.add(torch.from_numpy(rows[100:]))
    pca = statistics.pca(5)

    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False, bias=True))
    np.testing.assert_allclose(pca.mean, rows.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(pca.std, np.sqrt(values[::-1][:5]), rtol=1e-4)
    overlap = pca.components.numpy() @ vectors[:, ::-1][:, :5]
    np.testing.assert_allclose(np.abs(overlap), np.eye(5), atol=1e-3)
    np.testing.assert_allclose(pca.components @ pca.components.T, np.eye(5), atol=1e-5)


def test_components_of_mirrored_patches_are_even_or_odd() -> None:
    """As many of each kind, strongest first, and together those of the patches with all of their mirror images."""
    rows = torch.randn(40, 3072, dtype=torch.float64) @ torch.diag(torch.linspace(1, 0.1, 3072, dtype=torch.float64))
    at = torch.arange(3072).reshape(4, 16, 16, 3)
    mirrors = [at.flip(2).reshape(-1), at.flip(1).reshape(-1)]  # left for right, upside down
    statistics, of_all = PatchStatistics(), PatchStatistics()
    statistics.add(rows)
    for turned in (rows, rows[:, mirrors[0]], rows[:, mirrors[1]], rows[:, mirrors[0]][:, mirrors[1]]):
        of_all.add(turned)
    pca, whole = statistics.pca(16, poses=4), of_all.pca(48)
    assert pca.components.shape == (16, 3072) and (pca.std.reshape(4, 4).diff(dim=1) <= 0).all()
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(16), atol=1e-5, rtol=0)
    for sector, part in enumerate(pca.components.split(4)):
        for bit, mirror in enumerate(mirrors):
            torch.testing.assert_close(part[:, mirror], part * (-1) ** (sector >> bit & 1))
    assert torch.equal(pca.mean[mirrors[0]], pca.mean) and torch.equal(pca.mean[mirrors[1]], pca.mean)
    torch.testing.assert_close(pca.std.max(), whole.std[0], atol=1e-4, rtol=1e-3)
    inside = (pca.components @ whole.components.T).square().sum(dim=1)
    assert (inside[pca.std > whole.std[-1] * 1.02] > 0.98).all()


def test_components_have_a_sign_of_their_own() -> None:
    random = np.random.default_rng(1)
    rows = torch.from_numpy(random.normal(size=(300, 12)) * np.arange(1, 13))
    found = []
    for order in (torch.arange(300), torch.arange(299, -1, -1)):
        statistics = PatchStatistics(values=12)
        statistics.add(rows[order])
        found.append(statistics.pca(6).components)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=0)
    for row in found[0]:
        assert row[row.abs().argmax()] > 0


def test_directions_without_variance_keep_a_positive_std() -> None:
    statistics = PatchStatistics(values=6)
    statistics.add(torch.randn(50, 1) * torch.tensor([[1.0, 0, 0, 0, 0, 0]]))
    pca = statistics.pca(3)
    assert (pca.std > 0).all()
    assert pca.std[1].item() == pytest.approx(1e-4, rel=1e-3)
