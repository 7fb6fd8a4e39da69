"""Muon at the precision that the machine computes fast, and over all matrices of one shape at once.

`torch.optim.Muon` turns updates into orthogonal matrices in bfloat16. A CPU without instructions for it emulates them:
of a training step of `tiny` on such a machine that was four fifths of the time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

TO_MATCH_ADAMW = 0.2  # root mean square of AdamW's usual update (Liu et al., "Muon is scalable for LLM training", 2025)


class Muon(torch.optim.Muon):
    """`torch.optim.Muon(…, adjust_lr_fn="match_rms_adamw")`, its state and its options, computed in `dtype`."""

    def __init__(self, params: Iterable[Any], *, dtype: torch.dtype, lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                updates = torch.stack([self.with_momentum(parameter, group) for parameter in parameters])
                updates = orthogonal(
                    updates.to(self.dtype), group["ns_coefficients"], steps=group["ns_steps"], eps=group["eps"]
                )
                rate = group["lr"] * TO_MATCH_ADAMW * max(shape) ** 0.5
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-rate)
        return loss

    def with_momentum(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient averaged over steps, one look ahead (Nesterov)."""
        gradient, momentum, state = parameter.grad, group["momentum"], self.state[parameter]
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum) if group["nesterov"] else average


def orthogonal(matrices: Tensor, coefficients: tuple[float, float, float], *, steps: int, eps: float) -> Tensor:
    """Each of (N, R, C) with its singular values brought near 1, by Newton-Schulz iteration (Jordan et al., "Muon: an
    optimizer for hidden layers in neural networks", 2024)."""
    linear, cubic, quintic = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if tall else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=eps)  # no singular value is above 1
    for _ in range(steps):
        square = found @ found.mT
        square = torch.baddbmm(square, square, square, beta=cubic, alpha=quintic)
        found = torch.baddbmm(found, square, found, beta=linear)
    return found.mT if tall else found
