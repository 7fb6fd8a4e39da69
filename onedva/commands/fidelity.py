"""How near a reconstruction is, gathered clip by clip: PSNR of the pooled squared error, and the mean SSIM of the
frames."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["PSNR_CAP", "Fidelity", "pooled_psnr"]

SSIM_WINDOW = 11  # pixels: smaller frames have no SSIM
PSNR_CAP = 100.0  # dB; equal frames have no finite PSNR, and neither JSON nor a plot has a place for infinity


def pooled_psnr(values: list[float], weights: list[int]) -> float:
    """The PSNR of all samples together, in dB, capped at PSNR_CAP, from the PSNR of parts and their sizes.

    PSNR = −10·log10(MSE / 255²), so a part's relative MSE is 10^(−PSNR/10); MSEs average by size, decibels do not.
    """
    error = sum(10 ** (-value / 10) * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
    return min(PSNR_CAP, -10 * math.log10(error)) if error > 0 else PSNR_CAP


@dataclass
class Fidelity:
    """PSNR and SSIM of a video, of which only one clip is in memory at a time."""

    psnr_of_clips: list[float] = field(default_factory=list)
    """PSNR of each clip added, dB, capped."""
    ssim_of_clips: list[float] = field(default_factory=list)
    """Mean SSIM of each clip's frames."""
    frames_of_clips: list[int] = field(default_factory=list)
    """Frames of each clip added."""

    def add(self, reference: npt.NDArray[np.uint8], test: npt.NDArray[np.uint8]) -> None:
        """Take in one clip: source and reconstruction, both (T, H, W, 3) uint8."""
        from onedva_runtime.metrics import psnr, ssim

        self.psnr_of_clips.append(min(PSNR_CAP, float(psnr(reference, test))))
        if min(reference.shape[1:3]) >= SSIM_WINDOW:
            self.ssim_of_clips.append(float(ssim(reference, test)))
        self.frames_of_clips.append(len(reference))

    @property
    def psnr(self) -> float:
        """PSNR over all frames together, dB, capped."""
        return pooled_psnr(self.psnr_of_clips, self.frames_of_clips)

    @property
    def ssim(self) -> float | None:
        """Mean SSIM over all frames; None where they are smaller than its window."""
        if not self.ssim_of_clips:
            return None
        weighted = zip(self.ssim_of_clips, self.frames_of_clips, strict=True)
        return sum(value * frames for value, frames in weighted) / sum(self.frames_of_clips)
