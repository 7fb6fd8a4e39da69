"""Placement against slow references: the detail map by its definition, anchors and lengths by their promises."""

import math
from fractions import Fraction

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva_runtime.noise import native
from onedva_runtime.placement import (
    choose_tokens,
    detail_map,
    fixed_anchors,
    grid_of,
    layer_scores,
    longest,
    place,
    reference_texture_and_motion,
    round_tokens,
    texture_and_motion,
)

details = npst.arrays(
    np.int64,
    st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)),
    elements=st.integers(0, 6),  # few values: many ties
)


def slow_detail(frames: np.ndarray) -> np.ndarray:
    """Pixel by pixel in Python's integers."""
    t, h, w = frames.shape[:3]
    luma = [[[(77 * int(r) + 150 * int(g) + 29 * int(b)) >> 8 for r, g, b in row] for row in frame] for frame in frames]
    gradients, motion = np.zeros(grid_of(t, h, w), object), np.zeros(grid_of(t, h, w), object)
    for i, y, x in np.ndindex(t, h, w):
        at = 0 if i == 0 else 1 + (i - 1) // 4, y // 16, x // 16
        beside = [(i, y - 1, x)] * (y > 0) + [(i, y, x - 1)] * (x > 0)
        before = [(i - 1 if i else 1, y, x)] * (t > 1)
        for energy, neighbours in ((gradients, beside), (motion, before)):
            energy[at] += sum((luma[i][y][x] - luma[a][b][c]) ** 2 for a, b, c in neighbours)
    roots = [math.isqrt(a * (b + a // 32)) if t > 1 else a for a, b in zip(gradients.flat, motion.flat, strict=True)]
    return np.array(roots, np.int64).reshape(grid_of(t, h, w))


@pytest.mark.parametrize("shape", [(1, 16, 32), (5, 32, 16), (9, 16, 16)])
def test_detail_is_its_definition(shape: tuple[int, int, int]) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    detail = detail_map(frames)
    assert detail.dtype == np.int64
    np.testing.assert_array_equal(detail, slow_detail(frames))


@pytest.mark.parametrize("shape", [(1, 16, 16), (9, 48, 80), (17, 32, 272)])
def test_numpy_and_cpp_agree(shape: tuple[int, int, int]) -> None:
    """Of what they are given, not only of what lies in one block of memory."""
    assert native() is not None
    frames = np.random.default_rng(1).integers(0, 256, (shape[0], shape[1], 2 * shape[2], 3), np.uint8)[:, :, ::2]
    for found, expected in zip(texture_and_motion(frames), reference_texture_and_motion(frames), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_largest_detail_does_not_overflow() -> None:
    checks = np.indices((5, 16, 32)).sum(axis=0) % 2 * 255
    frames = np.repeat(checks.astype(np.uint8)[..., None], 3, axis=-1)
    np.testing.assert_array_equal(detail_map(frames), slow_detail(frames))


def test_detail_is_where_things_move() -> None:
    frames = np.full((9, 48, 64, 3), 90, np.uint8)
    frames[6, 20:28, 36:44] = 200  # inside position (1, 2) of group 2
    frames[:, 4:8, 4:8] = 20  # as rich, but it stands still
    detail = detail_map(frames)
    still = detail[:, 0, 0]
    assert np.count_nonzero(detail) == 1 + len(still) and still[1] == still[2] > 0
    texture, motion = texture_and_motion(frames)
    assert motion[2, 1, 2] > 0 and not motion[:, 0, 0].any()
    assert detail[2, 1, 2] / texture[2, 1, 2] > 4 * still[2] / texture[2, 0, 0], (
        "what moves counts several times as much"
    )


@pytest.mark.parametrize("size", [(4, 32, 32), (0, 32, 32), (5, 30, 32), (5, 32, 40), (5, 0, 16), (5, 16, -16)])
def test_other_sizes_are_refused(size: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="1 \\+ 4n frames"):
        grid_of(*size)


def test_grid() -> None:
    assert grid_of(1, 16, 16) == (1, 1, 1)
    assert grid_of(17, 256, 464) == (5, 16, 29)


@settings(deadline=None)
@given(details, st.booleans())
def test_layers_are_worth_their_columns_detail_less_for_each_further_one(detail: np.ndarray, is_key: bool) -> None:
    first = 0 if is_key else 1
    scores = layer_scores(detail, is_key=is_key)
    assert scores.dtype == np.int64 and scores.shape == detail.shape
    for t, y, x in np.ndindex(detail.shape):
        column = sum(int(value) for value in detail[first:, y, x])
        wanted = math.floor(Fraction(5 * column, 5 + 3 * (t - first))) if t >= first else 0
        assert scores[t, y, x] == wanted


@settings(deadline=None)
@given(details, st.booleans(), st.integers(1, 9))
def test_no_layer_comes_before_the_one_under_it(detail: np.ndarray, is_key: bool, multiple: int) -> None:
    """Nothing is gained by a column's later layer without its stronger ones: no prefix has one."""
    first, columns = 0 if is_key else 1, detail[0].size
    anchors = place(detail, detail[first:].size, is_key=is_key, length_multiple=multiple)
    for column in range(columns):
        layers = [int(anchor) // columns for anchor in anchors if anchor % columns == column]
        assert layers == list(range(first, detail.shape[0]))


@settings(deadline=None)
@given(details, st.booleans(), st.integers(1, 9), st.data())
def test_anchors_are_distinct_and_the_strongest(
    detail: np.ndarray, is_key: bool, multiple: int, data: st.DataObject
) -> None:
    first = 0 if is_key else detail[0].size
    tokens = data.draw(st.integers(0, detail.size - first))
    anchors = place(detail, tokens, is_key=is_key, length_multiple=multiple)
    assert anchors.dtype == np.int64 and anchors.shape == (tokens,)
    assert len(set(anchors.tolist())) == tokens
    assert not tokens or first <= anchors.min() <= anchors.max() < detail.size
    whole = tokens // multiple * multiple
    left = np.setdiff1d(np.arange(first, detail.size), anchors[:whole])
    if whole and left.size:
        scores = layer_scores(detail, is_key=is_key).reshape(-1)
        assert scores[anchors[:whole]].min() >= scores[left].max()


@settings(deadline=None)
@given(details, st.booleans(), st.integers(1, 9))
def test_every_multiple_is_a_prefix(detail: np.ndarray, is_key: bool, multiple: int) -> None:
    count = detail.size if is_key else detail[1:].size
    longest_one = place(detail, count, is_key=is_key, length_multiple=multiple)
    for tokens in range(0, count + 1):
        shorter = place(detail, tokens, is_key=is_key, length_multiple=multiple)
        np.testing.assert_array_equal(shorter, longest_one[:tokens])
    for start in range(0, count, multiple):
        group = longest_one[start : start + multiple]
        np.testing.assert_array_equal(group, np.sort(group))


def test_a_known_placement() -> None:
    detail = np.array([[[1, 9, 3], [7, 7, 0]]])
    assert place(detail, 6, length_multiple=2).tolist() == [1, 3, 2, 4, 0, 5]
    assert place(detail, 3, length_multiple=2).tolist() == [1, 3, 2]
    assert place(np.concatenate([detail, detail]), 2, is_key=False, length_multiple=2).tolist() == [7, 9]


@pytest.mark.parametrize("tokens", [-1, 7])
def test_more_latents_than_positions_are_refused(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"between 0 and the 6 coded positions, got {tokens}"):
        place(np.zeros((1, 2, 3), np.int64), tokens)
    with pytest.raises(ValueError, match=f"between 0 and the 6 coded positions, got {tokens}"):
        fixed_anchors((1, 2, 3), tokens)
    with pytest.raises(ValueError, match="3 coded positions"):
        place(np.zeros((2, 1, 3), np.int64), 4, is_key=False)


def test_longest_and_rounding() -> None:
    assert longest((5, 16, 16), max_tokens=1024) == 1024
    assert longest((5, 8, 8), max_tokens=1024) == 320
    assert longest((5, 8, 8), max_tokens=1024, is_key=False) == 256
    assert [round_tokens(n, 100) for n in (0, 1, 16, 17, 96, 97, 5000)] == [0, 16, 16, 32, 96, 100, 100]
    with pytest.raises(ValueError, match="got -1"):
        round_tokens(-1, 100)


def test_the_policy_counts_layers_above_its_level() -> None:
    """Columns whose detail earns one, two and three layers of 5/5, 5/8 and 5/11 of it; the level is per pixel."""
    level = 100 * 9 * 256
    detail = np.zeros((3, 4, 4), np.int64)
    detail[1] = level + 1
    assert choose_tokens(detail, density=100, max_tokens=1024) == 16
    assert choose_tokens(detail, density=101, max_tokens=1024) == 0
    detail[2, :2] = level * 4 // 5  # half of the columns are above 8/5 of the level
    assert choose_tokens(detail, density=100, max_tokens=1024) == 32  # 24, rounded up
    detail[2] = level * 7 // 5  # all of them above 11/5
    assert choose_tokens(detail, density=100, max_tokens=1024) == 48
    assert choose_tokens(detail, density=100, max_tokens=24) == 24
    assert choose_tokens(detail, density=-1, max_tokens=1024, is_key=False) == 32
    detail[0], detail[1:] = 1000 * level, 0
    assert choose_tokens(detail, density=1, max_tokens=1024, is_key=False) == 0  # what is not coded earns nothing
    detail[1] = 100 * 8 * 256 + 1  # a continuation clip codes 8 of 9 frames
    assert choose_tokens(detail, density=100, max_tokens=1024, is_key=False) == 16


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 7), st.booleans())
def test_fixed_anchors_visit_every_position_once(groups: int, height: int, width: int, is_key: bool) -> None:
    first = 0 if is_key else height * width
    count = groups * height * width - first
    anchors = fixed_anchors((groups, height, width), count, is_key=is_key)
    assert sorted(anchors.tolist()) == list(range(first, first + count))
    for tokens in range(0, count, 7):
        assert fixed_anchors((groups, height, width), tokens, is_key=is_key).tolist() == anchors[:tokens].tolist()


def test_fixed_anchors_spread_early() -> None:
    anchors = fixed_anchors((5, 16, 16), 64)
    t, y, x = anchors // 256, anchors % 256 // 16, anchors % 16
    assert set(t.tolist()) == set(range(5))
    quarters = np.bincount(y // 8 * 2 + x // 8, minlength=4)
    assert quarters.min() >= 12
