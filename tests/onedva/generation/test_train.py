import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from generators import nano_generator
from onedva.checkpoint import load_model
from onedva.generation import train as training
from onedva.generation.checkpoint import load_generator
from onedva.generation.config import LatentTrainConfig
from onedva.generation.latent_shards import LatentSet
from onedva.generation.model import LatentDiT
from onedva.generation.sample import generate_latents
from onedva.generation.step import LatentStep, draw_length, draw_step, set_statistics
from onedva.generation.train import check_same, generator_config, run

SHAPE = {"width": 64, "depth": 1, "mlp_ratio": 2.0}


def quick(**changes) -> LatentTrainConfig:
    return LatentTrainConfig(**{"steps": 4, "batch": 8, "warmup": 2, "save_every": 0.0, **changes})


@pytest.fixture(autouse=True)
def plain_arithmetic(monkeypatch):
    monkeypatch.setattr(training, "bf16_is_faster", lambda: False)


def test_a_run_leaves_all_that_generation_needs(latents, tmp_path):
    run(latents=latents, output=tmp_path / "ldm", train=quick(), shape=SHAPE, quiet=True)
    generator, data = load_generator(tmp_path / "ldm"), LatentSet(latents)
    assert generator.config.classes == data.plan.classes and generator.config.continuation
    assert (generator.config.max_tokens, generator.config.sizes) == (9, ((48, 48),))
    lines = [json.loads(line) for line in (tmp_path / "ldm" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(line["loss"] > 0 for line in lines)
    from onedva.generation.sample import generate_clip

    assert generate_clip(tmp_path / "ldm", label="spin", num_steps=2)[0].shape == (5, 48, 48, 3)
    with pytest.raises(FileExistsError, match="--resume"):
        run(latents=latents, output=tmp_path / "ldm", train=quick(), quiet=True)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumed_equals_uninterrupted(latents, tmp_path, optimizer):
    run(latents=latents, output=tmp_path / "whole", train=quick(optimizer=optimizer), shape=SHAPE, quiet=True)
    stopped = RuntimeError("pulled the plug")

    def stop_at_three(loop, draw, update=training.Loop.update):
        if loop.step == 2:
            raise stopped
        return update(loop, draw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Loop, "update", stop_at_three)
        with pytest.raises(RuntimeError, match="plug"):
            run(latents=latents, output=tmp_path / "part", train=quick(optimizer=optimizer), shape=SHAPE, quiet=True)
    run(latents=latents, output=tmp_path / "part", train=quick(optimizer=optimizer), resume=True, quiet=True)
    whole, part = (load_file(tmp_path / name / "generator.safetensors") for name in ("whole", "part"))
    assert all(whole[name].equal(part[name]) for name in whole)


def test_it_learns_one_clip_by_heart(latents):
    """From noise, by the sampler, after training on a single clip: latents closer to it than to any other."""
    torch.manual_seed(0)
    data = LatentSet(latents)
    generator = LatentDiT(generator_config(data, **SHAPE))
    set_statistics(generator, data, seed=0)
    only = int(data.names.index("spin/00000.mp4#0"))
    train = quick(p_continuation=0.0, p_no_latents=0.0)
    module, real = LatentStep(generator, train), data.rows
    data.rows = lambda indices, **kind: real(np.full(len(indices), only), **kind)  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW(module.parameters(), lr=4e-3)
    for step in range(200):
        loss = module(draw_step(data, generator, train, step=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z = generate_latents(
        generator.eval(), labels=[int(data.labels[only])], tokens=9, num_steps=8, seeds=[5], guidance=1.0
    )
    everything = real(np.arange(len(data)))
    distance = (everything.structural - z.structural).square().mean(dim=(1, 2, 3, 4))
    assert int(distance.argmin()) == only and distance[only] < 0.4 * distance.median()


def test_steps_draw_what_they_should(latents):
    data, generator = LatentSet(latents), nano_generator(classes=LatentSet(latents).plan.classes, max_tokens=9)
    train = quick(batch=16, p_unconditional=0.5, p_continuation=0.4, p_no_latents=0.2)
    draws = [draw_step(data, generator, train, step=step) for step in range(40)]
    again = draw_step(data, generator, train, step=7)
    for one, other in zip(draws[7].noisy, again.noisy, strict=True):
        assert one.equal(other)
    kinds = np.array([bool(draw.asked.is_key[0]) for draw in draws])
    assert 0.4 < kinds.mean() < 0.8
    assert all(not draw.noisy.structural[:, 0].any() for draw, key in zip(draws, kinds, strict=True) if not key)
    dropped = torch.cat([draw.asked.label for draw in draws]) == 8
    assert 0.4 < dropped.float().mean() < 0.6
    lengths = {(draw.clean.sequence.shape[1], bool(draw.asked.has_latents[0])) for draw in draws}
    assert lengths == {(1, False), (4, True), (8, True), (9, True)}


def test_lengths_are_multiples_up_to_the_longest():
    random, config = np.random.default_rng(0), nano_generator(length_multiple=16).config
    drawn = [draw_length(random, config, quick(p_no_latents=0.1), 70) for _ in range(400)]
    assert {count for count, sent in drawn if sent} == {16, 32, 48, 64, 70}
    assert 0.05 < np.mean([not sent for _, sent in drawn]) < 0.15


def test_statistics_give_variances_by_worth(latents, autoencoder):
    data = LatentSet(latents)
    generator = LatentDiT(generator_config(data, **SHAPE))
    set_statistics(generator, data, seed=0)
    rows = data.rows(np.arange(len(data)))
    structural, sequence = generator.normalise(rows.structural, rows.latents, torch.ones(16, dtype=torch.bool))
    for values, axes in ((structural, (0, 2, 3)), (sequence, (0, 1))):
        assert values.mean(dim=axes).abs().max() < 1e-4
        wanted = generator.structural_variance[1] if len(axes) == 3 else generator.sequence_variance[1]
        torch.testing.assert_close(values.var(dim=axes), wanted, atol=1e-3, rtol=1e-3)
    assert generator.structural_variance[1].mean().item() == pytest.approx(1, abs=1e-4)
    transform = load_model(autoencoder).transform
    assert transform is not None
    std = transform.tables(2, torch.ones(1, dtype=torch.bool)).std[
        0, :, :5
    ]  # the last structural channel tells classes
    pixels = std * rows.structural.std(dim=(0, 2, 3))[:, :5]
    ratio = generator.structural_variance[1][:, :5] / pixels
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-3, rtol=1e-3)


def test_texts_condition_and_are_checked(latents, tmp_path):
    names = {name.rpartition("#")[0] for name in LatentSet(latents).names}
    texts = {name: torch.randn(2, 5) for name in sorted(names)}
    save_file(texts, tmp_path / "texts.safetensors")
    run(
        latents=latents,
        output=tmp_path / "ldm",
        train=quick(steps=1),
        shape=SHAPE,
        text=tmp_path / "texts.safetensors",
        quiet=True,
    )
    config = load_generator(tmp_path / "ldm").config
    assert (config.text_tokens, config.text_channels) == (2, 5)
    with pytest.raises(ValueError, match="give --text as then"):
        run(latents=latents, output=tmp_path / "ldm", train=quick(), resume=True, quiet=True)
    texts.pop(sorted(names)[0])
    save_file(texts, tmp_path / "texts.safetensors")
    with pytest.raises(ValueError, match="no text for 1 videos, such as cross"):
        run(latents=latents, output=tmp_path / "b", train=quick(), text=tmp_path / "texts.safetensors", quiet=True)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("classes", {"classes": ("a", "b")}),
        ("max_tokens", {"max_tokens": 5}),
        ("sizes", {"sizes": ((32, 32),)}),
        ("anchors", {"anchors": "generated"}),
        ("continuation", {"continuation": False}),
        ("autoencoder", {"autoencoder": "00"}),
    ],
)
def test_a_run_goes_on_with_latents_of_its_kind_only(latents, name, changes):
    now = generator_config(LatentSet(latents), **SHAPE)
    check_same(now, dataclasses.replace(now, width=128), where="the run")
    with pytest.raises(ValueError, match=rf"the run was begun with other latents \({name}\): give --latents as then"):
        check_same(dataclasses.replace(now, **changes), now, where="the run")


def test_a_loss_that_is_not_finite_says_what_is_saved(latents, tmp_path, monkeypatch):
    for saved, message in ((False, "no checkpoint was saved yet"), (True, "the last checkpoint is in")):
        output = tmp_path / str(saved)
        if saved:
            run(latents=latents, output=output, train=quick(steps=1), shape=SHAPE, quiet=True)
        with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match=message):
            patch.setattr("onedva.flow.loss_weight", lambda t: t * math.nan)
            run(latents=latents, output=output, train=quick(steps=2), shape=SHAPE, resume=saved, quiet=True)


def test_bad_settings_are_refused(latents, tmp_path):
    with pytest.raises(ValueError, match="p_full is a share from 0 to 1, got 2"):
        quick(p_full=2)
    with pytest.raises(ValueError, match="optimizer must be one of muon, adamw"):
        quick(optimizer="sgd")
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(latents=latents, output=tmp_path / "none", train=quick(), resume=True, quiet=True)
