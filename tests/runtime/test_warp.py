"""Frames on a canvas where their scene stands still, and back: nothing is lost, and the C++ is the NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scenery import filmed, scenery

from onedva_runtime import warp
from onedva_runtime.metrics import psnr
from onedva_runtime.noise import native
from onedva_runtime.warp import PARTS, SWING, Camera, follow, hold_still, shrinkage

Frames = NDArray[np.uint8]


def swaying(frames: int, *, seed: int = 0, reach: float = 4.0) -> Camera:
    """A hand-held camera."""
    random = np.random.default_rng(seed)
    path = random.uniform(-1, 1, (frames, 6)) * ([reach * PARTS] * 2 + [0.02 * SWING] * 4)
    path[frames // 2] = 0
    return Camera(np.rint(path).astype(np.int16))


@pytest.mark.parametrize("taps", [4, 16])
@pytest.mark.parametrize("shape", [(5, 64, 80, 3), (3, 1, 1, 1), (2, 5, 3, 3), (4, 33, 47, 1), (1, 16, 200, 3)])
def test_the_cpp_gives_the_bits_of_the_reference(shape: tuple[int, ...], taps: int) -> None:
    random, module = np.random.default_rng(0), native()
    assert module is not None, "the suite must test the C++ path"
    frames = random.integers(0, 256, shape, np.uint8)
    views = np.array([[1.0, 0, 0], [0, 1, 0]]) + random.normal(0, 0.1, (shape[0], 2, 3)) * (1, 1, 40)
    maps = warp._fixed(views)
    filters = [random.normal(0, 0.3, (128, taps)).astype(np.float32) for _ in range(2)]
    for threads in (1, 3):
        out = np.empty_like(frames)
        module.warp(out, frames, maps, *filters, threads)
        np.testing.assert_array_equal(out, warp.reference_warp(frames, maps, *filters))
    filled, wanted = frames.copy(), frames.copy()
    module.fill(filled, maps)
    warp.reference_fill(wanted, maps)
    np.testing.assert_array_equal(filled, wanted)
    assert shape[0] < 2 or max(shape) < 10 or (filled != frames).any()


def test_without_the_cpp_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    frames, path = scenery(48, 64)[None].repeat(5, axis=0), swaying(5)
    held, back = hold_still(frames, path), follow(frames, path)
    monkeypatch.setattr(warp, "native", lambda: None)
    np.testing.assert_array_equal(hold_still(frames, path), held)
    np.testing.assert_array_equal(follow(frames, path), back)


@pytest.mark.parametrize("reach", [0.5, 4, 12])
def test_what_is_held_still_comes_back(reach: float) -> None:
    """Edges, too: the canvas holds all that any frame shows."""
    path = swaying(9, reach=reach)
    frames = filmed(path.path, 96, 112)
    held = hold_still(frames, path)
    assert held.dtype == np.uint8 and held.shape == frames.shape
    assert psnr(held[4:5].repeat(9, axis=0), held) > psnr(frames[4:5].repeat(9, axis=0), frames) + 10
    back = follow(held, path)
    assert psnr(frames, back) > 45
    edges = np.ones(frames.shape[1:3], bool)
    edges[2:-2, 2:-2] = False
    assert psnr(frames[:, edges], back[:, edges]) > 40


def test_a_path_of_zeros_changes_nothing() -> None:
    frames, path = scenery(48, 64)[None].repeat(3, axis=0), Camera(np.zeros((3, 6), np.int16))
    np.testing.assert_array_equal(hold_still(frames, path), frames)
    np.testing.assert_array_equal(follow(frames, path), frames)
    assert shrinkage(path, 48, 64) == 1


@pytest.mark.parametrize(
    ("numbers", "place"),
    [
        ((8 * PARTS, 0, 0, 0, 0, 0), (10 + 8, 20)),
        ((0, -5 * PARTS, 0, 0, 0, 0), (10, 20 - 5)),
        ((0, 0, SWING // 5, 0, 0, 0), (10 + 2, 20)),
        ((0, 0, 0, SWING // 10, 0, 0), (10 + 2, 20)),
        ((0, 0, 0, 0, SWING // 5, 0), (10, 20 + 2)),
        ((0, 0, 0, 0, 0, SWING // 10), (10, 20 + 2)),
    ],
)
def test_what_a_path_says(numbers: tuple[int, ...], place: tuple[int, int]) -> None:
    """A bright spot 10 below and 20 right of the centre of a still scene is seen where the path says."""
    size = 101
    path = np.array([[0] * 6, numbers], np.int16)
    still = np.zeros((2, size, size, 1), np.uint8)
    y, x = np.mgrid[:size, :size] - size // 2
    still[:, :, :, 0] = 250 * np.exp(-((y - 10) ** 2 + (x - 20) ** 2) / 8)
    seen = hold_still(still, Camera(path))[0, ..., 0]  # the spot of the middle frame, on the canvas
    canvas = np.stack([seen, seen])[..., None]
    back = follow(canvas, Camera(path))[..., 0]
    assert np.unravel_index(back[0].argmax(), (size, size)) == (60, 70)
    assert np.unravel_index(back[1].argmax(), (size, size)) == (50 + place[0], 50 + place[1])


def test_a_fraction_of_a_pixel_is_what_the_scene_moved_by() -> None:
    """A wave that moves by three eighths of a pixel a frame stands still, its ends too."""
    x, t = np.arange(96)[None, None, :, None], np.arange(17)[:, None, None, None]
    wave = np.broadcast_to(128 + 90 * np.sin((x - 0.375 * (t - 8)) / 5), (17, 32, 96, 3))
    path = np.zeros((17, 6), np.int16)
    path[:, 1] = np.rint(0.375 * PARTS * (np.arange(17) - 8))
    held = hold_still(np.rint(wave).astype(np.uint8), Camera(path)).astype(int)
    assert np.abs(held - held[8])[:, :, 8:-8].max() <= 2
    assert np.abs(held - held[8]).max() <= 12


def test_what_a_frame_does_not_show_is_what_the_nearest_does() -> None:
    levels = np.array([10, 20, 30, 40, 50], np.uint8)
    frames = np.broadcast_to(levels[:, None, None, None], (5, 40, 40, 1)).copy()
    path = np.zeros((5, 6), np.int16)
    path[:, 1] = PARTS * np.array([8, 0, 0, 0, -8])  # the first sees most of the left, the last most of the right
    held = hold_still(frames, Camera(path))
    np.testing.assert_array_equal(held[:, 20, 0, 0], [10, 10, 10, 10, 10])
    np.testing.assert_array_equal(held[:, 20, 20, 0], levels)
    np.testing.assert_array_equal(held[:, 20, 39, 0], [50, 50, 50, 50, 50])
    between = int(40 * 10 / 56)  # beyond the first frames' view on the right, inside of the middle ones'
    np.testing.assert_array_equal(held[:, 20, 39 - between, 0], [20, 20, 30, 40, 50])


def test_the_first_frames_of_a_path() -> None:
    frames, path = np.stack([scenery(64, 64, seed=seed) for seed in range(5)]), swaying(5)
    alone, among = hold_still(frames[:1], path)[0], hold_still(frames, path)[0]
    assert (alone == among).mean() > 0.7  # all but what the first frame does not show


def test_large_pans_shrink_the_scene() -> None:
    path = np.zeros((3, 6), np.int16)
    path[:, 1] = PARTS * np.array([-16, 0, 16])
    assert shrinkage(Camera(path), 64, 128) == pytest.approx(128 / 160)
