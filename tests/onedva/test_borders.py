"""Borders of patches: jumps that errors explain are taken back, edges of the picture and everything else stay."""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from onedva.borders import SHARE, edge_values, soften_borders


def softened(video: Tensor, variance: Tensor, frames: int = 1) -> Tensor:
    """Through patches and back: video (B, Tg·f, H, W, 3), variance (B, Tg, Hg, Wg)."""
    layout = "b (t f) (h p) (w q) c -> b t h w (f p q c)"
    patches = rearrange(video, layout, f=frames, p=16, q=16)
    out = soften_borders(patches, edge_values(patches, frames), variance, frames)
    back = "b t h w (f p q c) -> b (t f) (h p) (w q) c"
    return rearrange(out, back, f=frames, p=16, q=16, c=3)


def with_step(height: int = 32, width: int = 48) -> Tensor:
    """0 left of column 16, 0.1 from there on."""
    video = torch.zeros(1, 1, height, width, 3)
    video[:, :, :, 16:] = 0.1
    return video


def test_a_jump_is_shared_by_the_variance_of_each_side() -> None:
    variance = torch.tensor([3.0, 1.0, 1.0]).expand(1, 1, 2, 3)
    row = softened(with_step(), variance)[0, 0, 5, :, 0]
    taken = SHARE * 0.1
    ramp = torch.tensor([1.0, 2 / 3, 1 / 3])
    torch.testing.assert_close(row[13:16], (0.75 * taken * ramp).flip(0), atol=1e-4, rtol=0)
    torch.testing.assert_close(row[16:19], 0.1 - 0.25 * taken * ramp, atol=1e-4, rtol=0)
    torch.testing.assert_close(row[:13], torch.zeros(13), atol=1e-6, rtol=0)
    torch.testing.assert_close(row[19:], torch.full((29,), 0.1), atol=1e-6, rtol=0)


def test_rows_are_softened_as_columns_are() -> None:
    variance = torch.rand(1, 1, 3, 2) + 0.5
    turned = softened(with_step(32, 48).transpose(2, 3), variance)
    other = softened(with_step(32, 48), variance.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, other, atol=1e-6, rtol=0)
    assert (turned - with_step(32, 48).transpose(2, 3)).abs().max() > 0.01


def test_where_no_error_is_expected_nothing_changes() -> None:
    video = torch.rand(2, 8, 32, 48, 3)
    assert torch.equal(softened(video, torch.zeros(2, 2, 2, 3), frames=4), video)


def test_slopes_and_edges_of_the_picture_stay() -> None:
    """A ramp of light has no jump; one far beyond what errors explain is an edge."""
    ramp = torch.linspace(-1, 1, 48).expand(1, 1, 32, 48)[..., None].expand(-1, -1, -1, -1, 3)
    torch.testing.assert_close(softened(ramp, torch.ones(1, 1, 2, 3)), ramp, atol=1e-5, rtol=0)
    edge = 10 * with_step()  # a jump of 1 where errors are of a hundredth
    assert (softened(edge, torch.full((1, 1, 2, 3), 1e-4)) - edge).abs().max() < 0.01


def test_errors_of_patches_fall() -> None:
    """A smooth picture, another constant error in every patch: what is left is less, most of all at borders."""
    torch.manual_seed(0)
    error = 0.05 * torch.randn(1, 4, 4, 6, 1).repeat_interleave(16, 2).repeat_interleave(16, 3)
    left = softened(error.expand(-1, -1, -1, -1, 3), torch.full((1, 4, 4, 6), 0.0025))
    assert left.square().mean() < 0.97 * error.square().mean()

    def jump(values: Tensor) -> Tensor:
        return (values[..., 16::16, :] - values[..., 15:-1:16, :]).square().mean()

    assert jump(left.movedim(3, 4)[..., 0, :, None]) < 0.4 * jump(error.movedim(3, 4)[..., 0, :, None])


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 1)])
def test_a_single_patch_has_no_borders_inside(shape: tuple[int, int]) -> None:
    video = torch.rand(1, 1, 16 * shape[0], 16 * shape[1], 3)
    out = softened(video, torch.ones(1, 1, *shape))
    assert torch.equal(out, video) == (shape == (1, 1))
