"""Which parameter is optimised how, the rate's curve, what an update does, and the average of the weights."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onedva import train as training
from onedva.alignment import AlignmentHeads
from onedva.config import PRESETS, preset
from onedva.model import OneDVA
from onedva.optim import CLOSED_FORM, FINAL_RATE, HEADS, Optimizers, group_of, is_trained
from onedva.steps import TrainingStep
from onedva.train_config import TrainConfig

IN_BLOCKS = re.compile(r"(encoder\.blocks|decoder\.(blocks|stem|latents_out))\.\d+\.((attention|mlp)\.)?\w+\.weight")
EMBEDDINGS = ("queries", "offset", "kind", "slots", "absent_latents", "absent_structural", "class_in")


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
    assert found["closed_form"] == (["transform.basis", "transform.directions"] if config.pca else [])
    assert {"encoder.patch_in.weight", "decoder.time.out.weight"} <= set(found["decay"])
    heads = {key.split(".")[1] for key in found["head"]}
    if config.pca:  # some correct the linear transform, and are not there without it
        assert heads | {"residual_out"} == set(HEADS)


def step_of(network: OneDVA, **changes: Any) -> tuple[TrainingStep, Optimizers]:
    train = TrainConfig(**changes)
    module = TrainingStep(network.requires_grad_(True), train, heads=AlignmentHeads(network.config))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_trained(name, parameter, train))
    return module, Optimizers(module, train, bf16=False)


def of_parameters(optimizers: Optimizers) -> dict[int, dict[str, Any]]:
    """Each parameter's group of options."""
    groups = [group for optimizer in optimizers.all for group in optimizer.param_groups]
    owned = [parameter for group in groups for parameter in group["params"]]
    assert len(owned) == len({id(parameter) for parameter in owned})
    return {id(parameter): group for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_everything_that_is_trained_is_owned_once_at_its_rate(optimizer: str, random_model) -> None:
    module, optimizers = step_of(random_model(), optimizer=optimizer, closed_form_learning_rate=0.02)
    network, train, of = module.network, optimizers.train, of_parameters(optimizers)
    assert set(of) == {id(parameter) for parameter in module.parameters()}
    basis = of[id(network.transform.basis)]  # type: ignore[union-attr]
    assert basis["weight_decay"] == 0 and basis["peak"] == pytest.approx(train.learning_rate / 50)
    head = of[id(network.encoder.latents_head.weight)]
    assert head["peak"] == pytest.approx(train.learning_rate * train.head_learning_rate)
    assert of[id(network.encoder.queries)]["weight_decay"] == 0
    assert of[id(network.encoder.patch_in.weight)]["weight_decay"] == train.weight_decay
    assert module.heads is not None and of[id(module.heads.latents.weight)]["weight_decay"] == train.weight_decay
    block = of[id(network.encoder.blocks[0].mlp.up.weight)]  # type: ignore[union-attr]
    assert block["peak"] == (train.muon_learning_rate if optimizer == "muon" else train.learning_rate)
    assert (optimizers.muon is None) == (optimizer == "adamw")


def test_the_transform_stays_as_it_was_fit_unless_asked_or_random(random_model) -> None:
    for changes, rate in (({}, None), ({"closed_form_learning_rate": 1.0}, 3e-4), ({"linear_start": False}, 3e-4)):
        module, optimizers = step_of(random_model(), **changes)
        group = of_parameters(optimizers).get(id(module.network.transform.basis))  # type: ignore[union-attr]
        assert (group["peak"] if group else None) == rate


def test_only_some_parameters_can_be_trained(random_model) -> None:
    module, optimizers = step_of(random_model(), only=("decoder.blocks", "encoder.norm"))
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert len(trained) > 5
    assert all(name.startswith(("network.decoder.blocks", "network.encoder.norm")) for name in trained)
    assert {f"network.{name}" for name in optimizers.parameters} == trained


def test_the_rate_warms_up_and_falls_by_a_cosine(random_model) -> None:
    _, optimizers = step_of(random_model(), warmup=10, learning_rate=2e-3)
    assert optimizers.set_rate(0, 0.0) == pytest.approx(0.1)
    assert optimizers.set_rate(9, 0.0) == pytest.approx(1.0)
    assert optimizers.set_rate(500, 0.5) == pytest.approx((1 + FINAL_RATE) / 2)
    assert optimizers.adamw is not None
    assert optimizers.adamw.param_groups[0]["lr"] == pytest.approx(2e-3 * (1 + FINAL_RATE) / 2)
    assert optimizers.set_rate(999, 1.0) == optimizers.set_rate(999, 1.3) == pytest.approx(FINAL_RATE)


def test_gradients_are_clipped_applied_and_cleared(random_model) -> None:
    module, optimizers = step_of(random_model(), clip_norm=1.0, closed_form_learning_rate=0.1)
    parameters = list(module.parameters())
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 1e6)
    whole = 1e6 * sum(parameter.numel() for parameter in parameters) ** 0.5
    seen: list[float] = []
    assert optimizers.adamw is not None
    optimizers.adamw.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item())
    )
    optimizers.set_rate(100, 0.0)
    assert optimizers.step() == pytest.approx(whole, rel=1e-3)
    assert seen == [pytest.approx(1.0, rel=1e-3)]
    assert all(parameter.grad is None for parameter in parameters)
    assert all(not torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())


def test_gradients_that_are_no_numbers_move_nothing(random_model) -> None:
    module, optimizers = step_of(random_model())
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module.network.encoder.queries.grad[0, 0] = float("inf")  # type: ignore[index]
    assert optimizers.step() == float("inf")
    assert all(torch.equal(parameter, before[name]) for name, parameter in module.named_parameters())
    assert not optimizers.tensors()


def test_the_state_comes_back_by_name(random_model: Callable[..., OneDVA]) -> None:
    (module, one), (_, two) = (step_of(random_model()) for _ in range(2))
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    one.step()
    saved = {name: tensor.clone() for name, tensor in one.tensors().items()}
    assert "momentum_buffer.encoder.blocks.0.mlp.up.weight" in saved and "exp_avg.encoder.queries" in saved
    two.load_tensors({**saved, "exp_avg.no.longer.there": torch.ones(2)})
    again = two.tensors()
    assert set(again) == set(saved) and all(torch.equal(again[name], saved[name]) for name in saved)


def test_the_average_follows_the_weights() -> None:
    average = {"a": torch.tensor([1.0, 2.0])}
    network: Any = SimpleNamespace(state_dict=lambda: {"a": torch.tensor([3.0, 2.0])})
    training.update_average(average, network, decay=0.75)
    assert average["a"].tolist() == [1.5, 2.0]
