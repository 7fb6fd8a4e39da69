"""A lapped transform: what crosses the border of two patches is turned before patches are cut out, and back after.

Patches that are coded each by itself know nothing of each other: what goes on across a border is coded twice, and
errors jump there. An orthogonal filter over 16 pixels, 8 on each side of a border, moves what both sides share into few
values (Malvar & Staelin, "The LOT: transform coding without blocking effects", IEEE Trans. ASSP 37(4), 1989, in the
form of Tran, Liang & Tu, "Lapped transform via time-domain pre- and post-filtering", IEEE Trans. Signal Processing
51(6), 2003): what both sides have alike, mirrored, passes, and what they differ in is rotated. Energies stay those of
pixels, and white noise stays white.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from onedva_runtime.placement import PATCH_SIZE

HALF = PATCH_SIZE // 2
LINE = 3 * PATCH_SIZE  # pixels of a line that `fit_overlap` looks at: a patch with half of each neighbour, and to spare
KEPT = (4, 6, 8)  # principal components of a patch's 16 pixels of a line, beyond which little energy shall be left
ROUNDS = 300
RATE = 0.02


def prefilter(pixels: Tensor, overlap: Tensor, *, colours: int = 1) -> Tensor:
    """Pixels (…, H, W·colours) → what patches are cut out of, the same shape; H and W are multiples of 16.

    colours: values of a pixel that lie together. overlap (16, 16): of `overlap_of`. The picture's own edges stay.
    """
    return filtered(pixels, overlap, colours)


def postfilter(pixels: Tensor, overlap: Tensor, *, colours: int = 1) -> Tensor:
    """Inverse of `prefilter`."""
    return filtered(pixels, overlap.T, colours)


def filtered(pixels: Tensor, matrix: Tensor, colours: int) -> Tensor:
    if pixels.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return AcrossBorders.apply(pixels, matrix, colours)  # pyright: ignore[reportReturnType]
    return across_borders(pixels, matrix, colours)


class AcrossBorders(torch.autograd.Function):
    """`across_borders` by a filter of `overlap_of`. It is orthogonal, so gradients go back by its inverse: they need no
    pictures of zeros that parts are added to."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, matrix: Tensor, colours: int) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.colours = colours
        return across_borders(pixels, matrix, colours)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (matrix,) = ctx.saved_tensors
        return across_borders(gradients[0], matrix.T, ctx.colours), None, None


def across_borders(pixels: Tensor, matrix: Tensor, colours: int) -> Tensor:
    """`matrix` (16, 16) on the 16 pixels around every border between patches, along columns and along rows."""
    matrix = matrix.to(pixels.dtype)
    mirror = torch.eye(HALF, dtype=pixels.dtype, device=pixels.device).flip(0)
    # a mirrored picture differs in nothing across its edge, so the filter leaves the edge as it is
    parts = [mirror @ pixels[..., :HALF, :], pixels, mirror @ pixels[..., -HALF:, :]]
    pixels = torch.cat(parts, dim=-2).unflatten(-2, (-1, PATCH_SIZE))
    pixels = (matrix @ pixels).flatten(-3, -2)  # (…, 8 + H + 8, W·colours)
    matrix, mirror, half = by_colour(matrix, colours), by_colour(mirror, colours), HALF * colours
    parts = [pixels[..., :half] @ mirror, pixels, pixels[..., -half:] @ mirror]
    pixels = torch.cat(parts, dim=-1).unflatten(-1, (-1, 2 * half))
    pixels = (pixels @ matrix.T).flatten(-2)
    return pixels[..., HALF:-HALF, half:-half]


def by_colour(matrix: Tensor, colours: int) -> Tensor:
    """(N, N) → (N·colours, N·colours): the same for each of the colours that lie together."""
    each = torch.eye(colours, dtype=matrix.dtype, device=matrix.device)
    return (matrix[:, None, :, None] * each[None, :, None]).reshape(len(matrix) * colours, -1)


def overlap_of(rotation: Tensor) -> Tensor:
    """The filter (16, 16) that rotates by `rotation` (8, 8) in what both sides of a border differ."""
    one = torch.eye(HALF, dtype=rotation.dtype)
    mirror = one.flip(0)
    butterfly = torch.cat([torch.cat([one, mirror], dim=1), torch.cat([mirror, -one], dim=1)]) / 2**0.5
    return butterfly @ torch.block_diag(one, rotation) @ butterfly


def fit_overlap(lines: Iterable[Tensor]) -> Tensor:
    """The filter that leaves least energy of patches beyond their first few principal components, along one axis.

    lines: parts (N, 48) of lines of pixels; without any, patches do not overlap. Gradient steps on the rotation; the
    same for the same lines.
    """
    moments = torch.zeros(LINE, LINE, dtype=torch.float64)
    for part in lines:
        moments += part.double().T @ part.double()
    if not moments.any():
        return torch.eye(PATCH_SIZE)
    moments /= moments.trace()
    turn = torch.zeros(HALF, HALF, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([turn], lr=RATE)
    edge = torch.eye(HALF, dtype=torch.float64)
    for _ in range(ROUNDS):
        overlap = overlap_of(torch.matrix_exp(turn - turn.T))
        patch = torch.block_diag(edge, overlap, overlap, edge)[PATCH_SIZE : 2 * PATCH_SIZE]  # the middle one
        energies = torch.linalg.eigvalsh(patch @ moments @ patch.T)  # weakest first
        left = torch.stack([energies[: PATCH_SIZE - kept].sum() for kept in KEPT]).sum()
        optimiser.zero_grad()
        left.backward()
        optimiser.step()
    return overlap_of(torch.matrix_exp(turn - turn.T)).detach().float()
