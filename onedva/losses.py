"""Training losses, each a small function of tensors that returns a scalar (float32).

What the network makes is weighed; what a continuation clip is given (its context frame, its group 0) costs nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onedva import flow
from onedva_runtime.placement import PATCH_SIZE

CONTINUITY_WEIGHT = 0.05
MOST_CONTINUITY = 0.1  # above it, equal latents everywhere are the easy way to a low loss


def frame_errors(predicted: Tensor, video: Tensor) -> Tensor:
    """Mean squared error of each frame: (B, 3, T, H, W) twice → (B, T). The reconstruction losses weigh these."""
    return F.mse_loss(predicted.float(), video.float(), reduction="none").mean(dim=(1, 3, 4))


def frame_weights(is_key: Tensor, frames: int) -> Tensor:
    """1 for frames the model makes, 0 for the context frame of a continuation clip: (B, T)."""
    weights = torch.ones(is_key.shape[0], frames, device=is_key.device)
    weights[:, 0] = is_key.float()
    return weights


def coded_groups(is_key: Tensor, groups: int) -> Tensor:
    """Which temporal groups a clip sends: all but group 0 of a continuation clip. (B, Tg) bool."""
    return is_key[:, None] | (torch.arange(groups, device=is_key.device) > 0)


def mean_where(values: Tensor, counted: Tensor) -> Tensor:
    """Mean of `values` where `counted` (bool, same shape); what is not counted may even be infinite."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)


def relative(errors: Tensor, reference: Tensor, is_key: Tensor, *, floor: float) -> Tensor:
    """Errors (B, T) over each clip's mean `reference` (B, T) error + floor, which is not differentiated.

    The mean is over the frames that the model makes.

    PSNR is a logarithm: a decibel on a clip that is easy counts as much as one on a clip that is hard.
    """
    weights = frame_weights(is_key, errors.shape[1])
    mean = (reference.detach() * weights).sum(dim=1, keepdim=True) / weights.sum(dim=1, keepdim=True)
    return errors / (mean + floor)


def flow_loss(errors: Tensor, t: Tensor, is_key: Tensor) -> Tensor:
    """(x̂ − video)² / max(t, 0.2)² over the frames the model makes. errors (B, T) of x̂, t (B, Tg)."""
    frames = errors.shape[1]
    return (
        errors * flow.loss_weight(flow.per_frame(t, frames)).reshape(errors.shape) * frame_weights(is_key, frames)
    ).mean()


def preview_loss(errors: Tensor, is_key: Tensor) -> Tensor:
    """(preview − video)² over the frames the model makes. errors (B, T) of the preview."""
    return (errors * frame_weights(is_key, errors.shape[1])).mean()


def change_errors(predicted: Tensor, video: Tensor, is_key: Tensor, *, context: Tensor | None = None) -> Tensor:
    """Squared error of each change from frame to frame: (B, 3, T, H, W) twice → (B, T − 1).

    A continuation clip's frame 0 is given, so its first change is the one from `context` (B, 3, H, W), the frame the
    decoder was given, to frame 1: an error that is there may go on, a jump may not. Without `context` it counts 0.
    Give one that was decoded: noise on top of the source is no error to go on with.
    """
    error = (predicted - video).float()
    if context is not None:
        given = torch.where(is_key[:, None, None, None], error[:, :, 0], (context - video[:, :, 0]).float())
        error = torch.cat([given[:, :, None], error[:, :, 1:]], dim=2)
    changes = (error[:, :, 1:] - error[:, :, :-1]).square().mean(dim=(1, 3, 4))
    return changes if context is not None else changes * frame_weights(is_key, changes.shape[1])


def frame_difference_loss(predicted: Tensor, video: Tensor, is_key: Tensor, *, context: Tensor | None = None) -> Tensor:
    """Mean of `change_errors`: what the eye sees as flicker, chiefly at group edges."""
    return change_errors(predicted, video, is_key, context=context).mean()


def edge_loss(predicted: Tensor, video: Tensor, is_key: Tensor) -> Tensor:
    """Squared jumps of the error (predicted − video) from pixel to pixel across the edges of patches: what is seen as
    blocks. (B, 3, T, H, W) twice; the mean over edges of both axes and over the frames the model makes."""
    error = (predicted - video).float()
    total = error.new_zeros(error.shape[0], error.shape[2])  # (B, T)
    for axis in (3, 4):
        before = torch.arange(PATCH_SIZE, error.shape[axis], PATCH_SIZE, device=error.device) - 1
        jumps = error.index_select(axis, before + 1) - error.index_select(axis, before)
        if len(before):  # a side of one patch has no edge inside
            total = total + jumps.square().mean(dim=(1, 3, 4))
    return (total * frame_weights(is_key, error.shape[2])).mean()


def kl_loss(mean: Tensor, logvar: Tensor, *, coded: Tensor | None = None) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)), mean over all dimensions.

    coded: (B, Tg) bool for structural latents (B, Tg, …), which of their groups are sent (`coded_groups`).
    """
    divergence = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    return divergence.mean() if coded is None else mean_where(divergence.flatten(2).mean(dim=2), coded)


def self_alignment_loss(
    latents: Tensor,
    projected: Tensor,
    structural: Tensor,
    is_key: Tensor,
    *,
    continuity: float = CONTINUITY_WEIGHT,
) -> Tensor:
    """−mean over i of maxⱼ cos(P(zᵢ), sg(sⱼ)) − continuity · mean of cos(zᵢ, zᵢ₊₁), within ±(1 + continuity).

    Each 1D latent points at the structural latent it fits best, and a little at the next in the sequence (One-DVA,
    arXiv 2602.04220). latents z (B, K, Z); projected P(z) (B, K, Zs), P linear; structural (B, Tg, Hg, Wg, Zs), which
    gets no gradient; a continuation clip's group 0 is no candidate. ValueError for continuity outside 0–0.1.
    """
    if not 0 <= continuity <= MOST_CONTINUITY:
        raise ValueError(
            f"continuity must be between 0 and {MOST_CONTINUITY} (more rewards collapse), got {continuity}"
        )
    pointing = F.normalize(projected.float(), dim=-1)
    targets = F.normalize(structural.detach().float(), dim=-1)
    coded = coded_groups(is_key, targets.shape[1])[:, :, None, None].expand(targets.shape[:4])
    targets, coded = targets.flatten(1, 3), coded.flatten(1)  # (B, N, Zs), (B, N)
    with torch.no_grad():  # the maximum's gradient is that of its argument: no (B, K, N) to differentiate
        best = (pointing @ targets.transpose(1, 2)).masked_fill(~coded[:, None], -torch.inf).argmax(dim=2)
    match = (pointing * torch.gather(targets, 1, best[..., None].expand_as(pointing))).sum(-1).mean()
    if not continuity or latents.shape[1] < 2:
        return -match
    return -match - continuity * F.cosine_similarity(latents[:, 1:].float(), latents[:, :-1].float(), dim=-1).mean()


def repa_loss(projected: Tensor, features: Tensor, is_key: Tensor) -> Tensor:
    """−mean cos(projected, features) over the positions the model makes (REPA, arXiv 2410.06940).

    projected (B, N, F): middle decoder features through an MLP; features (B, Tg, Hg, Wg, F) of the source frames.
    """
    similarity = F.cosine_similarity(projected.float(), features.detach().flatten(1, 3).float(), dim=-1)
    coded = coded_groups(is_key, features.shape[1])[:, :, None, None].expand(features.shape[:4])
    return -mean_where(similarity, coded.flatten(1))


def lpips_loss(
    network: nn.Module,
    predicted: Tensor,
    video: Tensor,
    is_key: Tensor,
    *,
    generator: torch.Generator,
    frames: int = 1,
) -> Tensor:
    """Mean LPIPS of `frames` frames of each clip, drawn from those the model makes: all would cost more than the model.

    network: `onedva.perceptual.LPIPS`. predicted, video (B, 3, T, H, W).
    """
    batch, total = video.shape[0], video.shape[2]
    first = (~is_key).long().to(generator.device)[:, None]  # frames before it are given
    drawn = torch.rand(batch, frames, generator=generator, device=generator.device)
    index = (first + (drawn * (total - first)).long()).to(video.device)  # (B, frames)
    row = torch.arange(batch, device=video.device)[:, None]
    chosen = (clips.transpose(1, 2)[row, index].flatten(0, 1).float() for clips in (predicted, video))
    return network(*chosen).mean()


def error_prediction_loss(predicted: Tensor, reached: Tensor) -> Tensor:
    """Huber loss between predicted and reached log-MSE of the prefix that was decoded. Both (B,)."""
    return F.smooth_l1_loss(predicted.float(), reached.detach().float(), beta=0.3)
