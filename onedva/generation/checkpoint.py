"""A generator on disk: `generator.json` + `generator.safetensors`, beside the autoencoder whose latents it makes.

So one folder is all that generation needs, and both `OneDVA.from_pretrained` and `load_generator` take it.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from onedva.checkpoint import CONFIG, WEIGHTS, write_whole
from onedva.generation.config import GeneratorConfig
from onedva.generation.model import LatentDiT

__all__ = [
    "GENERATOR_CONFIG",
    "GENERATOR_WEIGHTS",
    "check_autoencoder",
    "copy_autoencoder",
    "copy_generator",
    "latent_space",
    "load_generator",
    "save_generator",
]

GENERATOR_CONFIG, GENERATOR_WEIGHTS = "generator.json", "generator.safetensors"


def save_generator(
    state: dict[str, Tensor], config: GeneratorConfig, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write weights and configuration. dtype: what weights are stored as; statistics of latents stay float32."""
    stored = {
        name: tensor.detach().to(
            tensor.dtype if dtype is None or name.endswith(("_mean", "_std", "_variance")) else dtype
        )
        for name, tensor in state.items()
    }
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    write_whole(folder / GENERATOR_WEIGHTS, lambda path: save_file(stored, path, metadata={"format": "pt"}))
    write_whole(folder / GENERATOR_CONFIG, lambda path: path.write_text(config.to_json()))


def load_generator(folder: str | Path) -> LatentDiT:
    """The generator of a folder, in float32 and eval mode.

    Raises FileNotFoundError where there is none, ValueError for weights that do not fit their configuration or another
    autoencoder beside them.
    """
    folder = Path(folder)
    for name in (GENERATOR_CONFIG, GENERATOR_WEIGHTS, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no generator: {name} is missing (onedva train-ldm makes one)")
    config = GeneratorConfig.from_json((folder / GENERATOR_CONFIG).read_text())
    model = LatentDiT(config)
    try:
        state = load_file(folder / GENERATOR_WEIGHTS)
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / GENERATOR_WEIGHTS} does not fit its {GENERATOR_CONFIG}: {reason}") from error
    return model.eval()


def latent_space(folder: Path) -> str:
    """What names the latents of a model folder: sha256 of all its weights but the decoder's, hex.

    So a decoder may be trained further, and the generators of its latents stay valid.
    """
    digest = hashlib.sha256()
    with safe_open(folder / WEIGHTS, framework="np") as file:
        for name in sorted(name for name in file.keys() if not name.startswith("decoder.")):  # noqa: SIM118
            # the same numbers in other bits: shipped weights take 16 of them, and averaging turns −0 into 0
            tensor = file.get_tensor(name).astype(np.float32) + np.float32(0)
            digest.update(f"{name} {tensor.shape}\n".encode())
            digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def check_autoencoder(folder: Path, config: GeneratorConfig) -> None:
    """ValueError unless the autoencoder in a folder is the one that a generator's latents are of."""
    if latent_space(folder) != config.autoencoder:
        raise ValueError(f"{folder / WEIGHTS} makes other latents than {GENERATOR_CONFIG} was trained with")


def copy_generator(source: Path, folder: Path) -> None:
    """Put a generator's two files into a folder."""
    for name in (GENERATOR_WEIGHTS, GENERATOR_CONFIG):
        write_whole(folder / name, functools.partial(shutil.copyfile, source / name))


def copy_autoencoder(source: Path, folder: Path) -> None:
    """Put an autoencoder's two files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (CONFIG, WEIGHTS):
        write_whole(folder / name, functools.partial(shutil.copyfile, source / name))
