"""Video ↔ patches of 4×16×16, and the principal components of patches that latents and preview start from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from onedva_runtime.placement import PATCH_FRAMES, PATCH_SIZE


def patchify(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) → (B, Tg, Hg, Wg, 3072). Frame 0 is repeated four times to fill a group of its own."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, PATCH_FRAMES, -1, -1), video[:, :, 1:]], dim=2)
    return rearrange(video, "b c (t f) (h p) (w q) -> b t h w (f p q c)", f=PATCH_FRAMES, p=PATCH_SIZE, q=PATCH_SIZE)


def unpatchify(patches: Tensor) -> Tensor:
    """(B, Tg, Hg, Wg, 3072) → (B, 3, 1 + 4(Tg − 1), H, W): inverse of `patchify`; frame 0 averages its four outputs."""
    video = rearrange(
        patches, "b t h w (f p q c) -> b c (t f) (h p) (w q)", f=PATCH_FRAMES, p=PATCH_SIZE, q=PATCH_SIZE, c=3
    )
    # split, not slices: the gradient of a slice is a whole video of zeros first
    first, others = video.split([PATCH_FRAMES, video.shape[2] - PATCH_FRAMES], dim=2)
    return torch.cat([first.mean(dim=2, keepdim=True), others], dim=2)


@dataclass(frozen=True)
class PatchPCA:
    """Principal components of patches, strongest first.

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

    def pca(self, components: int) -> PatchPCA:
        mean = self.sum / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
        # eigenvectors have no sign of their own: make the largest entry positive, so a refit gives the same latents
        largest = vectors.abs().argmax(dim=0)
        vectors = vectors * torch.sign(vectors[largest, torch.arange(components)])
        return PatchPCA(mean.float(), vectors.T.float().contiguous(), values.clamp(min=1e-8).sqrt().float())
