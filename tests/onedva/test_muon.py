"""Our Muon against PyTorch's: the same updates and state, and what float32 changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from onedva.muon import Muon, orthogonal

SHAPES = ((24, 16), (16, 24), (16, 16), (16, 24))


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def stepped(optimizer: torch.optim.Optimizer, matrices: list[nn.Parameter], *, steps: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=generator)
        matrices[2].grad = None  # a matrix that a step did not use
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-5), (torch.float32, 5e-4)])
def test_it_takes_the_steps_of_torch_optim_muon(dtype: torch.dtype, tolerance: float) -> None:
    own, theirs = parameters(), parameters()
    begun = [matrix.detach().clone() for matrix in own]
    ours = Muon(own, dtype=dtype, lr=1e-2, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for got, wanted, start in zip(stepped(ours, own), stepped(reference, theirs), begun, strict=True):
        torch.testing.assert_close(got, wanted, atol=tolerance, rtol=0)
        assert torch.equal(got, start) or (got - start).abs().max() > 10 * tolerance
    assert [set(ours.state[matrix]) for matrix in own] == [set(reference.state[matrix]) for matrix in theirs]
    buffer = ours.state[own[0]]["momentum_buffer"]
    torch.testing.assert_close(buffer, reference.state[theirs[0]]["momentum_buffer"])
    assert ours.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


@pytest.mark.parametrize("shape", [(2, 8, 24), (2, 24, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    given = torch.randn(shape) * 7
    found = orthogonal(given, (3.4445, -4.775, 2.0315), steps=5, eps=1e-7)
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    assert (
        (found * (left @ right)).sum() / (found.norm() * (left @ right).norm())
    ).item() > 0.98  # the same directions
