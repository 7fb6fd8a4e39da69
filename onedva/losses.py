"""Training losses, each a small function of tensors that returns a scalar (float32)."""

from __future__ import annotations

import torch
from torch import Tensor

from onedva import flow


def frame_errors(predicted: Tensor, video: Tensor) -> Tensor:
    """Mean squared error of each frame: (B, 3, T, H, W) twice → (B, T). The reconstruction losses weigh these."""
    return torch.nn.functional.mse_loss(predicted.float(), video.float(), reduction="none").mean(dim=(1, 3, 4))


def frame_weights(is_key: Tensor, frames: int) -> Tensor:
    """1 for frames the model makes, 0 for the context frame of a continuation clip: (B, T)."""
    weights = torch.ones(is_key.shape[0], frames, device=is_key.device)
    weights[:, 0] = is_key.float()
    return weights


def flow_loss(errors: Tensor, t: Tensor, is_key: Tensor) -> Tensor:
    """(x̂ − video)² / max(t, 0.2)² over the frames the model makes. errors (B, T) of x̂, t (B, Tg)."""
    frames = errors.shape[1]
    return (
        errors * flow.loss_weight(flow.per_frame(t, frames)).reshape(errors.shape) * frame_weights(is_key, frames)
    ).mean()


def preview_loss(errors: Tensor, is_key: Tensor) -> Tensor:
    """(preview − video)² over the frames the model makes. errors (B, T) of the preview."""
    return (errors * frame_weights(is_key, errors.shape[1])).mean()


def frame_difference_loss(predicted: Tensor, video: Tensor) -> Tensor:
    """Squared error of the change from frame to frame: what the eye sees as flicker at group edges."""
    error = (predicted - video).float()
    return (error[:, :, 1:] - error[:, :, :-1]).square().mean()


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)), mean over all dimensions."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def error_prediction_loss(predicted: Tensor, reached: Tensor) -> Tensor:
    """Huber loss between predicted and reached log-MSE of the prefix that was decoded. Both (B,)."""
    return torch.nn.functional.smooth_l1_loss(predicted.float(), reached.detach().float(), beta=0.3)
