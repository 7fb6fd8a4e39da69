"""Few-step decode: the timesteps of a schedule, the Euler update, and packing to uint8. The only formula of the
diffusion process here is video += dt · velocity; what velocity is, the graph knows.

Update and packing run in C++ (`_sampler`, from cpp_ext/) where that is built; `reference_update` and `reference_pack`
say in NumPy what they compute, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from onedva_runtime.noise import native

__all__ = [
    "euler",
    "integrate",
    "linear_timesteps",
    "moving_timesteps",
    "pack_frames",
    "reference_pack",
    "reference_update",
]

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


def moving_timesteps(num_steps: int, *, min_t: float) -> Float32:
    """`linear_timesteps` without the steps of no length that `min_t` makes: strictly falling."""
    times = linear_timesteps(num_steps, min_t=min_t)
    return times[np.append(True, np.diff(times) != 0)]


def euler(
    velocity: Callable[[Float32, float], Float32], noise: Float32, timesteps: Float32, *, threads: int = 1
) -> Float32:
    """Integrate d video / d t = velocity(video, t) from timesteps[0] to timesteps[-1] with at most one evaluation per
    step.

    velocity: function of (video, t), with the shape of `noise`, which it must not keep. noise: the state at
    timesteps[0]; not modified. threads: CPU threads of the update. Returns the state at timesteps[-1].
    """
    video, last, dt = integrate(velocity, noise.copy(), timesteps, threads=threads)
    _update(video, last, dt, threads)
    return video


def integrate(
    velocity: Callable[[Float32, float], Float32], video: Float32, timesteps: Float32, *, threads: int = 1
) -> tuple[Float32, Float32, float]:
    """As `euler`, in place in `video` (the noise), but for the last update, which `pack_frames` makes while it packs.

    Returns (video, velocity, dt): the state at timesteps[-1] is video + dt · velocity. Raises ValueError for timesteps
    that do not move.
    """
    steps = [
        (start, stop) for start, stop in pairwise(timesteps) if start != stop
    ]  # min_t may have moved them together
    if not steps:
        raise ValueError(f"timesteps must fall, got {timesteps.tolist()}")
    for start, stop in steps[:-1]:
        _update(video, velocity(video, float(start)), float(stop - start), threads)
    start, stop = steps[-1]
    return video, velocity(video, float(start)), float(stop - start)


def pack_frames(
    video: Float32, *, velocity: Float32 | None = None, dt: float = 0.0, threads: int = 1
) -> npt.NDArray[np.uint8]:
    """Model-side video (B, 3, T, H, W) in [-1, 1] to frames (B, T, H, W, 3) uint8: clip(round((video + 1) · 127.5)).

    Values outside the range are clipped; halves round to even; not a number becomes 0. velocity, dt: packs video +
    dt · velocity, without writing that to memory. threads: CPU threads to share the work between.
    """
    module = native()
    if module is None:
        return reference_pack(video, velocity=velocity, dt=dt)
    batch, channels, frames, height, width = video.shape
    out = np.empty((batch, frames, height, width, channels), np.uint8)
    sources = [np.ascontiguousarray(video), None if velocity is None else np.ascontiguousarray(velocity)]
    module.pack(out, *sources, dt, threads)
    return out


def reference_update(video: Float32, velocity: Float32, dt: float) -> None:
    """video += dt · velocity, rounded after the product and after the sum: the definition of C++'s update."""
    video += np.float32(dt) * velocity


def reference_pack(video: Float32, *, velocity: Float32 | None = None, dt: float = 0.0) -> npt.NDArray[np.uint8]:
    """The definition of `pack_frames`."""
    if velocity is not None:
        video = np.add(video, np.float32(dt) * velocity, dtype=np.float32)
    scaled = (video + np.float32(1)) * np.float32(127.5)
    whole: Float32 = np.rint(np.fmin(np.fmax(scaled, np.float32(0)), np.float32(255)))
    return np.ascontiguousarray(whole.astype(np.uint8).transpose(0, 2, 3, 4, 1))


def _update(video: Float32, velocity: Float32, dt: float, threads: int) -> None:
    """`reference_update`, in C++ where that is built."""
    module = native()
    if module is None:
        reference_update(video, velocity, dt)
    else:
        module.update(video, np.ascontiguousarray(velocity), dt, threads)
