"""A nano model with every weight alive, its linear transform, and both exported once for whoever asks."""

from pathlib import Path

import pytest
import torch

from onedva.config import OneDVAConfig
from onedva.lapped import HALF, overlap_of
from onedva.linear_start import set_directions
from onedva.model import OneDVA
from onedva.transform import PatchTransform
from onedva_export import export_bundle

NANO = OneDVAConfig(
    preset="nano",
    width=128,
    encoder_depth=1,
    stem_depth=1,
    diffusion_depth=1,
    queries=64,
    trained_tokens=64,
    structural_channels=8,
    latent_channels=16,
    components=32,
    residual_channels=4,
)


def nano_model(config: OneDVAConfig = NANO) -> OneDVA:
    """Random weights; what starts at zero is random too, or half of the graph could be wrong unseen."""
    torch.manual_seed(0)
    model = OneDVA(config)
    if model.transform is not None:
        random_transform(model.transform)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model.eval()


@torch.no_grad()
def random_transform(transform: PatchTransform) -> None:
    """Fill the tables with the principal directions of made-up statistics: orthonormal, no two channels alike."""
    size = transform.max_groups * transform.components
    mixed = torch.randn(transform.classes, size, size) / size**0.5
    set_directions(transform, mixed @ mixed.mT, torch.full((transform.classes,), 1 / transform.classes))
    turn = torch.randn(HALF, HALF) / 4
    transform.overlap.copy_(overlap_of(torch.matrix_exp(turn - turn.T)))
    for buffer in (transform.mean, transform.coefficient_std, transform.remainder_std):
        buffer.uniform_(0.1, 0.2)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "nano-v1"
    nano_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "nano-v1"
    return export_bundle(checkpoint, target, max_tokens=64, resolutions=[(64, 96)])
