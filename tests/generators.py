"""Nano models for the tests of generation: an autoencoder of 5 frames, and generators of its latents."""

from typing import Any

import torch

from nano import random_transform
from onedva.config import OneDVAConfig
from onedva.generation.config import GeneratorConfig
from onedva.generation.model import LatentDiT
from onedva.model import OneDVA

SIDE = 48
AUTOENCODER = OneDVAConfig(
    preset="nano",
    width=64,
    encoder_depth=1,
    stem_depth=1,
    diffusion_depth=1,
    structural_channels=6,
    latent_channels=10,
    components=24,
    queries=64,
    trained_tokens=64,
    residual_channels=0,
    clip_frames=5,
)


def nano_autoencoder() -> OneDVA:
    """Random weights; what starts at zero is random too, or half of the model could be wrong unseen."""
    torch.manual_seed(1)
    model = OneDVA(AUTOENCODER)
    assert model.transform is not None
    random_transform(model.transform)
    return alive(model)


def nano_generator(**changes: Any) -> LatentDiT:
    """A random generator of 5 frames of 48×48 that knows classes and first frames; changes: of its configuration."""
    torch.manual_seed(2)
    values: dict[str, Any] = {
        "width": 64,
        "depth": 2,
        "structural_channels": 6,
        "latent_channels": 10,
        "clip_frames": 5,
        "max_tokens": 16,
        "length_multiple": 4,
        "classes": ("ring", "slide", "spin"),
        "continuation": True,
        "sizes": ((SIDE, SIDE),),
    }
    model = alive(LatentDiT(GeneratorConfig(**{**values, **changes})))
    for name, statistic in model.named_buffers():
        statistic.uniform_(0.5, 1.5) if name.endswith(("_std", "_variance")) else statistic.normal_(std=0.5)
    return model


@torch.no_grad()
def alive(model: Any) -> Any:
    for parameter in model.parameters():
        if not parameter.any():
            parameter.normal_(std=0.1)
    return model.eval().requires_grad_(False)
