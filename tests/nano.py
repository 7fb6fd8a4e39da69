"""One nano model with every weight alive, exported once for all tests of this folder."""

from pathlib import Path

import pytest
import torch

from onedva.config import OneDVAConfig
from onedva.model import OneDVA
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
    residual_channels=4,
)


def nano_model(config: OneDVAConfig = NANO) -> OneDVA:
    """Random weights; what starts at zero is random too, or half of the graph could be wrong unseen."""
    torch.manual_seed(0)
    model = OneDVA(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
        for buffer in model.buffers():
            buffer.uniform_(0.1, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "nano-v1"
    nano_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "nano-v1"
    return export_bundle(checkpoint, target, max_tokens=64, resolutions=[(64, 96)])
