"""Time, noise and the straight path between them: every formula about `t` stands here and nowhere else.

t = 0 is the clean video, t = 1 pure noise (flow matching on the linear path, Lipman et al. 2022, with the time axis of
rectified flow reversed). The runtime knows only `video += dt · velocity`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

MIN_TIME = 0.02  # floor of the divisor in video → velocity
LOSS_TIME = 0.2  # floor of the divisor in the loss weight
MIN_SCHEDULE_TIME = 0.05  # a schedule never evaluates the network strictly between 0 and this


def per_frame(t: Tensor, frames: int) -> Tensor:
    """Time per latent group to time per frame: (B, Tg) → (B, 1, T, 1, 1); group 0 is frame 0, the others four each."""
    t = torch.cat([t[:, :1], t[:, 1:].repeat_interleave(4, dim=1)], dim=1)
    return t.reshape(t.shape[0], 1, frames, 1, 1)


def add_noise(video: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """noisy = (1 − t)·video + t·noise. video, noise (B, C, T, H, W); t broadcastable, see `per_frame`."""
    return (1 - t) * video + t * noise


def velocity_target(video: Tensor, noise: Tensor) -> Tensor:
    """d noisy / dt = noise − video."""
    return noise - video


def velocity_from_video(noisy: Tensor, video: Tensor, t: Tensor) -> Tensor:
    """velocity = (noisy − video) / max(t, 0.02), exactly 0 where t = 0 (a given frame stays as it is)."""
    velocity = (noisy - video) / t.clamp(min=MIN_TIME)
    return torch.where(t == 0, torch.zeros_like(velocity), velocity)


def video_from_velocity(noisy: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """Inverse of `velocity_from_video` for t ≥ 0.02, and of the path itself at any t: video = noisy − t·velocity."""
    return noisy - t * velocity


def input_scale(t: Tensor, variance: Tensor | float = 1.0) -> Tensor:
    """Factor that gives `add_noise` of data of some variance unit variance: 1 / √((1 − t)²·variance + t²)."""
    return ((1 - t).square() * variance + t.square()).rsqrt()


def output_scales(t: Tensor, variance: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """(skip, scale) of clean = skip·noisy + scale·network, for data of some variance σ² around zero.

    skip·noisy is the best linear guess, (1 − t)·σ² / ((1 − t)²·σ² + t²), and scale its error's standard deviation,
    t·σ / √((1 − t)²·σ² + t²): a network of unit variance serves every t (Karras et al. 2022, for the straight path).
    At t = 0 clean is noisy.
    """
    total = (1 - t).square() * variance + t.square()
    return (1 - t) * variance / total, t * (variance / total) ** 0.5


def loss_weight(t: Tensor) -> Tensor:
    """Velocity weighting of a clean-video loss, 1 / max(t, 0.2)²."""
    return t.clamp(min=LOSS_TIME).pow(-2)


def sample_time(batch: int, *, p_full: float, generator: torch.Generator) -> Tensor:
    """Times (batch,) where the generator is: 1 with probability `p_full`, else 90 % logit-normal(0, 1), 10 % uniform.

    The uniform part are thick tails: without it times near 0 and 1 would hardly be seen.
    """
    device = generator.device
    kind = torch.rand(batch, generator=generator, device=device)
    normal = torch.sigmoid(torch.randn(batch, generator=generator, device=device))
    uniform = torch.rand(batch, generator=generator, device=device)
    thick = torch.where(torch.rand(batch, generator=generator, device=device) < 0.9, normal, uniform)
    return torch.where(kind < p_full, torch.ones_like(kind), thick.clamp(MIN_SCHEDULE_TIME, 1.0))


def schedule(num_steps: int) -> list[float]:
    """num_steps + 1 times falling linearly from 1 to 0, none strictly between 0 and 0.05. ValueError outside 1–50."""
    if not 1 <= num_steps <= 50:
        raise ValueError(f"num_steps must be between 1 and 50, got {num_steps}")
    times = [1 - i / num_steps for i in range(num_steps)]
    return [max(t, MIN_SCHEDULE_TIME) for t in times] + [0.0]


def euler(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, times: list[float]) -> Tensor:
    """Integrate d video / dt = velocity(video, t) from times[0] to times[-1] by Euler's rule. Shapes follow `noise`."""
    video = noise
    for now, after in pairwise(times):
        video = video + (after - now) * velocity(video, now)
    return video
