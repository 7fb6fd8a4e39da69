"""Fréchet video distance, with an I3D network that the user gives (`onedva eval --fvd i3d_torchscript.pt`).

Unterthiner et al., "Towards Accurate Generative Models of Video", 2018: the Fréchet distance of two Gaussians fitted to
I3D features of two sets of videos. The network is the TorchScript file that StyleGAN-V published and others use since
(the Kinetics-400 network of the original, ported). A distance depends on how many videos there are: compare equal sets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

SHORTEST = 10  # frames: the network halves time four times and pools what is left


def load_video_features(path: str | Path) -> Callable[[NDArray[np.uint8]], NDArray[np.float64]]:
    """A function from one video (T, H, W, 3) uint8, T ≥ 10, to its features (400,).

    path: a TorchScript file, called with (1, 3, T, H, W) float in 0–255 and `rescale=True, resize=True,
    return_features=True` (it scales to 224×224 and [-1, 1] itself). Raises FileNotFoundError, and ValueError for a
    file that is no TorchScript. TorchScript is code: load only what you trust.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no FVD weights at {path}")
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise ValueError(f"{path.name} is no TorchScript file: {str(error).splitlines()[0]}") from None

    def features(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        if len(frames) < SHORTEST:
            raise ValueError(f"FVD needs at least {SHORTEST} frames a video, got {len(frames)}")
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float()
        with torch.inference_mode():
            found = network(video, rescale=True, resize=True, return_features=True)
        return found[0].double().numpy()

    return features


def frechet_distance(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of two sets of features (N, D) and (M, D), N and M at least 2.

    The trace of the root is the sum of the singular values of Σ₁^½·Σ₂^½, which needs symmetric roots only. Raises
    ValueError for fewer than two rows or other shapes.
    """
    if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1] or min(len(one), len(other)) < 2:
        raise ValueError(f"features must be (N ≥ 2, D) and (M ≥ 2, D), got {one.shape} and {other.shape}")
    offset = one.mean(axis=0) - other.mean(axis=0)
    first, second = (np.cov(rows, rowvar=False).reshape(one.shape[1], -1) for rows in (one, other))
    cross = np.linalg.svd(root(first) @ root(second), compute_uv=False).sum()
    return max(0.0, float(offset @ offset + np.trace(first) + np.trace(second) - 2 * cross))


def root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric square root of a covariance matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
