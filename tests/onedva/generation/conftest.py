"""A nano autoencoder, a few scenes, their latents and a generator, each made once for whoever asks."""

from pathlib import Path

import pytest
import torch

from generators import SIDE, nano_autoencoder, nano_generator
from onedva.checkpoint import save_model
from onedva.generation.checkpoint import copy_autoencoder, latent_space, save_generator
from onedva.generation.scenes import write_scenes
from onedva.generation.tokenise import make_plan, tokenise


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training videos and one dev video of each class, 5 frames."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, per_class=2, dev_per_class=1, frames=5, size=SIDE)
    return folder


@pytest.fixture(scope="session")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    save_model(nano_autoencoder(), folder)
    return folder


@pytest.fixture(scope="session")
def latents(scenes: Path, autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All training scenes, as key clips and continuations, in shards of 6 videos."""
    folder = tmp_path_factory.mktemp("latents") / "latents"
    torch.set_num_threads(1)
    plan = make_plan(scenes, autoencoder, size=(SIDE, SIDE), continuation=True, videos_per_shard=6)
    tokenise(scenes, folder, plan, model=autoencoder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random generator, as onedva train-ldm leaves one."""
    folder = tmp_path_factory.mktemp("generator")
    copy_autoencoder(autoencoder, folder)
    generator = nano_generator(autoencoder=latent_space(folder))
    save_generator(generator.state_dict(), generator.config, folder)
    return folder
