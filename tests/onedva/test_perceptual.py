"""SigLIP features on the model's grid and LPIPS, with tiny or random networks made here: no weights are downloaded."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from onedva.perceptual import LPIPS, load_lpips, load_siglip
from onedva_runtime.errors import OneDVAError

ALEXNET = ((3, 64, 11), (64, 192, 5), (192, 384, 3), (384, 256, 3), (256, 256, 3))
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


# SigLIP


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random SigLIP, as its users have it: text and vision towers in one folder."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install onedva[repa]")
    size: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2}
    config = transformers.SiglipConfig(
        vision_config={**size, "image_size": 32, "patch_size": 8},
        text_config={**size, "vocab_size": 10, "bos_token_id": 1, "eos_token_id": 2},
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    transformers.SiglipModel(config).save_pretrained(folder)
    return folder


def test_siglip_features_of_a_frame_are_the_networks_own(siglip_folder: Path) -> None:
    from transformers import SiglipModel

    siglip = load_siglip(siglip_folder)
    assert siglip is not None and siglip.channels == 16
    assert not any(parameter.requires_grad for parameter in siglip.parameters())
    # 64×64 pixels: a grid of 4×4, as many as the network's patches
    image = torch.rand(1, 3, 1, 64, 64) * 1.6 - 0.8
    features = siglip(image)
    assert features.shape == (1, 1, 4, 4, 16) and not features.requires_grad
    network = SiglipModel.from_pretrained(siglip_folder, local_files_only=True).vision_model.eval()
    small = F.interpolate(image[:, :, 0], size=(32, 32), mode="bicubic", antialias=True)
    with torch.no_grad():
        wanted = network(small).last_hidden_state.reshape(1, 1, 4, 4, 16)
    assert torch.allclose(features, wanted, atol=1e-5)


def test_siglip_features_are_averaged_over_a_groups_frames(siglip_folder: Path) -> None:
    siglip = load_siglip(siglip_folder)
    assert siglip is not None
    video = torch.rand(2, 3, 9, 48, 80) * 2 - 1
    features = siglip(video)
    assert features.shape == (2, 3, 3, 5, 16)
    single = torch.stack([siglip(video[:, :, i : i + 1])[:, 0] for i in range(9)], dim=1)
    assert torch.allclose(features[:, 0], single[:, 0], atol=1e-5)
    assert torch.allclose(features[:, 1], single[:, 1:5].mean(1), atol=1e-5)
    assert torch.allclose(features[:, 2], single[:, 5:9].mean(1), atol=1e-5)
    assert not torch.allclose(features[:, 1], features[:, 2], atol=1e-3)


def test_siglip_features_keep_their_place(siglip_folder: Path) -> None:
    """A network that passes each patch's mean on puts it where the patch is, also on a grid that is not square."""

    class Means(torch.nn.Module):
        def forward(self, images: Tensor) -> Any:
            means = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
            return type("Output", (), {"last_hidden_state": means})()

    siglip = load_siglip(siglip_folder)
    assert siglip is not None
    siglip.network = Means()
    video = torch.full((1, 3, 1, 64, 128), -1.0)
    video[..., 16:32, 96:128] = 1.0  # row 1, columns 6 and 7 of 4×8
    features = siglip(video)[0, 0, ..., 0]
    assert features.shape == (4, 8)
    assert features[1, 6:].min() > 0.4 and features[1, :4].max() < -0.9 and features[3].max() < -0.9


def test_siglip_is_off_without_a_folder(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onedva"):
        assert load_siglip(None) is None
    assert [record.message for record in caplog.records] == ["REPA is off: no folder with SigLIP weights was given"]


def test_what_is_no_siglip_is_refused(siglip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no SigLIP folder"):
        load_siglip(tmp_path)
    config = json.loads((siglip_folder / "config.json").read_text())
    state = load_file(siglip_folder / "model.safetensors")
    name = next(name for name in state if name.endswith("patch_embedding.weight"))
    save_file({key: value for key, value in state.items() if key != name}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks weights: .*patch_embedding"):
        load_siglip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    with pytest.raises(ValueError, match="type 'clip'; allowed: siglip"):
        load_siglip(tmp_path)


def test_pickled_weights_are_not_read(siglip_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((siglip_folder / "config.json").read_text())
    torch.save(load_file(siglip_folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors weights are needed"):
        load_siglip(tmp_path)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(OneDVAError, match=r"pip install 'onedva\[repa\]'"):
        load_siglip(tmp_path)


# LPIPS


def alexnet_state(prefix: str = "lin{}") -> dict[str, Tensor]:
    """Random weights under the names of the `lpips` package."""
    state = {}
    for index, (layer, (inner, outer, kernel)) in enumerate(zip((0, 3, 6, 8, 10), ALEXNET, strict=True)):
        name = f"net.slice{index + 1}.{layer}"
        state[f"{name}.weight"] = torch.randn(outer, inner, kernel, kernel) * (2 / inner / kernel**2) ** 0.5
        state[f"{name}.bias"] = torch.randn(outer) * 0.1
        state[f"{prefix.format(index)}.model.1.weight"] = torch.rand(1, outer, 1, 1)
    state["scaling_layer.shift"], state["scaling_layer.scale"] = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    return state


def reference_distance(state: dict[str, Tensor], one: Tensor, other: Tensor) -> float:
    """LPIPS of two pictures (3, H, W) with AlexNet, written out (Zhang et al. 2018, equation 1)."""
    total, hidden = 0.0, []
    for image in (one, other):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        hidden.append(((image - shift[:, None, None]) / scale[:, None, None])[None])
    for index, layer in enumerate((0, 3, 6, 8, 10)):
        weight, bias = (state[f"net.slice{index + 1}.{layer}.{kind}"] for kind in ("weight", "bias"))
        units = []
        for side, picture in enumerate(hidden):
            picture = F.max_pool2d(picture, 3, 2) if index in (1, 2) else picture
            stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[index]
            hidden[side] = F.conv2d(picture, weight, bias, stride=stride, padding=padding).relu()
            units.append(hidden[side] / hidden[side].norm(dim=1, keepdim=True).clamp(min=1e-10))
        linear = state[f"lin{index}.model.1.weight"]
        total += ((units[0] - units[1]).square() * linear).sum(dim=1).mean().item()
    return total


def test_lpips_is_the_published_formula(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = alexnet_state()
    save_file(state, tmp_path / "alex.safetensors")
    network = load_lpips(tmp_path / "alex.safetensors")
    assert network is not None
    one, other = torch.rand(2, 2, 3, 64, 80) * 2 - 1
    distances = network(one, other)
    wanted = [reference_distance(state, one[i], other[i]) for i in range(2)]
    assert distances.tolist() == pytest.approx(wanted, rel=1e-4)
    assert network(one, one).tolist() == [0, 0]
    assert torch.allclose(network(other, one), distances)


def test_lpips_is_finite_where_nothing_is_seen() -> None:
    state = {
        name: torch.zeros_like(tensor) if name.endswith("bias") else tensor for name, tensor in alexnet_state().items()
    }
    network = LPIPS(state)
    blank = network.shift.expand(3, 64, 64)[None].clone().requires_grad_(True)  # every unit is 0
    loss = network(blank, torch.rand(1, 3, 64, 64)).sum()
    loss.backward()
    assert loss > 0 and blank.grad is not None and blank.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_lpips_reads_both_names_of_its_linear_layers() -> None:
    torch.manual_seed(0)
    one, other = torch.rand(2, 1, 3, 64, 64)
    torch.manual_seed(1)
    first = LPIPS(alexnet_state())(one, other)
    torch.manual_seed(1)
    assert torch.equal(LPIPS(alexnet_state("lins.{}"))(one, other), first)


def test_vgg_is_told_by_its_first_layer() -> None:
    torch.manual_seed(0)
    state, inner, number = {}, 3, 0
    layers = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    for index, slice_layers in enumerate(layers):
        for layer in slice_layers:
            outer = VGG[number]
            state[f"net.slice{index + 1}.{layer}.weight"] = torch.randn(outer, inner, 3, 3) * (2 / inner / 9) ** 0.5
            state[f"net.slice{index + 1}.{layer}.bias"] = torch.zeros(outer)
            inner, number = outer, number + 1
        state[f"lin{index}.model.1.weight"] = torch.full((1, inner, 1, 1), float(index == 1))
    one, other = torch.rand(2, 1, 3, 64, 64) * 2 - 1
    features = []
    for image in (one, other):  # only the second stage counts: two convolutions, a pooling, two more
        hidden = (image - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor([0.458, 0.448, 0.450])[
            :, None, None
        ]
        for index, layer in ((1, 0), (1, 2), (2, 5), (2, 7)):
            hidden = F.max_pool2d(hidden, 2) if layer == 5 else hidden
            hidden = F.conv2d(hidden, state[f"net.slice{index}.{layer}.weight"], padding=1).relu()
        features.append(F.normalize(hidden, dim=1))
    wanted = (features[0] - features[1]).square().sum(dim=1).mean()
    assert LPIPS(state)(one, other).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_lpips_is_off_without_a_file_and_refuses_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "onedva"):
        assert load_lpips(None) is None
    assert [record.message for record in caplog.records] == ["LPIPS is off: no file with its weights was given"]
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_lpips(tmp_path / "missing.safetensors")
    (tmp_path / "a.pth").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match="damaged or no safetensors file"):
        load_lpips(tmp_path / "a.pth")
    for missing in ("lin3.model.1.weight", "net.slice4.8.bias", "net.slice1.0.weight"):
        save_file({k: v for k, v in alexnet_state().items() if k != missing}, tmp_path / "part.safetensors")
        with pytest.raises(ValueError, match="no LPIPS of VGG16 or AlexNet"):
            load_lpips(tmp_path / "part.safetensors")
