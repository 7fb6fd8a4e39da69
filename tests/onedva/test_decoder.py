"""The decoder: where it starts, what it ignores, and what a continuation clip gives back."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from onedva.decoder import Condition, band_energies
from onedva.model import OneDVA

GRID = (3, 2, 4)  # 9 frames of 32×64
SIZE = torch.tensor([[9.0, 32.0, 64.0, 24.0]])
ALL_TIMES = torch.ones(1, 3)


def inputs(*, batch: int = 1, tokens: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    anchors = torch.stack([torch.randperm(24, generator=random)[:tokens] for _ in range(batch)])
    structural = torch.randn(batch, *GRID, 6, generator=random)
    return structural, torch.randn(batch, tokens, 10, generator=random), anchors


class Whole:
    """A decoder with its model's transform at hand."""

    def __init__(self, model: OneDVA) -> None:
        self.decoder, self.transform = model.decoder, model.transform
        self.condition = partial(model.decoder.condition, transform=model.transform)
        self.video = partial(model.decoder.video, transform=model.transform)
        self.velocity = partial(model.decoder.velocity, transform=model.transform)


def condition(
    decoder: Whole, structural: Tensor, latents: Tensor, anchors: Tensor, *, has: bool = True, key: bool = True
) -> Condition:
    batch = len(structural)
    return decoder.condition(
        structural,
        latents,
        anchors,
        torch.full((batch,), has),
        SIZE.expand(batch, 4),
        torch.full((batch,), key),
    )


def noise(batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, 9, 32, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=["stem", "in_context"])
def decoder(request: pytest.FixtureRequest, random_model: Callable[..., OneDVA]) -> Whole:
    changes = {"stem_depth": 0} if request.param == "in_context" else {}
    return Whole(random_model(conditioning=request.param, diffusion_depth=2, clip_frames=9, **changes))


def test_a_fresh_decoder_believes_in_its_preview(make_video, pca_model) -> None:
    decoder = Whole(pca_model(make_video(1, 9, 32, 64), mirrored=False))  # which fits all of it
    given = condition(decoder, *inputs())
    assert given.preview.std() > 0.05
    for t in (1.0, 0.4):
        torch.testing.assert_close(decoder.video(noise(), ALL_TIMES * t, given), given.preview, atol=1e-4, rtol=0)


def test_absent_latents_do_not_matter(decoder: Whole) -> None:
    structural, latents, anchors = inputs()
    outputs = []
    for values in (latents, -3 * latents, torch.zeros_like(latents)):
        outputs.append(decoder.video(noise(), ALL_TIMES, condition(decoder, structural, values, anchors, has=False)))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_absent_is_not_the_same_as_zero(decoder: Whole) -> None:
    structural, latents, anchors = inputs()
    absent = condition(decoder, structural, latents * 0, anchors, has=False)
    zero = condition(decoder, structural, latents * 0, anchors)
    assert (absent.keys_values - zero.keys_values).abs().max() > 1e-3


def test_present_latents_and_their_anchors_matter(decoder: Whole) -> None:
    structural, latents, anchors = inputs()
    start = decoder.video(noise(), ALL_TIMES, condition(decoder, structural, latents, anchors))
    other = decoder.video(noise(), ALL_TIMES, condition(decoder, structural, -latents, anchors))
    moved = decoder.video(noise(), ALL_TIMES, condition(decoder, structural, latents, anchors.flip(1)))
    assert (start - other).abs().max() > 1e-2
    assert (start - moved).abs().max() > 1e-2


def test_anchors_turn_the_tokens_too(decoder: Whole) -> None:
    """Without what lands on the grid, an anchor acts through its rotation alone."""
    assert decoder.transform is not None
    decoder.transform.directions[:, 6:] = 0  # what latents synthesise
    structural, latents, anchors = inputs()
    here, there = (condition(decoder, structural, latents, at) for at in (anchors, anchors.flip(1)))
    assert torch.equal(here.preview, there.preview) or decoder.decoder.config.conditioning == "stem"
    moved = decoder.video(noise(), ALL_TIMES, here) - decoder.video(noise(), ALL_TIMES, there)
    assert moved.abs().max() > 1e-4


def test_absence_is_per_clip(decoder: Whole) -> None:
    structural, latents, anchors = inputs(batch=2)
    both = decoder.condition(
        structural, latents, anchors, torch.tensor([True, False]), SIZE.expand(2, 4), torch.tensor([True, True])
    )
    for row, has in enumerate((True, False)):
        rows = (part[row : row + 1] for part in (structural, latents, anchors))
        alone = condition(decoder, *rows, has=has)
        for got, wanted in zip(both, alone, strict=True):
            torch.testing.assert_close(got[row : row + 1], wanted, atol=1e-5, rtol=1e-5)


def test_a_continuation_clip_does_not_use_group_zero_of_its_structural_latent(decoder: Whole) -> None:
    structural, latents, _ = inputs()
    anchors = torch.arange(8, 16)[None]
    changed = structural.clone()
    changed[:, 0] += 5.0
    t = torch.tensor([[0.0, 1.0, 1.0]])
    got = [
        decoder.velocity(noise(), t, condition(decoder, s, latents, anchors, key=False)) for s in (structural, changed)
    ]
    assert torch.equal(got[0], got[1])
    key = [decoder.velocity(noise(), ALL_TIMES, condition(decoder, s, latents, anchors)) for s in (structural, changed)]
    assert (key[0] - key[1])[:, :, 1:].abs().max() > 1e-3


def test_velocity_of_a_given_group_is_exactly_zero(decoder: Whole) -> None:
    given = condition(decoder, *inputs(), key=False)
    velocity = decoder.velocity(noise(), torch.tensor([[0.0, 0.6, 0.6]]), given)
    assert velocity.dtype == torch.float32
    assert not velocity[:, :, 0].any()
    assert (velocity[:, :, 1:] != 0).float().mean() > 0.99


def test_the_given_frame_is_seen(decoder: Whole) -> None:
    given, t = condition(decoder, *inputs(), key=False), torch.tensor([[0.0, 1.0, 1.0]])
    other = noise()
    other[:, :, 0] = 0.5
    moved = decoder.velocity(other, t, given) - decoder.velocity(noise(), t, given)
    assert moved[:, :, 1:].abs().max() > 1e-5


def test_a_key_clip_has_no_context_frame(random_model: Callable[..., OneDVA]) -> None:
    """Its first frame is noise like the others: what a context frame would show must not come from there."""
    decoder = Whole(random_model(clip_frames=9))
    parts = inputs()
    for key in (True, False):
        given, t = condition(decoder, *parts, key=key), ALL_TIMES.clone()
        t[:, 0] = float(key)
        with_gain = decoder.video(noise(), t, given)
        gain = decoder.decoder.context_gain.clone()
        decoder.decoder.context_gain.zero_()
        assert torch.equal(with_gain, decoder.video(noise(), t, given)) == key
        decoder.decoder.context_gain.copy_(gain)


def test_the_kind_and_the_time_matter(decoder: Whole) -> None:
    key, other = (condition(decoder, *inputs(), key=key) for key in (True, False))
    assert (key.keys_values - other.keys_values).abs().max() > 1e-4
    early, late = (decoder.video(noise(), ALL_TIMES * t, key) for t in (1.0, 0.3))
    assert (early - late).abs().max() > 1e-2


@pytest.mark.parametrize("prediction", ["video", "velocity"])
def test_video_and_velocity_are_two_views_of_one_output(prediction: str, random_model: Callable[..., OneDVA]) -> None:
    decoder = Whole(random_model(prediction=prediction, pca=prediction == "video", clip_frames=9))
    given, t = condition(decoder, *inputs()), 0.7
    video, velocity = decoder.video(noise(), ALL_TIMES * t, given), decoder.velocity(noise(), ALL_TIMES * t, given)
    torch.testing.assert_close(noise() - t * velocity, video, atol=1e-5, rtol=1e-5)


def test_velocity_prediction_keeps_a_given_frame_too(random_model: Callable[..., OneDVA]) -> None:
    decoder = Whole(random_model(prediction="velocity", pca=False, clip_frames=9))
    velocity = decoder.velocity(noise(), torch.tensor([[0.0, 1.0, 1.0]]), condition(decoder, *inputs(), key=False))
    assert not velocity[:, :, 0].any() and velocity[:, :, 1:].abs().max() > 1e-2


def test_the_stem_runs_once_and_steps_share_it(random_model: Callable[..., OneDVA]) -> None:
    decoder = Whole(random_model(diffusion_depth=2, clip_frames=9))
    given = condition(decoder, *inputs())
    assert given.context.shape == (1, *GRID, 64 + 24 + 1)  # with the preview's coefficients behind, and what it lacks
    assert given.keys_values.shape == (1, 2, 2, 1, 8, 64)  # blocks, key and value, heads, latents, channels
    calls: list[int] = []
    for block in decoder.decoder.stem:
        block.register_forward_hook(lambda *_: calls.append(1))
    decoder.velocity(noise(), ALL_TIMES, given)
    assert not calls


def test_energies_in_octaves_of_the_patch_its_column_and_its_changes() -> None:
    """Against the definition, on coefficients that change along time in the upper half of the components only."""
    normal = torch.randn(1, 1, 2, 3, 512).repeat(1, 4, 1, 1, 1)
    normal[:, :, 1, 2] = 0
    normal[..., 256:] = torch.randn(1, 4, 2, 3, 256)
    own, column, changing = band_energies(normal, torch.arange(512)).exp().sub(1e-3).chunk(3, dim=-1)
    for band, part in enumerate(normal.square().split([4, 4, 8, 16, 32, 64, 128, 256], dim=-1)):
        wanted = part.mean(dim=-1)
        torch.testing.assert_close(own[..., band], wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            column[..., band], wanted.mean(1, keepdim=True).expand_as(wanted), atol=1e-4, rtol=1e-4
        )
    assert changing[..., :7].abs().max() < 1e-5 and changing[..., 7].min() > 0.5
    assert band_energies(torch.zeros(1, 1, 1, 1, 5), torch.arange(5)).isfinite().all(), "fewer components than bands"
