"""Video ↔ patches of 4×16×16, and the principal components of patches that latents and preview start from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE

ROW = 3 * PATCH_SIZE  # values of one row of a patch, which lie together in packed frames


def patchify(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) → (B, Tg, Hg, Wg, 3072). Frame 0 is repeated four times to fill a group of its own."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, PATCH_FRAMES, -1, -1), video[:, :, 1:]], dim=2)
    return rearrange(video, "b c (t f) (h p) (w q) -> b t h w (f p q c)", f=PATCH_FRAMES, p=PATCH_SIZE, q=PATCH_SIZE)


def rows_of(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) → rows of pixels (B, T, H, 3·W) in [-1, 1]: a video that was never planar.

    For graphs that begin with frames. A row of a patch moves as a whole: half of the time of moving single values.
    """
    return frames.flatten(3).float() / 127.5 - 1.0


def patchify_rows(rows: Tensor) -> Tensor:
    """(B, T, H, 3·W) → (B, Tg, Hg, Wg, 3072): `patchify` of rows."""
    rows = torch.cat([rows[:, :1].expand(-1, PATCH_FRAMES, -1, -1), rows[:, 1:]], dim=1)
    return rearrange(rows, "b (t f) (h p) (w n) -> b t h w (f p n)", f=PATCH_FRAMES, p=PATCH_SIZE, n=ROW)


def unpatchify(patches: Tensor) -> Tensor:
    """(B, Tg, Hg, Wg, 3072) → (B, 3, 1 + 4(Tg − 1), H, W): inverse of `patchify`; frame 0 averages its four outputs."""
    # split, not slices: the gradient of a slice is a whole video of zeros first; and of groups, which lie one after the
    # other, not of frames, which would be copied
    first, others = patches.split([1, patches.shape[1] - 1], dim=1)
    first = rearrange(first, "b 1 h w (f n) -> b 1 h w f n", f=PATCH_FRAMES).mean(dim=-2)
    return torch.cat([frames_of(first, 1), frames_of(others, PATCH_FRAMES)], dim=2)


def frames_of(patches: Tensor, frames: int) -> Tensor:
    """Patches of `frames` frames each, (B, Tg, Hg, Wg, 768·frames), → (B, 3, Tg·frames, H, W)."""
    return rearrange(patches, "b t h w (f p q c) -> b c (t f) (h p) (w q)", f=frames, p=PATCH_SIZE, q=PATCH_SIZE, c=3)


def to_levels(values: Tensor) -> Tensor:
    """[-1, 1] → uint8, rounded (halves to even) and clipped."""
    return ((values + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def rows_of_patches(patches: Tensor, frames: int) -> Tensor:
    """Patches of `frames` frames each, (B, Tg, Hg, Wg, 768·frames), → rows (B, Tg·frames, H, 3·W)."""
    return rearrange(patches, "b t h w (f p n) -> b (t f) (h p) (w n)", f=frames, p=PATCH_SIZE, n=ROW)


@dataclass(frozen=True)
class PatchPCA:
    """Principal components of patches, strongest first; by sectors where patches were mirrored.

    mean (3072,), components (C, 3072) orthonormal rows, std (C,) of each component over the patches it was fit on.
    """

    mean: Tensor
    components: Tensor
    std: Tensor


class PatchStatistics:
    """Running first and second moments of patches; `pca` turns them into components. fp64 sums of fp32 products."""

    def __init__(self, values: int = 3 * PATCH_FRAMES * PATCH_SIZE**2) -> None:
        self.count = 0
        self.sum = torch.zeros(values, dtype=torch.float64)
        self.products = torch.zeros(values, values, dtype=torch.float64)

    def add(self, patches: Tensor) -> None:
        """patches (…, 3072), any leading shape."""
        rows = patches.reshape(-1, patches.shape[-1]).float()
        self.count += rows.shape[0]
        self.sum += rows.sum(dim=0)
        self.products += rows.T @ rows

    def pca(self, components: int, *, poses: int = 1) -> PatchPCA:
        """The strongest components. poses 4: of patches and their mirror images, as many from each sector: the patches
        that stay what they are in both mirrors, and those that turn their sign left to right, top to bottom, both."""
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        if poses == 1:
            std, rows = strongest(covariance, components)
            return PatchPCA(mean.float(), rows.float().contiguous(), std.float())
        kinds = list(sectors(len(mean)))
        found = [strongest(kind @ covariance @ kind.T, components // poses) for kind in kinds]
        std = torch.cat([std for std, _ in found])
        rows = torch.cat([inside @ kind for (_, inside), kind in zip(found, kinds, strict=True)])
        mean = mean @ kinds[0].T @ kinds[0]  # of patches and their mirror images: what is even
        return PatchPCA(mean.float(), rows.float().contiguous(), std.float())


def strongest(covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Standard deviations (count,) and principal components (count, N), strongest first, of a covariance (N, N)."""
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    # eigenvectors have no sign of their own: make the largest entry positive, so a refit gives the same latents
    largest = vectors.abs().argmax(dim=0)
    vectors = vectors * torch.sign(vectors[largest, torch.arange(count)])
    return values.clamp(min=1e-8).sqrt(), vectors.T


def sectors(values: int) -> Iterator[Tensor]:
    """Orthonormal rows (values / 4, values), float64, of each kind of patch that mirrors turn no more than the sign of:
    even; odd left to right; odd top to bottom; odd both ways."""
    at = torch.arange(values).reshape(PATCH_FRAMES, PATCH_SIZE, PATCH_SIZE, -1)
    mirrored = [at, at.flip(2), at.flip(1), at.flip(1, 2)]
    corner = slice(PATCH_SIZE // 2)
    corners = torch.stack([one[:, corner, corner].reshape(-1) for one in mirrored], dim=1)  # (values / 4, 4)
    for signs in mirror_signs(4, 1).double().T:
        yield torch.zeros(len(corners), values, dtype=torch.float64).scatter_(
            1, corners, (signs / 2).expand_as(corners)
        )


def mirror_signs(poses: int, size: int) -> Tensor:
    """Signs (poses, sectors·size) of components, `size` in each sector, under each mirror: Hadamard's matrix."""
    at = torch.arange(poses, device="cpu")
    both = at[:, None] & at  # bit 0: left for right, and odd under that; bit 1: upside down
    return (1.0 - 2.0 * ((both ^ (both >> 1)) & 1)).repeat_interleave(size, dim=1)
