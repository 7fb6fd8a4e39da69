"""One batch through a bundle's graphs: encode, and decode with S Euler steps. All clips of a batch share T, H, W and
the number of latents, and may be of both kinds; graphs want at least one latent, so a clip without any carries a zero
one that `has_latents` marks as absent."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from onedva_runtime.backends import Backend, Float32, SamplesOnDevice, StepsInCoefficients
from onedva_runtime.manifest import SamplerSpec
from onedva_runtime.noise import gaussian
from onedva_runtime.sampler import euler, integrate, linear_timesteps, moving_timesteps, pack_frames

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


def _kinds(batch: int, is_key: Sequence[bool] | None) -> npt.NDArray[np.bool_]:
    return np.ones(batch, np.bool_) if is_key is None else np.array(is_key, np.bool_)


def encode_batch(
    backend: Backend,
    frames: npt.NDArray[np.uint8],
    anchors: npt.NDArray[np.int64],
    fps: Sequence[float],
    *,
    is_key: Sequence[bool] | None = None,
    on_timing: OnTiming | None = None,
) -> tuple[Float32, Float32, Float32]:
    """Encode clips.

    frames: (B, T, H, W, 3), padded; frame 0 of a continuation clip is its context frame. anchors: (B, K), K may be 0.
    fps: one rate per clip. is_key: one kind per clip, all key clips by default.
    Returns structural (B, Tg, Hg, Wg, Zs), zeros in a continuation's group 0, latents (B, K, Z), predicted_error (B,
    K).
    """
    batch, count, height, width, _ = frames.shape
    keys = _kinds(batch, is_key)
    tokens = anchors.shape[1]
    with timed(on_timing, "encode"):
        structural, latents, error = backend.encode(
            frames,
            _resolution(count, height, width, fps),
            keys,
            anchors if tokens else np.zeros((batch, 1), np.int64),
        )
    if not keys.all():
        structural = structural.copy()
        structural[~keys, 0] = 0
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
    corners: Sequence[tuple[int, int]] | None = None,
    context_frames: Sequence[npt.NDArray[np.uint8] | None] | None = None,
    shortcuts: bool = True,
    on_timing: OnTiming | None = None,
) -> npt.NDArray[np.uint8]:
    """Decode clips to frames (B, T, H, W, 3), padded as they were encoded; frame 0 of a continuation clip is its
    context frame.

    structural (B, Tg, Hg, Wg, Zs), latents (B, K, Z), anchors (B, K); fps and first_frames, the number of frame 0 in
    its video: one per clip. num_steps 0: preview. corners: (top, left) of each clip in its video, (0, 0) by default.
    context_frames: for each continuation clip the frame (H, W, 3) before it, padded, None for each key clip; all are
    key clips by default. shortcuts: where the bundle has the graphs, take one step by one graph (at t = 1 the noise has
    no weight), and several in coefficients, to the same frames within rounding; False goes through condition and
    velocity on pixels.
    """
    batch, groups, grid_height, grid_width, _ = structural.shape
    count, height, width = 4 * groups - 3, 16 * grid_height, 16 * grid_width
    tokens, channels = latents.shape[1:]
    contexts = [None] * batch if context_frames is None else context_frames
    keys = _kinds(batch, [context is None for context in contexts])
    given = (
        structural,
        latents if tokens else np.zeros((batch, 1, channels), np.float32),
        anchors if tokens else np.zeros((batch, 1), np.int64),
        np.full(batch, tokens > 0, np.bool_),
        _resolution(count, height, width, fps),
        keys,
    )
    if num_steps == 1 and shortcuts and backend.has_one_step:
        with timed(on_timing, "decode"):
            return backend.one_step(*given, _stacked(contexts, height, width))
    places = [(n, y, x) for n, (y, x) in zip(first_frames, corners or [(0, 0)] * batch, strict=True)]
    if num_steps and backend.samples_on_device:
        from onedva_runtime.backends.device_sampler import Sampling

        with timed(on_timing, "decode"):
            timesteps = moving_timesteps(num_steps, min_t=sampler.schedule.min_t)
            sampling = Sampling((batch, 3, count, height, width), seed, places, timesteps, contexts)
            return cast(SamplesOnDevice, backend).sample(given, sampling)
    # What is given sits at t = 0, where velocity is 0: the context frame goes through every step as it is.
    generated = np.ones((batch, groups), np.float32)
    generated[~keys, 0] = 0

    box = {"frames": count, "height": height, "width": width, "threads": backend.threads}
    if num_steps > 1 and shortcuts and backend.has_few_steps:
        times = moving_timesteps(num_steps, min_t=sampler.schedule.min_t)
        context_frame, noise = _stacked(contexts, height, width), _noise(seed, places, box, on_timing)
        return _step_in_coefficients(
            cast(StepsInCoefficients, backend), given, context_frame, noise, generated, times, on_timing
        )
    with timed(on_timing, "condition"):
        condition = backend.condition(*given)
    velocity, dt = None, 0.0
    if num_steps == 0:
        video = condition.preview()
    else:
        noise = _noise(seed, places, box, on_timing)
        for row, context in enumerate(contexts):
            if context is not None:
                noise[row, :, 0] = context.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
        with timed(on_timing, "velocity"):
            video, velocity, dt = integrate(
                lambda noisy, t: backend.velocity(noisy, generated * np.float32(t), condition),
                noise,
                linear_timesteps(num_steps, min_t=sampler.schedule.min_t),
                threads=backend.threads,
            )
    with timed(on_timing, "pack"):
        return pack_frames(video, velocity=velocity, dt=dt, threads=backend.threads)


def _step_in_coefficients(
    backend: StepsInCoefficients,
    given: Sequence[npt.NDArray[Any]],
    context_frame: npt.NDArray[np.uint8],
    noise: Float32,
    generated: Float32,
    times: Float32,
    on_timing: OnTiming | None,
) -> npt.NDArray[np.uint8]:
    """given, context_frame (B, H, W, 3), noise (B, 3, T, H, W): as of `begin`; generated (B, Tg): 0 for groups that are
    given, else 1; times: of the steps, from 1 to 0. Returns frames (B, T, H, W, 3)."""
    with timed(on_timing, "condition"):
        state, condition = backend.begin(given, context_frame, noise)
    with timed(on_timing, "velocity"):
        if len(times) > 2:

            def velocity(now: Float32, t: float) -> Float32:
                return backend.step(now, generated * np.float32(t), condition)

            state = euler(velocity, state, times[:-1], threads=backend.threads)
        return backend.finish(state, generated * times[-2], condition, given[-1], context_frame)


def _noise(
    seed: int, places: Sequence[tuple[int, int, int]], box: Mapping[str, int], on_timing: OnTiming | None
) -> Float32:
    """Noise (B, 3, T, H, W) of clips at (frame, top, left) of their videos; box: their size, and threads."""
    with timed(on_timing, "noise"):
        clips = [gaussian(seed, first_frame=n, top=y, left=x, **box) for n, y, x in places]
        return clips[0][None] if len(clips) == 1 else np.stack(clips)


def _stacked(contexts: Sequence[npt.NDArray[np.uint8] | None], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Context frames (B, H, W, 3), black where a key clip has none."""
    black = np.zeros((height, width, 3), np.uint8)
    return np.stack([black if context is None else context for context in contexts])
