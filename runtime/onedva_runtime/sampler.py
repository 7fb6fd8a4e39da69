"""Few-step decode: the timesteps of a schedule, the Euler update, and packing to uint8, in NumPy. The only formula of
the diffusion process here is video += dt · velocity; what velocity is, the graph knows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["euler", "linear_timesteps", "pack_frames"]

Float32 = npt.NDArray[np.float32]


def linear_timesteps(num_steps: int, *, min_t: float) -> Float32:
    """The num_steps + 1 times from 1 (noise) to 0 (video), evenly spaced, float32.

    num_steps: at least 1. min_t: no time in (0, min_t) is evaluated, since velocity divides by t; times there are moved
    up to it. Raises ValueError for num_steps below 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    evaluated = 1 - np.arange(num_steps) / num_steps
    return np.append(np.maximum(evaluated, min_t), 0).astype(np.float32)


def euler(velocity: Callable[[Float32, float], Float32], noise: Float32, timesteps: Float32) -> Float32:
    """Integrate d video / d t = velocity(video, t) from timesteps[0] to timesteps[-1] with at most one evaluation per
    step.

    velocity: function of (video, t), with the shape of `noise`. noise: the state at timesteps[0]; not modified.
    Returns the state at timesteps[-1].
    """
    video = noise.copy()
    for start, stop in pairwise(timesteps):
        if start != stop:  # steps that min_t moved onto each other change nothing
            video += (stop - start) * velocity(video, float(start))
    return video


def pack_frames(video: Float32) -> npt.NDArray[np.uint8]:
    """Model-side video (B, 3, T, H, W) in [-1, 1] to frames (B, T, H, W, 3) uint8: clip(round((video + 1) · 127.5)).

    Values outside the range are clipped; halves round to even.
    """
    scaled = video + np.float32(1)
    scaled *= np.float32(127.5)
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return np.ascontiguousarray(scaled.astype(np.uint8).transpose(0, 2, 3, 4, 1))
