"""Checkpoints: `config.json` + `model.safetensors` for a model, one more safetensors file to resume from. No pickle.

Every file appears whole or not at all: written beside its place, synced, renamed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from onedva.config import OneDVAConfig
from onedva.distributed import placed_like
from onedva.model import OneDVA

CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.safetensors"


def write_whole(path: Path, write: Any) -> None:
    """Call write(temporary path), sync it, rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors writes files that only their owner can read
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_model(model: OneDVA, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model folder. dtype: what floating-point weights are stored as; default as they are."""
    save_weights(model.state_dict(), model.config, folder, dtype=dtype)


def save_weights(
    state: dict[str, Tensor], config: OneDVAConfig, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    stored = {name: tensor.detach().to(dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    write_whole(folder / WEIGHTS, lambda path: save_file(stored, path, metadata={"format": "pt"}))
    write_whole(folder / CONFIG, lambda path: path.write_text(config.to_json()))


def load_model(name_or_path: str | Path, *, revision: str | None = None) -> OneDVA:
    """A model in float32, in eval mode: a shipped name ("tiny"), a folder, or a hub id with a pinned revision.

    Raises FileNotFoundError or BundleError for what is not there, ValueError for weights that do not fit `config.json`.
    """
    from onedva_runtime.bundle import find

    folder = find(name_or_path, revision=revision)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no model folder: {name} is missing")
    model = OneDVA(OneDVAConfig.from_json((folder / CONFIG).read_text()))
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged or no safetensors file: {error}") from error
    wanted = model.state_dict()
    wrong = set(wanted) ^ set(state) or {name for name in wanted if wanted[name].shape != state[name].shape}
    if wrong:
        names = ", ".join(sorted(wrong)[:5])
        reason = f"{names} (or is it of another version of onedva?)"
        raise ValueError(f"{folder / WEIGHTS} does not fit its config.json: {reason}")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model.eval()


def save_training(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Everything a resumed run needs beside the configuration: named tensors, and JSON facts in the file's metadata."""
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_whole(folder / TRAINING, lambda path: save_file(whole, path, metadata={"onedva": json.dumps(facts)}))


def load_training(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of `save_training`. Raises FileNotFoundError, or ValueError when the file is another program's."""
    path = folder / TRAINING
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: {path} is missing")
    try:
        with safe_open(path, framework="pt") as handle:
            facts = (handle.metadata() or {}).get("onedva")
            if facts is None:
                raise ValueError(f"{path} was not written by onedva train")
            return {name: handle.get_tensor(name) for name in handle.keys()}, json.loads(facts)  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def part_of(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


@torch.no_grad()
def copy_into(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` over those of the same name; ValueError where one of the network's is missing."""
    missing = set(own) - set(tensors)
    wrong = sorted(name for name in missing if not name.startswith("heads."))  # those may be new: a loss was added
    if wrong:
        raise ValueError(f"the run to resume lacks {', '.join(wrong[:3])}: it is of another version")
    for name, tensor in own.items():
        if name not in missing:
            tensor.copy_(placed_like(tensors[name], tensor))
