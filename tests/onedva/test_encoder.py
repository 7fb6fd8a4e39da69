"""The encoder's promises: prefixes, causality, what matters to it, and what its error head starts from."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from onedva.encoder import EncoderOutput
from onedva.model import OneDVA

Encode = Callable[[Tensor, Tensor, Tensor, Tensor], EncoderOutput]

# float32 sums whose order may change with the sequence's length: a few units in the last place of values near 1
CLOSE = 2e-6
KEY = torch.ones(1, dtype=torch.bool)
SIZE = torch.tensor([[9.0, 64.0, 64.0, 24.0]])


@pytest.fixture
def video(make_video: Callable[..., Tensor]) -> Tensor:
    return make_video(1, 9, 64, 64)  # a grid of 3×4×4 = 48 positions


@pytest.fixture
def encoder(random_model: Callable[..., OneDVA]) -> Encode:
    model = random_model(encoder_depth=2, clip_frames=9)
    return partial(model.encoder, transform=model.transform)


def anchors(count: int, *, seed: int = 0) -> Tensor:
    return torch.randperm(48, generator=torch.Generator().manual_seed(seed))[None, :count]


def test_a_short_sequence_is_the_prefix_of_a_long_one(encoder: Encode, video: Tensor) -> None:
    long = encoder(video, SIZE, KEY, anchors(48))
    for count in (1, 16, 32):
        short = encoder(video, SIZE, KEY, anchors(48)[:, :count])
        for name in ("latents_mean", "latents_logvar", "predicted_error"):
            torch.testing.assert_close(getattr(short, name), getattr(long, name)[:, :count], atol=CLOSE, rtol=CLOSE)
        for name in ("structural_mean", "structural_logvar"):
            torch.testing.assert_close(getattr(short, name), getattr(long, name), atol=CLOSE, rtol=CLOSE)


def test_later_queries_change_nothing_earlier(encoder: Encode, video: Tensor) -> None:
    first = anchors(48)
    moved = torch.cat([first[:, :20], first[:, 20:].flip(1)], dim=1)
    before, after = encoder(video, SIZE, KEY, first), encoder(video, SIZE, KEY, moved)
    for name in ("latents_mean", "latents_logvar", "predicted_error"):
        assert torch.equal(getattr(before, name)[:, :20], getattr(after, name)[:, :20])
    assert torch.equal(before.structural_mean, after.structural_mean)
    assert (before.latents_mean[:, 20:] - after.latents_mean[:, 20:]).abs().amax(dim=-1).min() > 1e-3


def test_earlier_queries_are_seen(encoder: Encode, video: Tensor) -> None:
    first = anchors(32)
    swapped = first.clone()
    swapped[:, [0, 1]] = first[:, [1, 0]]
    before, after = encoder(video, SIZE, KEY, first), encoder(video, SIZE, KEY, swapped)
    assert (before.latents_mean[:, -1] - after.latents_mean[:, -1]).abs().max() > 1e-6


def test_an_anchor_matters_to_its_latent(encoder: Encode, video: Tensor) -> None:
    here, there = (encoder(video, SIZE, KEY, torch.tensor([[index]])) for index in (17, 40))
    assert (here.latents_mean - there.latents_mean).abs().max() > 1e-2
    assert torch.equal(here.structural_mean, there.structural_mean)


def test_a_query_knows_where_it_is(encoder: Encode, video: Tensor) -> None:
    """Two equal columns at two places: only the anchor's rotation tells their latents apart."""
    video = video.clone()
    video[..., 48:, 48:] = video[..., :16, :16]  # positions 31 and 16
    here, there = (encoder(video, SIZE, KEY, torch.tensor([[index]])) for index in (16, 31))
    assert (here.latents_mean - there.latents_mean).abs().max() > 1e-4


@pytest.mark.parametrize("changed", ["kind", "frames", "height", "width", "rate"])
def test_resolution_tokens_matter(encoder: Encode, video: Tensor, changed: str) -> None:
    kind, size = KEY, SIZE.clone()
    if changed == "kind":
        kind = ~KEY
    else:
        size[0, ("frames", "height", "width", "rate").index(changed)] *= 2
    before, after = encoder(video, SIZE, KEY, anchors(16)), encoder(video, size, kind, anchors(16))
    assert (before.structural_mean - after.structural_mean).abs().max() > 1e-5
    assert (before.latents_mean - after.latents_mean).abs().max() > 1e-5


def test_learned_queries_start_alike_but_for_their_embedding(encoder: Encode, video: Tensor) -> None:
    """Two clips, one anchor at two places of the sequence: the learned embedding makes the difference."""
    at_start = encoder(video, SIZE, KEY, torch.tensor([[5, 6]])).latents_mean[:, 0]
    at_end = encoder(video, SIZE, KEY, torch.tensor([[6, 5]])).latents_mean[:, 1]
    assert (at_start - at_end).abs().max() > 1e-5


def linear_errors(model: OneDVA, video: Tensor, *, is_key: bool) -> tuple[Tensor, Tensor]:
    """What the fresh error head predicts for every prefix, and the log-MSE that the previews really have."""
    posterior = model.encode(video, is_key=torch.tensor([is_key])).latent_dist
    first = 0 if is_key else 1
    true = []
    for count in range(1, posterior.anchors.shape[1] + 1):
        preview = model.decode(posterior.mode().thin(count), num_steps=0).sample
        true.append((preview - video)[:, :, first:].square().mean().log())
    return posterior.output.predicted_error[0], torch.stack(true)


def test_linear_error_is_the_error_of_every_prefix(pca_model: Callable[..., OneDVA], make_video) -> None:
    """Group 0's energy is that of four outputs, which unpatchify averages: a bound for frame 0, and close."""
    video = make_video(1, 9, 96, 128)
    predicted, true = linear_errors(pca_model(video), video, is_key=True)
    assert (predicted >= true - 1e-4).all()
    # frame 0 is 1 of 9 frames; a twentieth of a nat is 0.2 dB
    torch.testing.assert_close(predicted, true, atol=0.05, rtol=0)
    assert true[0] - true[-1] > 0.1


def test_linear_error_is_exact_without_frame_zero(pca_model: Callable[..., OneDVA], make_video) -> None:
    video = make_video(1, 9, 96, 128)
    predicted, true = linear_errors(pca_model(video), video, is_key=False)
    torch.testing.assert_close(predicted, true, atol=1e-3, rtol=0)
    assert true[0] - true[-1] > 0.1
