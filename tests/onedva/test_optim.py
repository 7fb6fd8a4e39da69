"""Which parameter is optimised how, the rate's curve, tail dropout's lengths, and the average of the weights."""

import re
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from onedva import train as training
from onedva.config import PRESETS, OneDVAConfig, TrainConfig, preset
from onedva.data import Batch
from onedva.model import OneDVA
from onedva.optim import CLOSED_FORM, FINAL_RATE, HEADS, Optimizers, group_of

IN_BLOCKS = re.compile(r"(encoder\.blocks|decoder\.(blocks|stem|latents_out))\.\d+\.((attention|mlp)\.)?\w+\.weight")
EMBEDDINGS = ("queries", "offset", "kind", "slots", "absent_latents", "absent_structural")


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_has_its_group(name: str) -> None:
    with torch.device("meta"):
        model = OneDVA(preset(name))
    found: dict[str, list[str]] = {"closed_form": [], "muon": [], "decay": [], "plain": [], "head": []}
    for key, parameter in model.named_parameters():
        found[group_of(key, parameter)].append(key)
        if key.split(".")[1] in CLOSED_FORM:
            wanted = "closed_form"
        elif key.split(".")[1] in HEADS:
            wanted = "head"
        elif key.endswith(EMBEDDINGS) or parameter.ndim != 2:
            wanted = "plain"
        else:
            wanted = "muon" if IN_BLOCKS.fullmatch(key) else "decay"
        assert group_of(key, parameter) == wanted, key
    config = model.config
    matrices = 6 * (config.encoder_depth + config.stem_depth + config.diffusion_depth)
    assert len(found["muon"]) == matrices + 2 * config.diffusion_depth * (config.conditioning == "stem")
    assert len(found["closed_form"]) == (7 if config.pca else 0)
    assert {"encoder.patch_in.weight", "decoder.time.out.weight"} <= set(found["decay"])


def test_both_optimizers_together_own_everything_once(random_model: Callable[..., OneDVA]) -> None:
    train = TrainConfig()
    network = random_model().requires_grad_(True)
    optimizers = Optimizers(network, train)
    groups = [*optimizers.adamw.param_groups, *optimizers.muon.param_groups]
    owned = [parameter for group in groups for parameter in group["params"]]
    assert len(owned) == len({id(parameter) for parameter in owned}) == len(list(network.parameters()))
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    pca = of[id(network.encoder.pca.weight)]
    assert pca["weight_decay"] == 0 and pca["peak"] == pytest.approx(train.learning_rate / 50)
    assert of[id(network.encoder.queries)]["weight_decay"] == 0
    assert of[id(network.encoder.patch_in.weight)]["weight_decay"] == train.weight_decay
    assert of[id(network.encoder.blocks[0].mlp.up.weight)]["peak"] == train.muon_learning_rate  # type: ignore[union-attr]


def test_the_rate_warms_up_and_falls_by_a_cosine(random_model: Callable[..., OneDVA]) -> None:
    optimizers = Optimizers(random_model().requires_grad_(True), TrainConfig(warmup=10, learning_rate=2e-3))
    assert optimizers.set_rate(0, 0.0) == pytest.approx(0.1)
    assert optimizers.set_rate(9, 0.0) == pytest.approx(1.0)
    assert optimizers.set_rate(500, 0.5) == pytest.approx((1 + FINAL_RATE) / 2)
    assert optimizers.adamw.param_groups[0]["lr"] == pytest.approx(2e-3 * (1 + FINAL_RATE) / 2)
    assert optimizers.set_rate(999, 1.0) == optimizers.set_rate(999, 1.3) == pytest.approx(FINAL_RATE)


def test_gradients_are_clipped_applied_and_cleared(random_model: Callable[..., OneDVA]) -> None:
    network = random_model().requires_grad_(True)
    optimizers = Optimizers(network, TrainConfig(clip_norm=1.0))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    seen: list[float] = []
    optimizers.adamw.register_step_pre_hook(
        lambda *_: seen.append(
            torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]).norm().item()
        )
    )
    optimizers.set_rate(100, 0.0)
    optimizers.step()
    assert seen == [pytest.approx(1.0, rel=1e-3)]
    assert all(parameter.grad is None for parameter in network.parameters())
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == set(before)


def test_the_state_comes_back_by_name(random_model: Callable[..., OneDVA]) -> None:
    networks = [random_model().requires_grad_(True) for _ in range(2)]
    one, two = (Optimizers(network, TrainConfig()) for network in networks)
    for parameter in networks[0].parameters():
        parameter.grad = torch.randn_like(parameter)
    one.step()
    saved = {name: tensor.clone() for name, tensor in one.tensors().items()}
    assert "momentum_buffer.encoder.blocks.0.mlp.up.weight" in saved and "exp_avg.encoder.queries" in saved
    two.load_tensors(saved)
    again = two.tensors()
    assert set(again) == set(saved) and all(torch.equal(again[name], saved[name]) for name in saved)


def lengths(config: OneDVAConfig, *, is_key: bool = True, **changes: float) -> list[int]:
    frames = np.zeros((2, 9, 48, 64, 3), np.uint8)
    batch = Batch(torch.zeros(0), frames, torch.zeros(2))
    random, found = np.random.default_rng(0), []
    for _ in range(150):
        train = TrainConfig(**changes)  # type: ignore[arg-type]
        anchors = training.batch_anchors(config, batch, (3, 3, 4), is_key=is_key, train=train, random=random)
        assert anchors.shape[0] == 2 and anchors.dtype == torch.int64
        if not is_key and anchors.shape[1]:
            assert anchors.min() >= 12
        found.append(anchors.shape[1])
    return found


@pytest.mark.parametrize("anchors", ["content", "fixed"])
def test_tail_dropout_keeps_none_all_or_some(anchors: str, nano: Callable[..., OneDVAConfig]) -> None:
    config = nano(anchors=anchors, length_multiple=4)
    assert set(lengths(config, p_no_latents=1.0)) == {0}
    assert set(lengths(config, p_no_latents=0.0, p_all_latents=1.0)) == {36}
    assert set(lengths(config, p_no_latents=0.0, p_all_latents=1.0, is_key=False)) == {24}
    some = lengths(config, p_no_latents=0.0, p_all_latents=0.0)
    assert set(some) == set(range(4, 37, 4))
    assert np.median(some) <= 16  # log-uniform: short ones more often, where uniform has 20
    assert set(lengths(nano(anchors=anchors, trained_tokens=8, length_multiple=4), p_no_latents=0.0)) == {4, 8}


def test_the_error_head_learns_from_decodes_of_pure_noise_only() -> None:
    predicted = torch.zeros(3, 32, requires_grad=True)
    errors = torch.tensor([[0.1] * 5, [0.2] * 5, [9.0, 0.3, 0.3, 0.3, 0.3]])
    t = torch.tensor([[1.0, 1.0], [0.5, 0.5], [0.0, 1.0]])
    is_key = torch.tensor([True, True, False])
    loss = training.error_loss(predicted, errors, t, 16, is_key)
    wanted = np.mean([abs(np.log(0.1)) - 0.15, abs(np.log(0.3)) - 0.15])  # Huber with beta 0.3, far out
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.nonzero().tolist() == [[0, 15], [2, 15]]
    assert training.error_loss(predicted, errors, t, 0, is_key).item() == 0
    assert training.error_loss(predicted, errors, t * 0.5, 16, is_key).item() == 0


def test_the_average_follows_the_weights() -> None:
    average = {"a": torch.tensor([1.0, 2.0])}
    network = SimpleNamespace(state_dict=lambda: {"a": torch.tensor([3.0, 2.0])})
    training.update_average(average, network, decay=0.75)  # type: ignore[arg-type]
    assert average["a"].tolist() == [1.5, 2.0]
