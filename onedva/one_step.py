"""A decode of one Euler step as one function of the condition, packed to uint8.

At t = 1 the noise has no weight: the gates in `Decoder.features` and `Decoder.remainder` are zero. So none is drawn,
turned into coefficients and taken away again; preview and remainder go through the basis as one; and what comes out is
rounded before it is moved. The result is that of `OneDVA.decode(num_steps=1)` to within rounding, in less time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onedva.config import PATCH_VALUES, OneDVAConfig
from onedva.decoder import Condition, Decoder
from onedva.patches import frames_of, pack_patches, patchify_frames, to_levels
from onedva.transform import PatchTransform
from onedva_runtime.placement import PATCH_FRAMES


def has_one_step(config: OneDVAConfig) -> bool:
    """Whether noise has no weight at t = 1 in such a model, and its preview is made of coefficients."""
    return config.prediction == "video" and config.pca


def one_step(
    decoder: Decoder, condition: Condition, is_key: Tensor, context_frame: Tensor, transform: PatchTransform
) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 of clips after one step from t = 1.

    is_key (B,) bool; context_frame (B, H, W, 3) uint8: the frame a continuation clip goes on from, which comes back as
    its first; ignored for key clips. Only for models that `has_one_step`.
    """
    groups, height, width = condition.context.shape[1:4]
    t = ((torch.arange(groups, device=is_key.device) > 0) | is_key[:, None]).float()  # (B, Tg)
    first = condition.context[:, 0, :, :, decoder.config.width :].flatten(1, 2).float()  # (B, P, R)
    given = patchify_frames(context_frame[:, None])[:, 0, :, :, : PATCH_VALUES // PATCH_FRAMES].flatten(1, 2)
    seen = transform.of_first_frame(given - transform.first_frame(first))[:, None]  # (B, 1, P, R)
    embedded = decoder.patch_in(seen / transform.coefficient_std)
    blank = embedded.new_zeros(embedded.shape[0], groups - 1, height * width, embedded.shape[3])
    hidden, context = decoder.features(torch.cat([embedded, blank], dim=1), t, condition)
    predicted, local = decoder.predicted(hidden, context, seen, t, condition, transform)
    start, rest = decoder.clean_patches(predicted, local, condition, transform)
    if decoder.config.residual_channels:
        video = torch.cat([frames_of(start, 1), frames_of(rest, PATCH_FRAMES)], dim=2)
        levels = to_levels(video + decoder.residual(video)).permute(0, 2, 3, 4, 1)
        start, rest = levels.split([1, levels.shape[1] - 1], dim=1)
    else:
        start, rest = pack_patches(start, 1), pack_patches(rest, PATCH_FRAMES)
    start = torch.where(is_key[:, None, None, None, None], start, context_frame[:, None])
    return torch.cat([start, rest], dim=1)
