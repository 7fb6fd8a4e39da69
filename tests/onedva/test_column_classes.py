"""Lloyd's rule over columns: what differs parts, and parted columns need fewer directions."""

import pytest
import torch
from torch import Tensor

from onedva.column_classes import SHRINKAGE, by_motion, class_covariances, covariance, shrunk
from onedva.patches import mirror_signs

GROUPS, SIZE = 5, 8


def still_and_moving(count: int = 3000) -> tuple[Tensor, Tensor]:
    """Half the columns (count, 5·8) repeat one patch in every group, half change all the time; which is which."""
    generator = torch.Generator().manual_seed(0)
    moving = torch.arange(count) % 2 == 0
    patches = torch.randn(count, 1, SIZE, generator=generator).expand(-1, GROUPS, -1)
    steps = torch.randn(count, GROUPS, 1, generator=generator) * torch.tensor([2.0, 1.0] + [0.0] * (SIZE - 2))
    noise = 0.05 * torch.randn(count, GROUPS, SIZE, generator=generator)
    return (torch.where(moving[:, None, None], steps, patches) + noise).flatten(1), moving


def left_by(columns: Tensor, fitted: Tensor, kept: int) -> float:
    """Mean energy that the best class of each column leaves."""
    whole = columns.square().sum(1)
    held = torch.stack([(columns @ torch.linalg.eigh(one)[1][:, -kept:]).square().sum(1) for one in fitted])
    return (whole - held.amax(0)).mean().item()


def test_columns_of_two_kinds_part() -> None:
    columns, moving = still_and_moving()
    weights = torch.ones(len(columns))
    fitted, shares = class_covariances(columns, weights, classes=2, kept=8, groups=GROUPS)
    alone, whole = class_covariances(columns, weights, classes=1, kept=8, groups=GROUPS)
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.5]), atol=0.05, rtol=0)
    assert whole.tolist() == [1.0]
    assert alone.shape == (1, 40, 40) and torch.allclose(alone[0], covariance(columns, weights))
    assert left_by(columns, fitted, 8) < 0.25 * left_by(columns, alone, 8)
    held = [(columns @ torch.linalg.eigh(one)[1][:, -8:]).square().sum(1) for one in fitted]
    agree = ((held[1] > held[0]) == moving).float().mean().item()
    assert max(agree, 1 - agree) > 0.95


def test_what_is_mirrored_needs_no_class_of_its_own() -> None:
    """Columns of one kind, of which a quarter each is mirrored, and the four poses of one class."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(40, 8, generator=generator))[0]
    columns = torch.randn(2000, 8, generator=generator) @ directions.T
    signs = mirror_signs(4, 2).repeat(1, GROUPS)
    columns = columns * signs[torch.arange(2000) % 4]
    plain, mirrored = (
        class_covariances(columns, torch.ones(2000), classes=1, kept=8, groups=GROUPS, poses=poses)[0][0]
        for poses in (1, 4)
    )
    beyond = [torch.linalg.eigvalsh(one)[:-8].sum() / one.trace() for one in (plain, mirrored)]
    # a third of a class of 2000 columns is drawn towards all of them
    assert beyond[0] > 0.4 and beyond[1] < 0.5 * beyond[0]


def test_a_class_of_few_columns_stays_near_the_statistics_of_all() -> None:
    columns, moving = still_and_moving()
    weights = torch.ones(len(columns))
    everything = covariance(columns, weights)
    few = moving & (torch.arange(len(columns)) < 20)  # ten columns
    near = shrunk(columns[few], weights[few], everything)
    own = covariance(columns[few], weights[few])
    general = everything * own.trace() / everything.trace()
    torch.testing.assert_close(near, (10 * own + SHRINKAGE * general) / (10 + SHRINKAGE))
    assert torch.equal(shrunk(columns[:0], weights[:0], everything), everything)


def test_the_first_parting_is_by_motion_in_equal_shares() -> None:
    columns, moving = still_and_moving()
    label = by_motion(columns, classes=2, groups=GROUPS)
    assert label.bincount().tolist() == [1500, 1500]
    assert (label.bool() == moving).float().mean() > 0.95


def test_columns_of_a_weight_count_as_often() -> None:
    columns, _ = still_and_moving(60)
    weights = torch.arange(60) % 3 + 1.0
    torch.testing.assert_close(
        covariance(columns, weights),
        covariance(columns.repeat_interleave((torch.arange(60) % 3 + 1), 0), torch.ones(120)),
    )


def test_fewer_columns_than_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="4 classes need at least as many columns, got 3"):
        class_covariances(torch.randn(3, 40), torch.ones(3), classes=4, kept=8, groups=GROUPS)


def test_blank_columns_fit_without_dividing_by_nothing() -> None:
    assert not class_covariances(torch.zeros(50, 40), torch.ones(50), classes=4, kept=8, groups=GROUPS)[0].any()
