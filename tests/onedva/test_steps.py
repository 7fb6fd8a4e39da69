"""What one step computes: what is random and from where, which latents it keeps, and each stage's targets."""

from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva import flow, losses, steps
from onedva import train as training
from onedva.alignment import AlignmentHeads
from onedva.config import OneDVAConfig
from onedva.data import Batch, ClipSampler
from onedva.linear_start import ERROR_SCALE
from onedva.model import OneDVA, to_video
from onedva.optim import is_trained
from onedva.steps import CONTEXT_NOISE, TrainingStep, batch_anchors, error_loss
from onedva.train_config import STAGES
from training_runs import quick_config


@pytest.fixture
def sampler(tmp_path: Path, cache: Path, write_video: Callable[..., np.ndarray]) -> Iterator[ClipSampler]:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "0.mp4", frames=12, height=64, width=80, seed=0)
    clips = training.load_clips(tmp_path / "videos", split="train", minimum_frames=5)
    yield ClipSampler(clips, frames=5, sizes=((48, 64, 1.0),), positions_per_batch=48, seed=0)


@pytest.fixture
def batch(sampler: ClipSampler) -> Batch:
    return sampler(0)


def step_of(network: OneDVA, **changes: Any) -> TrainingStep:
    config = quick_config(**changes)
    module = TrainingStep(network.requires_grad_(True), config, heads=AlignmentHeads(network.config))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_trained(name, parameter, config))
    return module


def gradients(module: TrainingStep) -> dict[str, Tensor]:
    found = {name: value.grad for name, value in module.network.named_parameters() if value.grad is not None}
    module.zero_grad()
    return found


# What is random


@pytest.mark.parametrize("stage", ["joint", "encoder"])
def test_the_step_decides_what_is_random(stage: str, batch: Batch, random_model) -> None:
    module = step_of(random_model(), stage=stage)
    made = []
    for state in (1, 2):
        torch.manual_seed(state)  # nothing hangs on it
        parts = module(batch, step=4)
        parts["loss"].backward()
        made.append(({name: part.item() for name, part in parts.items()}, gradients(module)))
    assert made[0][0] == made[1][0]
    assert all(torch.equal(made[0][1][name], made[1][1][name]) for name in made[0][1])
    others = [module(batch, step=step)["loss"].item() for step in range(5, 9)]
    if stage == "joint":  # the other has no noise, and so its loss is that of the number of latents
        assert made[0][0]["loss"] not in others


def test_the_loss_is_the_weighted_sum(batch: Batch, random_model) -> None:
    weights = {"preview": 0.7, "kl": 0.01, "frame_difference": 0.3, "error": 0.2, "self_alignment": 0.4}
    changes = {f"{name}_weight": weight for name, weight in weights.items()}
    module = step_of(random_model(), p_full=1.0, p_no_latents=0.0, **changes)
    values = {name: part.item() for name, part in module(batch, step=4).items()}
    assert set(values) == {"loss", "flow", *weights} and all(values[name] for name in weights)
    wanted = values["flow"] + sum(weight * values[name] for name, weight in weights.items())
    assert values["loss"] == pytest.approx(wanted, rel=1e-5)


# Continuation clips


def test_a_continuation_step_gives_the_context_frame_and_asks_nothing_of_it(
    sampler: ClipSampler, random_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = step_of(random_model(), p_no_latents=0.0, error_weight=0.0)
    calls: list[dict[str, Tensor]] = []
    module.network.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    batch, key = sampler(0, before=True), sampler(0)
    assert batch.before is not None
    np.testing.assert_array_equal(batch.before[:, -1], batch.frames[:, 0])
    monkeypatch.setattr(module, "context", lambda *a: torch.full_like(batch.video[:, :, 0], 0.25))
    kept = module(batch, step=4)["loss"].item()
    original = losses.frame_errors

    def wrong_first_frame(predicted: Tensor, video: Tensor) -> Tensor:
        errors = original(predicted, video)
        return torch.cat([errors[:, :1] + 1e4, errors[:, 1:]], dim=1)

    with monkeypatch.context() as patch:
        patch.setattr(losses, "frame_errors", wrong_first_frame)
        patch.setattr(losses, "relative", lambda errors, reference, is_key, floor: errors)
        broken = module(batch, step=4)["loss"].item()
        assert module(key, step=4)["flow"].item() > 1e3
    assert broken < 1e3 and kept < 1e3

    given, whole = calls[0], calls[-1]
    assert not given["is_key"].any() and whole["is_key"].all()
    assert (given["t"][:, 0] == 0).all() and (given["t"][:, 1] > 0).all()
    assert (whole["t"] > 0).all()
    assert given["anchors"].min() >= 12  # group 0 has 3×4 positions, none coded
    assert (given["noisy"][:, :, 0] == 0.25).all() and (given["noisy"][:, :, 1:] != 0.25).any()


def test_the_context_is_what_was_decoded_before_or_the_source_with_a_little_noise(
    sampler: ClipSampler, random_model
) -> None:
    module, batch = step_of(random_model()), sampler(0, before=True)

    def context(draw: float) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        random: Any = SimpleNamespace(random=lambda: draw)
        return module.context(batch, 16, random, generator)

    source = batch.video[:, :, 0]
    noise = (context(0.6) - source).std(dim=(1, 2, 3))
    assert (noise > 0).all() and (noise < 1.05 * CONTEXT_NOISE).all()
    assert len(set(noise.tolist())) == len(noise)  # each clip has a level of its own
    assert batch.before is not None
    with torch.no_grad():
        z = module.network.encode(to_video(torch.from_numpy(batch.before)), tokens=16).latent_dist.mode()
        noise = torch.randn(batch.video.shape, generator=torch.Generator().manual_seed(3))
        decoded = module.network.decode(z, num_steps=1, noise=noise).sample
    assert torch.equal(context(0.4), decoded[:, :, -1])
    assert not context(0.4).requires_grad


# How many latents


def lengths(config: OneDVAConfig, *, is_key: bool = True, count: int = 150, **changes: Any) -> list[int]:
    frames = np.zeros((2, 9, 48, 64, 3), np.uint8)
    batch = Batch(torch.zeros(0), frames, torch.zeros(2))
    random, found = np.random.default_rng(0), []
    train = quick_config(**changes)
    for _ in range(count):
        anchors = batch_anchors(config, batch, is_key=is_key, train=train, random=random)
        assert anchors.shape[0] == 2 and anchors.dtype == torch.int64
        if not is_key and anchors.shape[1]:
            assert anchors.min() >= 12
        found.append(anchors.shape[1])
    return found


NONE: dict[str, Any] = {"p_no_latents": 0.0, "p_all_latents": 0.0, "p_policy_latents": 0.0}


@pytest.mark.parametrize("anchors", ["content", "fixed"])
def test_tail_dropout_keeps_none_all_or_some(anchors: str, nano: Callable[..., OneDVAConfig]) -> None:
    config = nano(anchors=anchors, length_multiple=4)
    assert set(lengths(config, count=9, **{**NONE, "p_no_latents": 1.0})) == {0}
    assert set(lengths(config, count=9, **{**NONE, "p_all_latents": 1.0})) == {36}
    assert set(lengths(config, count=9, is_key=False, **{**NONE, "p_all_latents": 1.0})) == {24}
    some = lengths(config, **NONE)
    assert set(some) == set(range(4, 37, 4))
    assert np.median(some) <= 16  # log-uniform: short ones more often, where uniform has 20
    short = nano(anchors=anchors, trained_tokens=8, length_multiple=4)
    assert set(lengths(short, count=40, **NONE)) == {4, 8}


def test_each_way_has_its_share_and_the_policy_s_length_varies_by_a_factor_of_two(
    nano: Callable[..., OneDVAConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = chain.from_iterable(repeat((12, 20)))  # of the two clips, by turns; their mean is 16
    monkeypatch.setattr(steps.placement, "choose_tokens", lambda *a, **o: next(chosen))
    config = nano(length_multiple=1)
    policy = lengths(config, **{**NONE, "p_policy_latents": 1.0})
    assert min(policy) == 8 and max(policy) in (31, 32) and np.median(policy) == pytest.approx(16, abs=2)
    found = np.array(lengths(config, count=600, p_no_latents=0.2, p_all_latents=0.3, p_policy_latents=0.5))
    assert np.mean(found == 0) == pytest.approx(0.2, abs=0.05)
    assert np.mean(found == 36) == pytest.approx(0.3, abs=0.05)
    assert np.mean((found >= 8) & (found <= 32)) == pytest.approx(0.5, abs=0.05)


def test_the_error_head_learns_from_whole_decodes_only() -> None:
    predicted = torch.zeros(3, 32, requires_grad=True)
    errors = torch.tensor([[0.1] * 5, [0.2] * 5, [9.0, 0.3, 0.3, 0.3, 0.3]])
    is_key, counted = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    loss = error_loss(predicted, errors, is_key, 16, counted)
    wanted = np.mean([abs(np.log(0.1)) - 0.15, abs(np.log(0.3)) - 0.15])  # Huber with beta 0.3, far out
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert predicted.grad is not None
    assert predicted.grad.nonzero().tolist() == [[0, 15], [2, 15]]
    assert error_loss(predicted, errors, is_key, 0, counted).item() == 0
    assert error_loss(predicted, errors, is_key, 16, counted & False).item() == 0


# Stages


def test_the_encoder_stage_trains_what_makes_the_preview(batch: Batch, random_model) -> None:
    module = step_of(random_model(), stage="encoder", p_no_latents=0.0)
    parts = module(batch, step=4)
    parts["loss"].backward()
    moved = {name for name, gradient in gradients(module).items() if gradient.any()}
    assert {"encoder.patch_in.weight", "decoder.stem.0.mlp.up.weight", "decoder.preview_hidden.weight"} <= moved
    assert not any(name.startswith(("decoder.blocks", "decoder.time", "transform")) for name in moved)
    half = module.network.config.structural_channels
    parts = module(batch, step=4)
    parts["loss"].backward()
    assert not gradients(module)["encoder.structural_head.weight"][half:].any()  # no noise, so nothing for its level
    assert parts["loss"].item() == pytest.approx((parts["preview"] + 0.05 * parts["error"]).item())


def distilled(
    network: OneDVA, teacher: OneDVA, batch: Batch, *, count: int, at: int
) -> tuple[dict[str, Tensor], TrainingStep]:
    """The losses of step `at` of `count`, with all latents."""
    config = quick_config(**STAGES["distill"])
    module = TrainingStep(network, config, teacher=teacher.requires_grad_(False))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(is_trained(name, parameter, config))
    drawn = iter((count, at))
    random: Any = SimpleNamespace(integers=lambda low, high: next(drawn))
    every = quick_config(**{**NONE, "p_all_latents": 1.0})
    anchors = batch_anchors(network.config, batch, is_key=True, train=every, random=np.random.default_rng(0))
    return module.distill(batch, anchors, random, torch.Generator().manual_seed(0)), module


@pytest.mark.parametrize(("count", "at"), [(2, 0), (2, 1), (4, 0), (4, 3)])
def test_a_student_like_its_teacher_has_nothing_to_learn_from_equal_steps(
    count: int, at: int, batch: Batch, random_model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = distilled(random_model(), random_model(), batch, count=count, at=at)
    assert set(found) == {"loss", "distill"} and found["loss"].item() > 1e-6  # four steps see more than one
    monkeypatch.setattr(steps, "TEACHER_STEPS", 1)
    found, _ = distilled(random_model(), random_model(), batch, count=count, at=at)
    assert found["loss"].item() < 1e-9
    other = random_model()
    with torch.no_grad():
        other.decoder.patch_out.weight.mul_(1.5)
    assert distilled(other, random_model(), batch, count=count, at=at)[0]["loss"].item() > 1e-6


def test_a_one_step_decode_keeps_the_clean_video_as_its_target(batch: Batch, random_model) -> None:
    worse = random_model()
    with torch.no_grad():
        worse.decoder.patch_out.weight.mul_(3.0)
    found, module = distilled(random_model(), random_model(), batch, count=1, at=0)
    assert set(found) == {"loss", "one_step"}
    assert distilled(random_model(), worse, batch, count=1, at=0)[0]["loss"] == found["loss"]
    assert distilled(random_model(), worse, batch, count=2, at=0)[0]["loss"].item() > 1e-3

    network = random_model()
    with torch.no_grad():
        z = network.encode(batch.video, fps=24.0).latent_dist.mode()
        noise = torch.randn(batch.video.shape, generator=torch.Generator().manual_seed(0))
        z = z.__class__(z.structural, z.latents, z.anchors, z.is_key, steps.resolutions(batch), z.size)
        condition = network.condition(z)
        decoded = flow.euler(
            lambda x, t: network.decoder.velocity(x, torch.ones(len(x), 2) * t, condition, network.transform),
            noise,
            [1.0, 0.0],
        )
    errors = losses.frame_errors(decoded, batch.video)
    reference = losses.frame_errors(condition.preview, batch.video)
    wanted = losses.relative(errors, reference, z.is_key, floor=ERROR_SCALE).mean().item()
    assert found["loss"].item() == pytest.approx(wanted, rel=0.01)  # fps of a slowed crop is not in those latents

    found["loss"].backward()
    moved = {name for name, gradient in gradients(module).items() if gradient.any()}
    assert moved and all(name.startswith(STAGES["distill"]["only"]) for name in moved)
