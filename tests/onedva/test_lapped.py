"""The overlap of patches: orthogonal, undone exactly, local to borders, and worth energy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva.lapped import HALF, fit_overlap, overlap_of, postfilter, prefilter


@pytest.fixture(scope="module")
def overlap() -> Tensor:
    torch.manual_seed(0)
    turn = torch.randn(HALF, HALF)
    return overlap_of(torch.matrix_exp(turn - turn.T))


@pytest.mark.parametrize("shape", [(2, 3, 5, 48, 32), (1, 16, 16), (1, 64, 16)])
def test_the_inverse_gives_the_picture_back(shape: tuple[int, ...], overlap: Tensor) -> None:
    pixels = torch.rand(shape)
    turned = prefilter(pixels, overlap)
    assert turned.shape == pixels.shape
    assert turned.square().sum().item() == pytest.approx(pixels.square().sum().item(), rel=1e-5)
    torch.testing.assert_close(postfilter(turned, overlap), pixels, atol=1e-5, rtol=0)
    assert (turned - pixels).abs().max() > 0.1 or shape == (1, 16, 16)


def test_it_is_the_filter_on_16_pixels_around_every_border(overlap: Tensor) -> None:
    """Against a loop; edges of the picture stay, and so do the middles of borders' ends where only one filter acts."""
    pixels = torch.rand(48, 32)
    wanted = pixels.clone()
    for start in (8, 24):
        wanted[start : start + 16] = overlap @ wanted[start : start + 16]
    wanted[:, 8:24] = wanted[:, 8:24] @ overlap.T
    torch.testing.assert_close(prefilter(pixels, overlap), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(wanted[:8, :8], pixels[:8, :8])


def test_packed_colours_are_filtered_as_planar_ones(overlap: Tensor) -> None:
    planar = torch.rand(2, 3, 4, 32, 48)
    packed = planar.permute(0, 2, 3, 4, 1).flatten(3)
    got = prefilter(packed, overlap, colours=3).unflatten(3, (-1, 3)).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(got, prefilter(planar, overlap), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("there", "colours"), [(prefilter, 1), (postfilter, 1), (prefilter, 3)])
def test_gradients_are_those_of_the_filter(there, colours: int, overlap: Tensor) -> None:
    """Against finite differences, edges and all."""
    pixels = torch.rand(2, 32, 16 * colours, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: there(values, overlap.double(), colours=colours), pixels)


def test_what_mirrors_across_a_border_passes(overlap: Tensor) -> None:
    line = torch.rand(8)
    pixels = torch.cat([line.flip(0), line, line.flip(0), line]).expand(16, -1)
    torch.testing.assert_close(prefilter(pixels, overlap), pixels, atol=1e-5, rtol=0)


def walks(count: int, seed: int) -> Tensor:
    """Random walks: as pictures do, neighbours agree."""
    steps = np.random.default_rng(seed).normal(size=(count, 48)).astype(np.float32)
    return torch.from_numpy(np.cumsum(steps, axis=1))


def test_a_fit_leaves_less_beyond_the_first_components() -> None:
    """On lines it has not seen; from the same lines the same filter."""
    fitted = fit_overlap([walks(2000, 0)])
    torch.testing.assert_close(fitted @ fitted.T, torch.eye(16), atol=1e-5, rtol=0)
    assert fitted.equal(fit_overlap([walks(2000, 0)]))

    def left(filtered: Tensor) -> float:
        patches = filtered[:, 16:32]
        return torch.linalg.eigvalsh(patches.T @ patches)[:-6].sum().item()

    lines = walks(2000, 1)
    turned = torch.stack([prefilter(line.expand(16, -1), fitted)[0] for line in lines])
    assert left(turned) < 0.95 * left(lines)


@pytest.mark.parametrize("lines", [[], [torch.zeros(4, 48)]])
def test_without_anything_to_see_patches_do_not_overlap(lines: list[Tensor]) -> None:
    assert fit_overlap(lines).equal(torch.eye(16))
