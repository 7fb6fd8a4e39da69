"""A decode of several Euler steps, in the coefficients of what the preview lacks.

Noise is only ever seen through the basis, and what is seen of it has the preview's part taken off: (1 − t)·remainder
+ t·noise, the *state*. A step moves it by dt · (state − r̂) / t, with which the preview and all that lies outside the
basis cancel; the last step ends at r̂. So pixels are made once, at the end, and a step costs the transformer alone.
`Decoder.velocity` is the same on pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onedva import flow
from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva.decoder import Condition, Decoder
from onedva.patches import to_levels
from onedva.transform import PatchTransform
from onedva_runtime.placement import PATCH_FRAMES


def in_coefficients(config: OneDVAConfig) -> bool:
    """Whether such a model can decode in coefficients: its preview is made of them, and it predicts the clean video."""
    return config.prediction == "video" and config.pca


def begin(
    condition: Condition, noise: Tensor, is_key: Tensor, given: Tensor, decoder: Decoder, transform: PatchTransform
) -> Tensor:
    """The state (B, Tg, P, R) at t = 1. noise (B, 3, T, H, W).

    is_key (B,) bool; given (B, Hg, Wg, 768): frame 0 of continuation clips, in patches as `transform.cut` makes them;
    their group 0 is at t = 0 from the start. Ignored for key clips.
    """
    state = transform.shown(transform.cut(noise))
    seen = shown_of_given(condition, given, decoder, transform)
    first, others = state.split([1, state.shape[1] - 1], dim=1)
    return torch.cat([torch.where(is_key[:, None, None, None], first, seen), others], dim=1)


def shown_of_given(condition: Condition, given: Tensor, decoder: Decoder, transform: PatchTransform) -> Tensor:
    """What a given frame 0 (B, Hg, Wg, 768) shows beyond the preview: (B, 1, P, R)."""
    first = decoder.context_parts(condition)[1][:, 0].flatten(1, 2)  # (B, P, R)
    return transform.of_first_frame(given.flatten(1, 2) - transform.first_frame(first))[:, None]


def step(state: Tensor, t: Tensor, condition: Condition, decoder: Decoder, transform: PatchTransform) -> Tensor:
    """d state / dt (B, Tg, P, R), exactly 0 where t (B, Tg) is 0."""
    remainder = decoder.remainder_of(state, t, condition, transform)
    first, others = remainder.split([1, remainder.shape[1] - 1], dim=1)
    # group 0 is one frame four times: what its four frames would have by themselves is no part of the video
    first = transform.of_first_frame(first @ transform.first_basis())
    remainder = torch.cat([first, others], dim=1)
    return flow.velocity_from_video(state, remainder, t[..., None, None])


def finish(
    state: Tensor, t: Tensor, condition: Condition, decoder: Decoder, transform: PatchTransform
) -> tuple[Tensor, Tensor]:
    """Where the last step, from t (B, Tg) to 0, ends: patches as `Decoder.clean_patches` gives them."""
    return decoder.clean_patches(decoder.remainder_of(state, t, condition, transform), condition, transform)


def to_clean_video(start: Tensor, rest: Tensor, decoder: Decoder, transform: PatchTransform) -> Tensor:
    """Patches of frame 0 (B, 1, Hg, Wg, 768) and of the groups after it as a video (B, 3, T, H, W)."""
    video = transform.join(start, rest)
    return video + decoder.residual(video) if decoder.config.residual_channels else video


def to_packed_frames(
    start: Tensor, rest: Tensor, is_key: Tensor, context_frame: Tensor, decoder: Decoder, transform: PatchTransform
) -> Tensor:
    """The same as frames (B, T, H, W, 3) uint8; frame 0 of continuation clips is `context_frame` (B, H, W, 3)."""
    if decoder.config.residual_channels:
        levels = to_levels(to_clean_video(start, rest, decoder, transform)).permute(0, 2, 3, 4, 1)
    else:
        levels = transform.join_frames(start, rest)
    first, others = levels.split([1, levels.shape[1] - 1], dim=1)
    first = torch.where(is_key[:, None, None, None, None], first, context_frame[:, None])
    return torch.cat([first, others], dim=1)


def first_patches(patches: Tensor) -> Tensor:
    """Frame 0 (B, Hg, Wg, 768) of patches (B, Tg, Hg, Wg, 3072), of its four copies the first."""
    return patches[:, 0, :, :, : PATCH_VALUES // PATCH_FRAMES]


def decode(
    noise: Tensor,
    times: list[float],
    condition: Condition,
    is_key: Tensor,
    decoder: Decoder,
    transform: PatchTransform,
) -> Tensor:
    """Video (B, 3, T, H, W) after the steps from times[0] = 1 to 0. noise (B, 3, T, H, W): its frame 0 is the context
    frame of continuation clips."""
    generated = torch.ones(noise.shape[0], condition.context.shape[1], device=noise.device)
    generated[~is_key, 0] = 0.0
    given = first_patches(transform.cut(noise[:, :, :1]))
    state = begin(condition, noise, is_key, given, decoder, transform)
    state = flow.euler(lambda now, t: step(now, generated * t, condition, decoder, transform), state, times[:-1])
    patches = finish(state, generated * times[-2], condition, decoder, transform)
    video = to_clean_video(*patches, decoder, transform)
    return torch.cat(
        [torch.where(is_key[:, None, None, None, None], video[:, :, :1], noise[:, :, :1]), video[:, :, 1:]], dim=2
    )
