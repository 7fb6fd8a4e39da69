"""One batch through a bundle's graphs: encode, and decode with S Euler steps. All clips of a batch share T, H, W and
the number of latents; graphs want at least one latent, so a clip without any carries a zero one that `has_latents`
marks as absent."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend, Float32
from onedva_runtime.manifest import SamplerSpec
from onedva_runtime.noise import gaussian
from onedva_runtime.sampler import euler, linear_timesteps, pack_frames

__all__ = ["OnTiming", "decode_batch", "encode_batch", "timed"]

OnTiming = Callable[[str, float], None]


@contextmanager
def timed(on_timing: OnTiming | None, stage: str) -> Generator[None]:
    """Report the seconds that the block takes as on_timing(stage, seconds)."""
    start = time.perf_counter()
    yield
    if on_timing is not None:
        on_timing(stage, time.perf_counter() - start)


def _resolution(frames: int, height: int, width: int, fps: Sequence[float]) -> Float32:
    return np.array([(frames, height, width, rate) for rate in fps], np.float32)


def _flags(batch: int, value: bool) -> npt.NDArray[np.bool_]:
    return np.array([value] * batch, np.bool_)


def encode_batch(
    backend: Backend,
    frames: npt.NDArray[np.uint8],
    anchors: npt.NDArray[np.int64],
    fps: Sequence[float],
    *,
    on_timing: OnTiming | None = None,
) -> tuple[Float32, Float32, Float32]:
    """Encode key clips.

    frames: (B, T, H, W, 3), padded. anchors: (B, K), K may be 0. fps: one rate per clip.
    Returns structural (B, Tg, Hg, Wg, Zs), latents (B, K, Z), predicted_error (B, K).
    """
    batch, count, height, width, _ = frames.shape
    tokens = anchors.shape[1]
    with timed(on_timing, "encode"):
        structural, latents, error = backend.encode(
            frames,
            _resolution(count, height, width, fps),
            _flags(batch, True),
            anchors if tokens else np.zeros((batch, 1), np.int64),
        )
    return structural, latents[:, :tokens], error[:, :tokens]


def decode_batch(
    backend: Backend,
    structural: Float32,
    latents: Float32,
    anchors: npt.NDArray[np.int64],
    fps: Sequence[float],
    first_frames: Sequence[int],
    *,
    sampler: SamplerSpec,
    num_steps: int,
    seed: int,
    on_timing: OnTiming | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode key clips to frames (B, T, H, W, 3), padded as they were encoded.

    structural (B, Tg, Hg, Wg, Zs), latents (B, K, Z), anchors (B, K); fps and first_frames: one per clip. num_steps 0:
    preview.
    """
    batch, groups, grid_height, grid_width, _ = structural.shape
    count, height, width = 4 * groups - 3, 16 * grid_height, 16 * grid_width
    tokens, channels = latents.shape[1:]
    with timed(on_timing, "condition"):
        condition = backend.condition(
            structural,
            latents if tokens else np.zeros((batch, 1, channels), np.float32),
            anchors if tokens else np.zeros((batch, 1), np.int64),
            _flags(batch, tokens > 0),
            _resolution(count, height, width, fps),
            _flags(batch, True),
        )
    if num_steps == 0:
        video = condition.preview()
    else:
        with timed(on_timing, "noise"):
            box = {"frames": count, "height": height, "width": width, "threads": backend.threads}
            noise = np.stack([gaussian(seed, first_frame=first, **box) for first in first_frames])
        with timed(on_timing, "velocity"):
            video = euler(
                lambda noisy, t: backend.velocity(noisy, np.full((batch, groups), t, np.float32), condition),
                noise,
                linear_timesteps(num_steps, min_t=sampler.schedule.min_t),
            )
    with timed(on_timing, "pack"):
        return pack_frames(video)
