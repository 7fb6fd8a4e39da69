import pytest
import torch

from generators import nano_generator
from onedva import flow
from onedva.generation.config import GeneratorConfig
from onedva.generation.model import Latents
from onedva.generation.sample import ask

SIZE = (48, 48)


def noise_of(generator, *, batch=2, tokens=8):
    config = generator.config
    return Latents(
        torch.randn(batch, config.groups, 3, 3, config.structural_channels),
        torch.randn(batch, tokens, config.sequence_channels),
    )


def change(generator, noisy, t, *asked):
    """How far apart the predictions for two requests are."""
    one, other = (generator(noisy, t, each) for each in asked)
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("fold", [True, False])
def test_every_condition_counts(fold):
    generator = nano_generator(text_tokens=2, text_channels=5, fold=fold)
    noisy, t = noise_of(generator), torch.tensor([0.5, 1.0])
    plain = ask(generator, labels=[0, 1], tokens=8, size=SIZE)
    others = {
        "label": plain._replace(label=torch.tensor([2, 2])),
        "time": None,
        "latents": plain._replace(has_latents=torch.zeros(2, dtype=torch.bool)),
        "places": plain._replace(anchors=plain.anchors.flip(1)),
        "rate": plain._replace(resolution=plain.resolution * torch.tensor([1, 1, 1, 2.0])),
        "text": plain._replace(text=torch.randn(2, 2, 5)),
        "kind": ask(generator, labels=[0, 1], tokens=8, size=SIZE, first=torch.zeros(2, 3, 3, 16)),
    }
    for name, other in others.items():
        if other is None:
            assert (generator(noisy, t, plain)[0] - generator(noisy, t / 2, plain)[0]).abs().max() > 1e-3, name
        else:
            assert change(generator, noisy, t, plain, other) > 1e-4, name


def test_length_is_a_condition_beside_the_latents_themselves():
    generator = nano_generator()
    noisy, t = noise_of(generator, tokens=4), torch.full((2,), 0.5)
    asked = ask(generator, labels=[0, 1], tokens=4, size=SIZE)
    with_length = generator(noisy, t, asked)[0]
    generator.length_in.weight.zero_()
    assert (with_length - generator(noisy, t, asked)[0]).abs().max() > 1e-4


def test_a_token_of_the_grid_is_a_column_or_a_position():
    noisy, t = noise_of(nano_generator()), torch.full((2,), 0.5)
    for fold, inputs in ((True, 12), (False, 6)):
        generator = nano_generator(fold=fold)
        assert generator.grid_in.in_features == inputs
        made = generator(noisy, t, ask(generator, labels=[0, 1], tokens=8, size=SIZE))
        assert made.structural.shape == noisy.structural.shape


def test_latents_that_are_not_sent_are_not_seen():
    generator = nano_generator()
    noisy, t = noise_of(generator, tokens=1), torch.full((2,), 0.5)
    asked = ask(generator, labels=[0, 1], tokens=0, size=SIZE)
    other = noisy._replace(sequence=noisy.sequence + 1)
    torch.testing.assert_close(generator(noisy, t, asked)[0], generator(other, t, asked)[0], rtol=0, atol=0)


def test_a_given_frame_is_seen_through_its_own_latents_and_stays():
    generator = nano_generator()
    noisy, t = noise_of(generator), torch.full((2,), 0.5)
    noisy.structural[:, 0] = 0
    asked = [
        ask(generator, labels=[0, 1], tokens=8, size=SIZE, first=first)
        for first in (torch.zeros(2, 3, 3, 16), torch.ones(2, 3, 3, 16))
    ]
    assert change(generator, noisy, t, *asked) > 1e-4
    assert not generator.velocity(noisy, t, asked[0]).structural[:, 0].any()
    assert generator.velocity(noisy, t, asked[0]).structural[:, 1:].any()


def test_velocity_leads_to_the_prediction():
    generator = nano_generator()
    noisy, t = noise_of(generator), torch.full((2,), 0.5)
    asked = ask(generator, labels=[0, 1], tokens=8, size=SIZE)
    velocity, clean = generator.velocity(noisy, t, asked), generator(noisy, t, asked)
    for start, speed, end in zip(noisy, velocity, clean, strict=True):
        torch.testing.assert_close(flow.video_from_velocity(start, speed, torch.tensor(0.5)), end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_key", [True, False])
def test_denormalise_undoes_normalise(is_key):
    generator = nano_generator()
    structural, latents = noise_of(generator)
    kind = torch.full((2,), is_key)
    back = generator.denormalise(*generator.normalise(structural, latents, kind), kind)
    expected = structural if is_key else structural * torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1)
    torch.testing.assert_close(back[0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back[1], latents, atol=1e-5, rtol=1e-5)


def test_scales_are_those_of_the_best_linear_guess():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 200_000, dtype=torch.float64)
    for t, variance in ((0.1, 1.0), (0.5, 0.2), (0.9, 4.0), (1.0, 9.0)):
        time = torch.tensor(t, dtype=torch.float64)
        noisy = flow.add_noise(clean * variance**0.5, noise, time)
        skip, scale = flow.output_scales(time, variance)
        left = clean * variance**0.5 - skip * noisy
        assert abs((left * noisy).mean()) < 0.02, "another multiple of noisy would be closer"
        assert left.std().item() == pytest.approx(scale.item(), abs=0.01)
        assert (noisy * flow.input_scale(time, variance)).std().item() == pytest.approx(1, abs=0.01)
    assert flow.output_scales(torch.tensor(0.0)) == (1.0, 0.0)


def test_config_survives_json_and_refuses_nonsense():
    config = nano_generator().config
    assert GeneratorConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="unknown entries: colour"):
        GeneratorConfig.from_json(config.to_json().replace('"width"', '"colour": 1, "width"'))
    with pytest.raises(ValueError, match="foreign"):
        GeneratorConfig.from_json("{}")
    with pytest.raises(ValueError, match="anchors must be one of fixed, generated; got 'free'"):
        nano_generator(anchors="free")
    with pytest.raises(ValueError, match="go together"):
        nano_generator(text_channels=4)
