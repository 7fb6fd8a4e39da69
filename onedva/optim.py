"""Two optimizers as one: Muon for the matrices inside blocks, AdamW for everything else, one learning-rate curve."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onedva.distributed import placed_like, whole
from onedva.muon import Muon
from onedva.train_config import TrainConfig

CLOSED_FORM = ("basis", "directions")
HEADS = (
    "log_variance",
    "context_gain",
    "context_scale",
    "residual_out",
    "structural_head",
    "latents_head",
    "error_head",
)
FINAL_RATE = 0.05  # of the peak learning rate, at the end of the cosine


class Optimizers:
    """Owns the optimizers of a `TrainingStep`; `step` clips, applies and clears the gradients.

    bf16: whether Muon computes in bfloat16.
    """

    def __init__(self, module: nn.Module, train: TrainConfig, *, bf16: bool) -> None:
        self.train = train
        named = {name.removeprefix("network."): value for name, value in module.named_parameters()}
        self.parameters = {name: value for name, value in named.items() if value.requires_grad}
        groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": [], "head": [], "closed_form": []}
        for name, parameter in self.parameters.items():
            groups[self.group_of(name, parameter)].append(parameter)
        rates = {"decay": 1.0, "plain": 1.0, "head": train.head_learning_rate}
        # without a least-squares start there is nothing in the transform to be careful with
        rates["closed_form"] = train.closed_form_learning_rate if train.linear_start else 1.0
        adamw = [
            {
                "params": groups[name],
                "weight_decay": train.weight_decay if name == "decay" else 0.0,
                "peak": train.learning_rate * rate,
            }
            for name, rate in rates.items()
            if groups[name]
        ]
        self.adamw = torch.optim.AdamW(adamw, lr=train.learning_rate, betas=(0.9, 0.98)) if adamw else None
        self.muon = None
        if groups["muon"]:
            self.muon = Muon(
                [{"params": groups["muon"], "peak": train.muon_learning_rate}],
                dtype=torch.bfloat16 if bf16 else torch.float32,
                lr=train.muon_learning_rate,
                weight_decay=train.weight_decay,
            )
        self.all = [optimizer for optimizer in (self.adamw, self.muon) if optimizer is not None]

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        group = group_of(name, parameter)
        return "decay" if group == "muon" and self.train.optimizer == "adamw" else group

    def set_rate(self, step: int, done: float) -> float:
        """Set every group's rate: linear warm-up over steps, cosine over `done` in [0, 1]. Returns the factor."""
        warm = min(1.0, (step + 1) / max(self.train.warmup, 1))
        factor = warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
        return factor

    def step(self) -> float:
        """One update from the gradients there are, unless their norm is not finite; returns it, before clipping."""
        norm = whole(nn.utils.clip_grad_norm_(self.parameters.values(), self.train.clip_norm)).item()
        for optimizer in self.all:
            if math.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state as named tensors: `<state>.<parameter>`."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        found = {}
        for optimizer in self.all:
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    found[f"{key}.{names[parameter]}"] = torch.as_tensor(value)
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`, whole or sharded. State of what is not trained any more is left out."""
        for name, tensor in tensors.items():
            key, parameter_name = name.split(".", 1)
            parameter = self.parameters.get(parameter_name)
            if parameter is None:
                continue
            owner = self.muon if self.group_of(parameter_name, parameter) == "muon" else self.adamw
            if tensor.ndim:  # a step count stays where it is
                tensor = placed_like(tensor, parameter)
            assert owner is not None
            owner.state[parameter][key] = tensor


def group_of(name: str, parameter: nn.Parameter) -> str:
    """Which learning rate and optimizer a parameter has.

    `closed_form`: what starts from a least-squares fit; `head`: what puts out pixels and latents; `muon`: matrices in
    blocks; `decay`: other matrices; else `plain`.
    """
    owner, layer = name.split(".")[:2]
    if owner == "heads":
        return "decay" if parameter.ndim == 2 else "plain"
    if layer in CLOSED_FORM:
        return "closed_form"
    if layer in HEADS:
        return "head"
    if parameter.ndim != 2 or not name.endswith(".weight"):  # norms, biases, convolutions, learned embeddings
        return "plain"
    return "muon" if layer in ("blocks", "stem", "latents_out") else "decay"


def is_trained(name: str, parameter: nn.Parameter, train: TrainConfig) -> bool:
    """Whether a parameter of the training step gets gradients."""
    own = name.removeprefix("network.")
    if not train.linear_start:
        return not train.only or own.startswith(train.only)
    frozen = group_of(own, parameter) == "closed_form" and not train.closed_form_learning_rate
    return not frozen and (not train.only or own.startswith(train.only))
