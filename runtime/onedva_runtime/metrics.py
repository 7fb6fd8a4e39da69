"""How close two videos are, on uint8 frames as a viewer gets them: PSNR and SSIM, NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of `test` against `reference`, both (…, H, W, 3) uint8, in dB: 10 log10(255^2 / MSE).

    One MSE over everything given (pooled, not a mean over frames); infinite where they are equal. Raises ValueError or
    TypeError for another type or shape.
    """
    _check(reference, test)
    total = 0
    for a, b in zip(_as_frames(reference), _as_frames(test), strict=True):  # frame by frame: flat memory, exact sums
        difference = a.astype(np.int32) - b
        total += int(np.sum(difference * difference, dtype=np.int64))
    return float("inf") if total == 0 else float(10 * np.log10(255.0**2 * reference.size / total))


def ssim(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> float:
    """Structural similarity of `test` and `reference`, (…, H, W, 3) uint8, H and W at least 11; 1 where equal.

    Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment: from error visibility to structural similarity",
    2004, eq. 13: ((2 ma mb + C1)(2 cov + C2)) / ((ma^2 + mb^2 + C1)(va + vb + C2)), C1 = (0.01 255)^2 and
    C2 = (0.03 255)^2, moments weighted by an 11x11 Gaussian (sigma 1.5), only where it fits inside the frame; mean over
    positions, R, G, B and frames. Raises ValueError or TypeError for another type, shapes that differ, or frames too
    small for the window.
    """
    _check(reference, test)
    if min(reference.shape[-3:-1]) < _WINDOW:
        raise ValueError(f"ssim needs frames of at least {_WINDOW}x{_WINDOW}, got shape {reference.shape}")
    pairs = zip(_as_frames(reference), _as_frames(test), strict=True)
    return float(np.mean([_ssim_frame(a.astype(np.float32), b.astype(np.float32)) for a, b in pairs]))


def _ssim_frame(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    mean_a, mean_b = _blur(a), _blur(b)
    # Pixels centred on 128 keep the difference of the two large terms of a variance small, so that float32 will do.
    a, b, mean_a0, mean_b0 = a - 128, b - 128, mean_a - 128, mean_b - 128
    variances = _blur(a * a) + _blur(b * b) - mean_a0**2 - mean_b0**2
    covariance = _blur(a * b) - mean_a0 * mean_b0
    top = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return float(np.mean(top / ((mean_a**2 + mean_b**2 + _C1) * (variances + _C2)), dtype=np.float64))


def _blur(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Gaussian mean (H-10, W-10, 3) of `image` (H, W, 3), rows then columns."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (0, 1):
        length = image.shape[axis] - _WINDOW + 1
        slices = [image[i : i + length] if axis == 0 else image[:, i : i + length] for i in range(_WINDOW)]
        blurred = slices[0] * weights[0]
        for weight, part in zip(weights[1:], slices[1:], strict=True):
            blurred += weight * part
        image = blurred
    return image


def _as_frames(video: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return video.reshape(-1, *video.shape[-3:])


def _check(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> None:
    for name, video in (("reference", reference), ("test", test)):
        if video.dtype != np.uint8:
            raise TypeError(f"{name} must be uint8, got {video.dtype}")
        if video.ndim < 3 or video.shape[-1] != 3 or video.size == 0:
            raise ValueError(f"{name} must have shape (..., H, W, 3) and hold something, got {video.shape}")
    if reference.shape != test.shape:
        raise ValueError(f"reference and test must have one shape, got {reference.shape} and {test.shape}")
