"""Policies on made-up curves whose best lengths are known."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from onedva import policies
from onedva.config import OneDVAConfig
from onedva.policies import Curve, Frontier, equal_slopes, hull_steps, pooled, spearman, tokens_at
from onedva_runtime import placement

LENGTHS = np.arange(0, 65, 16)


def curve(errors: Sequence[float], *, predicted: np.ndarray | None = None, detail: int = 0) -> Curve:
    """A clip of 5 frames of 64×64 with these errors at 0, 16, 32, 48 and 64 latents."""
    return Curve(
        clip="a",
        lengths=LENGTHS,
        errors=np.array(errors),
        predicted=np.interp(np.arange(1, 65), LENGTHS, errors) if predicted is None else predicted,
        detail=np.full((2, 4, 8), detail, np.int64),
        motion=0.0,
    )


HARD = curve([0.09, 0.05, 0.03, 0.02, 0.015], detail=5000)
EASY = curve([0.001, 0.0009, 0.00085, 0.00082, 0.0008], detail=100)


def test_errors_between_lengths_are_log_linear() -> None:
    assert HARD.error_at(16) == pytest.approx(0.05)
    assert HARD.error_at(8) == pytest.approx(np.sqrt(0.09 * 0.05))
    spent = pooled([HARD, EASY], [[64, 0], [8, 8]])
    assert spent.tokens.tolist() == [32.0, 8.0]
    assert spent.errors[0] == pytest.approx((0.015 + 0.001) / 2)


def test_the_hull_skips_what_pays_too_little() -> None:
    # at 16 nothing is gained: the way to 32 is one step; at 64 the error rises again, which no one pays for
    steps = list(hull_steps(LENGTHS, np.array([1.0, 1.0, 0.4, 0.3, 0.5])))
    assert [length for _, length in steps] == [32.0, 48.0]
    assert [gain for gain, _ in steps] == pytest.approx([0.6 / 32, 0.1 / 16])


def test_equal_slopes_are_the_cheapest_of_all_choices() -> None:
    """Against trying all 125 choices of lengths for three clips."""
    errors = [np.array(row) for row in ([9, 5, 3, 2, 1.5], [4, 3.5, 1, 0.9, 0.85], [2, 1.9, 1.8, 1.7, 1.6])]
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3), axis=-1).reshape(-1, 3)
    totals = {tuple(LENGTHS[row].tolist()): sum(e[i] for e, i in zip(errors, row, strict=True)) for row in grid}
    for counts in equal_slopes([(LENGTHS, row) for row in errors]):
        reached = totals[tuple(int(count) for count in counts)]
        cheapest = min(sum(choice) for choice, total in totals.items() if total <= reached + 1e-9)
        assert sum(counts) == cheapest


def test_no_policy_beats_the_oracle_and_it_beats_fixed(nano: Callable[..., OneDVAConfig]) -> None:
    curves = [HARD, EASY]
    best = pooled(curves, policies.oracle(curves))
    same = pooled(curves, policies.fixed(curves))
    error = same.errors[2]  # 32 latents each
    cheapest = tokens_at(best, error)
    assert cheapest is not None and cheapest < 18  # the hard one takes all of them
    for other in (policies.auto(curves, nano()), policies.head_slope(curves, nano())):
        spent = tokens_at(pooled(curves, other), error)
        assert spent is not None and cheapest - 1e-6 <= spent < 32


def test_auto_covers_none_to_all_and_follows_detail(nano: Callable[..., OneDVAConfig]) -> None:
    settings = policies.auto([HARD, EASY], nano())
    assert settings[0] == [0.0, 0.0] and settings[-1][0] == 64.0
    assert all(hard >= easy for hard, easy in settings)
    density = 1.0
    chosen = policies.auto_lengths([HARD, EASY], nano(), density=density)
    assert chosen == [placement.choose_tokens(c.detail, density=density, max_tokens=64) for c in (HARD, EASY)]
    assert chosen[0] > chosen[1]


def test_a_true_prediction_makes_the_head_as_good_as_the_oracle(nano: Callable[..., OneDVAConfig]) -> None:
    curves = [HARD, EASY]
    config = nano()
    error = pooled(curves, [[32, 32]]).errors[0]
    head, best = (
        tokens_at(pooled(curves, found), error)
        for found in (policies.head_slope(curves, config), policies.oracle(curves))
    )
    assert head == pytest.approx(best, rel=0.05)
    misled = [
        curve(HARD.errors.tolist(), predicted=EASY.predicted),
        curve(EASY.errors.tolist(), predicted=HARD.predicted),
    ]
    spent = tokens_at(pooled(misled, policies.head_slope(misled, config)), error)
    assert spent is not None and spent > 40


def test_a_target_takes_the_shortest_that_meets_it(nano: Callable[..., OneDVAConfig]) -> None:
    config = nano()
    target = -10 * np.log10(0.03)
    assert policies.target_length(HARD, target - 0.01, config) == 32.0
    assert policies.target_length(HARD, target + 0.01, config) == 48.0
    assert policies.target_length(EASY, target, config) == 16.0
    settings = policies.head_target([HARD, EASY], config)
    assert settings[0] == [16.0, 16.0] and settings[-1] == [64.0, 64.0]


def test_tokens_at_an_error_interpolate_and_never_go_back() -> None:
    found = Frontier(np.array([0.0, 10, 20, 30]), np.array([1.0, 0.1, 0.2, 0.01]))
    assert tokens_at(found, 2.0) == 0.0
    assert tokens_at(found, 1.0) == 0.0
    assert tokens_at(found, np.sqrt(0.1)) == pytest.approx(5)
    assert tokens_at(found, 0.1) == pytest.approx(10)
    assert tokens_at(found, np.sqrt(0.001)) == pytest.approx(25)  # what rose at 20 was already reached at 10
    assert tokens_at(found, 0.001) is None


def test_rank_correlation_by_hand() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # 1 − 6·Σd² / (n·(n² − 1)) with differences 1, 1, 0, 0
    assert spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(1 - 6 * 2 / 60)
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(np.corrcoef([0.5, 0.5, 2, 3], [0, 1, 2, 3])[0, 1])
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0
