"""The texture distance: zero for equal sets, growing with blur, blind to place and order."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from onedva.texture import blur, expand, laplacian_pyramid, patches_by_level, sliced_wasserstein, texture_distance


@pytest.fixture
def frames(make_frames: Callable[..., np.ndarray]) -> np.ndarray:
    return make_frames(1, 5, 64, 80)[0]


def blurred(frames: np.ndarray, times: int) -> np.ndarray:
    images = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    for _ in range(times):
        images = blur(images)
    return images.round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()


def test_equal_videos_have_no_distance(frames: np.ndarray) -> None:
    seen = [patches_by_level(frames, count=300, seed=3)]
    assert texture_distance(seen, seen) == [0.0, 0.0, 0.0]  # 64, 32 and 16 rows


def test_distance_grows_with_blur_most_where_it_is_finest(frames: np.ndarray) -> None:
    source = [patches_by_level(frames, count=1000, seed=0)]
    levels = [
        texture_distance(source, [patches_by_level(blurred(frames, times), count=1000, seed=0)]) for times in (1, 2, 8)
    ]
    means = [np.mean(level) for level in levels]
    assert 0 < means[0] < means[1] < means[2]
    assert levels[0][0] > 3 * levels[0][-1]


def test_the_order_of_patches_does_not_matter(frames: np.ndarray) -> None:
    one, other = (patches_by_level(part, count=200, seed=0)[0] for part in (frames, blurred(frames, 2)))
    shuffled = np.random.default_rng(0).permutation(other)
    assert sliced_wasserstein(one, shuffled) == pytest.approx(sliced_wasserstein(one, other), rel=1e-5)
    assert sliced_wasserstein(one, np.random.default_rng(1).permutation(one)) == pytest.approx(0, abs=1e-3)


def test_the_seed_decides(frames: np.ndarray) -> None:
    first, again, other = (patches_by_level(frames, count=50, seed=seed)[0] for seed in (4, 4, 5))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    moved = other + 3 * np.sign(other)
    assert sliced_wasserstein(first, moved, seed=1) == sliced_wasserstein(first, moved, seed=1)
    assert sliced_wasserstein(first, moved, seed=1) != sliced_wasserstein(first, moved, seed=2)


def test_a_shift_is_its_mean_projection() -> None:
    """Two sets that differ by one vector are as far apart as it is long along each direction."""
    random = np.random.default_rng(0)
    source = random.standard_normal((5000, 49, 3)).astype(np.float32)
    source = (source - source.mean(axis=(0, 1))) / source.std(axis=(0, 1))
    shift = np.full((49, 3), 0.2, np.float32)
    # |direction · shift| of unit directions in 147 dimensions has the mean √(2 / (147 π)) · |shift|
    expected = 1e3 * np.linalg.norm(shift) * np.sqrt(2 / (147 * np.pi))
    assert sliced_wasserstein(source, source + shift, directions=2000) == pytest.approx(expected, rel=0.05)


def test_the_scale_and_offset_of_pixels_do_not_matter(frames: np.ndarray) -> None:
    one, other = (patches_by_level(part, count=200, seed=0)[0] for part in (frames, blurred(frames, 2)))
    scaled = sliced_wasserstein(3 * one + 20, 3 * other + 20)
    assert scaled == pytest.approx(sliced_wasserstein(one, other), rel=1e-3)


def test_less_contrast_is_far_unless_each_set_is_its_own_ruler(frames: np.ndarray) -> None:
    source = patches_by_level(frames, count=500, seed=0)[0]
    mean = source.mean(axis=(0, 1))
    less = mean + 0.5 * (source - mean)
    assert sliced_wasserstein(source, less) > 100
    assert sliced_wasserstein(source, less, normalise="own") == pytest.approx(0, abs=0.01)
    sets = [[source]], [[less]]
    assert texture_distance(*sets, normalise="own") == [sliced_wasserstein(source, less, normalise="own")]


def test_the_pyramid_adds_up_to_the_image() -> None:
    images = torch.rand(1, 3, 70, 64, generator=torch.Generator().manual_seed(0))
    levels = laplacian_pyramid(images)
    assert [tuple(level.shape[2:]) for level in levels] == [(70, 64), (35, 32), (18, 16)]
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        whole = level + expand(whole, (level.shape[2], level.shape[3]))
    assert torch.allclose(whole, images, atol=1e-6)
    flat = laplacian_pyramid(torch.full((1, 3, 64, 64), 0.3))
    assert all(level.abs().max() < 1e-6 for level in flat[:-1]) and torch.allclose(flat[-1], torch.tensor(0.3))


def test_sets_must_be_of_one_size() -> None:
    with pytest.raises(ValueError, match="one shape"):
        sliced_wasserstein(np.zeros((4, 49, 3), np.float32), np.zeros((5, 49, 3), np.float32))
