"""Model folders and training state: whole or absent, readable by nothing but their format, refused when foreign."""

import dataclasses
import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from onedva.checkpoint import load_model, load_training, save_model, save_training, write_whole
from onedva.config import PRESETS, OneDVAConfig
from onedva.model import OneDVA
from onedva_runtime.errors import BundleError


def test_a_model_comes_back_as_it_was(tmp_path: Path, random_model: Callable[..., OneDVA], make_video) -> None:
    model, video = random_model(policy_density=42.5), make_video(1, 5, 32, 48)
    model.save_pretrained(tmp_path / "model")
    loaded = OneDVA.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert not loaded.training
    wanted = model.state_dict()
    assert set(loaded.state_dict()) == set(wanted)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
    assert torch.equal(loaded.encode(video).latent_dist.mode().latents, model.encode(video).latent_dist.mode().latents)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_sixteen_bit_storage_is_half_the_size_and_loads_as_float32(tmp_path: Path, random_model) -> None:
    model = random_model()
    save_model(model, tmp_path / "full")
    save_model(model, tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.51 * sizes[0]
    loaded, wanted = load_model(tmp_path / "half").state_dict(), model.state_dict()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, wanted[name].half().float())


def test_the_file_is_a_json_header_and_raw_numbers_and_nothing_else(tmp_path: Path, random_model) -> None:
    save_model(random_model(), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    ranges = sorted(entry["data_offsets"] for entry in header.values())
    assert ranges[0][0] == 0
    assert all(before[1] == after[0] for before, after in pairwise(ranges))
    assert 8 + length + ranges[-1][1] == len(content)  # no room for a pickle
    assert not zipfile.is_zipfile(tmp_path / "model.safetensors")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    write_whole(path, lambda temporary: temporary.write_bytes(b"old"))
    assert path.read_bytes() == b"old"

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half of the ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.bin"]
    write_whole(path, lambda temporary: temporary.write_bytes(b"new"))
    assert path.read_bytes() == b"new"


def test_the_target_is_untouched_while_writing(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        assert temporary != path and temporary.parent == path.parent  # one file system: a rename is atomic
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"

    write_whole(path, write)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_misses_a_part_is_no_model(tmp_path: Path, missing: str, random_model) -> None:
    save_model(random_model(), tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing"):
        load_model(tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load_model(tmp_path / "nowhere")


def test_weights_of_another_configuration_are_refused(tmp_path: Path, random_model, nano) -> None:
    save_model(random_model(), tmp_path)
    (tmp_path / "config.json").write_text(nano(latent_channels=12).to_json())
    with pytest.raises(ValueError, match=r"does not fit its config\.json: .*latents"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(nano(encoder_depth=2).to_json())
    with pytest.raises(ValueError, match=r"does not fit its config\.json: encoder\.blocks\.1"):
        load_model(tmp_path)


def test_missing_and_extra_weights_are_refused(tmp_path: Path, random_model) -> None:
    save_model(random_model(), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "lora.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lora\.weight"):
        load_model(tmp_path)
    del state["encoder.queries"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"encoder\.queries"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\x80\x04 a pickle" * 100])
def test_weights_in_another_format_are_refused(tmp_path: Path, content: bytes, random_model) -> None:
    save_model(random_model(), tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        load_model(tmp_path)


def test_cut_off_weights_are_refused(tmp_path: Path, random_model) -> None:
    save_model(random_model(), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_model(tmp_path)


def test_training_state_comes_back(tmp_path: Path) -> None:
    tensors = {"model.a": torch.randn(3, 4).T, "optimizer.step.a": torch.tensor(7.0)}
    facts = {"step": 12, "elapsed": 3.25}
    save_training(tmp_path, tensors, facts)
    loaded, said = load_training(tmp_path)
    assert said == facts
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_foreign_training_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        load_training(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "training.safetensors")
    with pytest.raises(ValueError, match="not written by onedva train"):
        load_training(tmp_path)
    (tmp_path / "training.safetensors").write_bytes(b"\x80\x04 a pickle" * 100)
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        load_training(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_configurations_survive_json(name: str) -> None:
    config = PRESETS[name]
    assert OneDVAConfig.from_json(config.to_json()) == config
    values = json.loads(config.to_json())
    assert values.pop("model_type") == "onedva"
    assert values == dataclasses.asdict(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "onedva", "widht": 256}', "unknown entries: widht"),
        ('{"model_type": "llama", "width": 256}', "model_type is missing or foreign"),
        ('{"width": 256}', "model_type is missing or foreign"),
        ("[1, 2]", "not a onedva config"),
        ('{"model_type": "onedva", "width": 100}', "multiple of 64"),
        ("{", "line 1"),
    ],
)
def test_other_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OneDVAConfig.from_json(text)
