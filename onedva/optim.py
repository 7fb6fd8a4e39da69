"""Two optimizers as one: Muon for the matrices inside blocks, AdamW for everything else, one learning-rate curve."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from onedva.config import TrainConfig
from onedva.model import OneDVA

CLOSED_FORM = ("pca", "structural_pca", "latents_pca", "preview_neighbours", "preview_out")
HEADS = ("patch_out", "preview_hidden", "residual_out", "structural_head", "latents_head", "error_head")
FINAL_RATE = 0.05  # of the peak learning rate, at the end of the cosine


class Optimizers:
    """Owns both optimizers of a model; `step` clips, applies and clears the gradients."""

    def __init__(self, network: OneDVA, train: TrainConfig) -> None:
        self.train = train
        self.parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
        groups: dict[str, list[nn.Parameter]] = {"muon": [], "decay": [], "plain": [], "head": [], "closed_form": []}
        for name, parameter in self.parameters.items():
            groups[group_of(name, parameter)].append(parameter)
        adamw = [
            {"params": groups["decay"], "weight_decay": train.weight_decay, "peak": train.learning_rate},
            {"params": groups["plain"], "weight_decay": 0.0, "peak": train.learning_rate},
            {"params": groups["head"], "weight_decay": 0.0, "peak": train.learning_rate * train.head_learning_rate},
            {
                "params": groups["closed_form"],
                "weight_decay": 0.0,
                "peak": train.learning_rate * train.closed_form_learning_rate,
            },
        ]
        adamw = [group for group in adamw if group["params"]]
        self.adamw = torch.optim.AdamW(adamw, lr=train.learning_rate, betas=(0.9, 0.98))
        self.muon = torch.optim.Muon(
            [{"params": groups["muon"], "peak": train.muon_learning_rate}],
            lr=train.muon_learning_rate,
            weight_decay=train.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    def set_rate(self, step: int, done: float) -> float:
        """Set every group's rate: linear warm-up over steps, cosine over `done` in [0, 1]. Returns the factor."""
        warm = min(1.0, (step + 1) / max(self.train.warmup, 1))
        factor = warm * (FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for optimizer in (self.adamw, self.muon):
            for group in optimizer.param_groups:
                group["lr"] = factor * group["peak"]
        return factor

    def step(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters.values(), self.train.clip_norm)
        for optimizer in (self.adamw, self.muon):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The optimizers' state as named tensors: `<state>.<parameter>`."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.parameters.items()}
        found = {}
        for optimizer in (self.adamw, self.muon):
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    found[f"{key}.{names[parameter]}"] = torch.as_tensor(value)
        return found

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        for name, tensor in tensors.items():
            key, parameter_name = name.split(".", 1)
            parameter = self.parameters[parameter_name]
            owner = self.muon if group_of(parameter_name, parameter) == "muon" else self.adamw
            owner.state[parameter][key] = tensor


def group_of(name: str, parameter: nn.Parameter) -> str:
    """Which learning rate and optimizer a parameter has.

    `closed_form`: what starts from a least-squares fit; `head`: what puts out pixels and latents; `muon`: matrices in
    blocks; `decay`: other matrices; else `plain`.
    """
    layer = name.split(".")[1]
    if layer in CLOSED_FORM:
        return "closed_form"
    if layer in HEADS:
        return "head"
    if parameter.ndim != 2 or not name.endswith(".weight"):  # norms, biases, convolutions, learned embeddings
        return "plain"
    return "muon" if layer in ("blocks", "stem", "latents_out") else "decay"
