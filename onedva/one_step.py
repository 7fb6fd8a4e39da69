"""A decode of one Euler step as one function of the condition, packed to uint8.

At t = 1 the noise has no weight: the gates in `Decoder.features` and `Decoder.remainder_of` are zero. So none is drawn,
turned into coefficients and taken away again; preview and remainder go through the basis as one; and what comes out is
rounded before it is moved. The result is that of `OneDVA.decode(num_steps=1)` to within rounding, in less time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onedva.decoder import Condition, Decoder
from onedva.few_steps import first_patches, shown_of_given, to_packed_frames
from onedva.transform import PatchTransform


def one_step(
    decoder: Decoder, condition: Condition, is_key: Tensor, context_frame: Tensor, transform: PatchTransform
) -> Tensor:
    """Frames (B, T, H, W, 3) uint8 of clips after one step from t = 1.

    is_key (B,) bool; context_frame (B, H, W, 3) uint8: the frame a continuation clip goes on from, which comes back as
    its first; ignored for key clips. Only for models that decode `in_coefficients`.
    """
    groups, height, width = condition.context.shape[1:4]
    t = ((torch.arange(groups, device=is_key.device) > 0) | is_key[:, None]).float()  # (B, Tg)
    given = first_patches(transform.cut_frames(context_frame[:, None]))
    seen = shown_of_given(condition, given, decoder, transform)
    embedded = decoder.patch_in(seen / transform.coefficient_std)
    blank = embedded.new_zeros(embedded.shape[0], groups - 1, height * width, embedded.shape[3])
    hidden = decoder.features(torch.cat([embedded, blank], dim=1), t, condition)
    predicted, _ = decoder.predicted(hidden, seen, t, condition, transform)
    start, rest = decoder.clean_patches(predicted, condition, transform)
    return to_packed_frames(start, rest, is_key, context_frame, decoder, transform)
