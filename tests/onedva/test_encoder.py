"""The encoder's promises: prefixes, causality, what matters to it, and the linear start."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from onedva.encoder import Encoder, EncoderOutput
from onedva.model import OneDVA, to_frames
from onedva.patches import patchify, unpatchify
from onedva_runtime.metrics import psnr

# float32 sums whose order may change with the sequence's length: a few units in the last place of values near 1
CLOSE = 2e-6
KEY = torch.ones(1, dtype=torch.bool)
SIZE = torch.tensor([[9.0, 64.0, 64.0, 24.0]])


@pytest.fixture
def video(make_video: Callable[..., Tensor]) -> Tensor:
    return make_video(1, 9, 64, 64)  # a grid of 3×4×4 = 48 positions


@pytest.fixture
def encoder(random_model: Callable[..., OneDVA]) -> Encoder:
    return random_model(encoder_depth=2).encoder


def anchors(count: int, *, seed: int = 0) -> Tensor:
    return torch.randperm(48, generator=torch.Generator().manual_seed(seed))[None, :count]


def test_a_short_sequence_is_the_prefix_of_a_long_one(encoder: Encoder, video: Tensor) -> None:
    long = encoder(video, SIZE, KEY, anchors(48))
    for count in (1, 16, 32):
        short = encoder(video, SIZE, KEY, anchors(48)[:, :count])
        for name in ("latents_mean", "latents_logvar", "predicted_error"):
            torch.testing.assert_close(getattr(short, name), getattr(long, name)[:, :count], atol=CLOSE, rtol=CLOSE)
        for name in ("structural_mean", "structural_logvar"):
            torch.testing.assert_close(getattr(short, name), getattr(long, name), atol=CLOSE, rtol=CLOSE)


def test_later_queries_change_nothing_earlier(encoder: Encoder, video: Tensor) -> None:
    first = anchors(48)
    moved = torch.cat([first[:, :20], first[:, 20:].flip(1)], dim=1)
    before, after = encoder(video, SIZE, KEY, first), encoder(video, SIZE, KEY, moved)
    for name in ("latents_mean", "latents_logvar", "predicted_error"):
        assert torch.equal(getattr(before, name)[:, :20], getattr(after, name)[:, :20])
    assert torch.equal(before.structural_mean, after.structural_mean)
    assert (before.latents_mean[:, 20:] - after.latents_mean[:, 20:]).abs().amax(dim=-1).min() > 1e-3


def test_earlier_queries_are_seen(encoder: Encoder, video: Tensor) -> None:
    first = anchors(32)
    swapped = first.clone()
    swapped[:, [0, 1]] = first[:, [1, 0]]
    before, after = encoder(video, SIZE, KEY, first), encoder(video, SIZE, KEY, swapped)
    assert (before.latents_mean[:, -1] - after.latents_mean[:, -1]).abs().max() > 1e-6


def test_an_anchor_matters_to_its_latent(encoder: Encoder, video: Tensor) -> None:
    here, there = (encoder(video, SIZE, KEY, torch.tensor([[index]])) for index in (17, 40))
    assert (here.latents_mean - there.latents_mean).abs().max() > 1e-2
    assert torch.equal(here.structural_mean, there.structural_mean)


def test_a_query_knows_where_it_is(encoder: Encoder, video: Tensor) -> None:
    """Two equal patches at two places: only the anchor's rotation tells their latents apart."""
    video = video.clone()
    video[:, :, 1:5, 48:, 48:] = video[:, :, 1:5, :16, :16]  # positions 31 and 16
    here, there = (encoder(video, SIZE, KEY, torch.tensor([[index]])) for index in (16, 31))
    assert (here.latents_mean - there.latents_mean).abs().max() > 1e-4


@pytest.mark.parametrize("changed", ["kind", "frames", "height", "width", "rate"])
def test_resolution_tokens_matter(encoder: Encoder, video: Tensor, changed: str) -> None:
    kind, size = KEY, SIZE.clone()
    if changed == "kind":
        kind = ~KEY
    else:
        size[0, ("frames", "height", "width", "rate").index(changed)] *= 2
    before, after = encoder(video, SIZE, KEY, anchors(16)), encoder(video, size, kind, anchors(16))
    assert (before.structural_mean - after.structural_mean).abs().max() > 1e-5
    assert (before.latents_mean - after.latents_mean).abs().max() > 1e-5


def test_learned_queries_start_alike_but_for_their_embedding(encoder: Encoder, video: Tensor) -> None:
    """Two clips, one anchor at two places of the sequence: the learned embedding makes the difference."""
    at_start = encoder(video, SIZE, KEY, torch.tensor([[5, 6]])).latents_mean[:, 0]
    at_end = encoder(video, SIZE, KEY, torch.tensor([[6, 5]])).latents_mean[:, 1]
    assert (at_start - at_end).abs().max() > 1e-5


def numpy_pca(video: Tensor, components: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches (N, 3072) of a video, their mean, and their first components by SVD, in float64."""
    rows = patchify(video)[0].reshape(-1, 3072).double().numpy()
    mean = rows.mean(axis=0)
    return rows, mean, np.linalg.svd(rows - mean, full_matrices=False)[2][:components]


def reconstruct(
    rows: np.ndarray, mean: np.ndarray, parts: np.ndarray, at: Tensor, *, structural: int, video: Tensor
) -> Tensor:
    """All positions from the first `structural` components, the positions `at` from all: a video."""
    centred = rows - mean
    linear = mean + centred @ parts[:structural].T @ parts[:structural]
    rest = parts[structural:]
    where = at.numpy()
    linear[where] += centred[where] @ rest.T @ rest
    grid = patchify(video).shape
    return unpatchify(torch.from_numpy(linear).reshape(grid))


@pytest.mark.parametrize("tokens", [0, 16, 48])
def test_a_pca_start_gives_the_pca_reconstruction(video: Tensor, pca_model: Callable[..., OneDVA], tokens: int) -> None:
    model = pca_model(video)
    rows, mean, parts = numpy_pca(video, 16)
    z = model.encode(video, anchors=anchors(48)).latent_dist.mode().thin(tokens)
    wanted = reconstruct(rows, mean, parts, anchors(48)[0, :tokens], structural=6, video=video)
    preview = model.decode(z, num_steps=0).sample
    torch.testing.assert_close(preview.double(), wanted, atol=1e-4, rtol=0)
    one_step = model.decode(z, num_steps=1, generator=torch.Generator().manual_seed(0)).sample
    source = to_frames(video)
    assert psnr(source, to_frames(preview)) == pytest.approx(psnr(source, to_frames(wanted)), abs=0.01)
    assert psnr(source, to_frames(one_step)) == pytest.approx(psnr(source, to_frames(wanted)), abs=0.01)


def test_placed_latents_are_worth_decibels(video: Tensor, pca_model: Callable[..., OneDVA]) -> None:
    model = pca_model(video)
    z = model.encode(video).latent_dist.mode()
    quality = [psnr(to_frames(video), to_frames(model.decode(z.thin(k), num_steps=0).sample)) for k in (0, 16, 32, 48)]
    assert quality == sorted(quality)
    assert quality[-1] > quality[0] + 1.0


def test_the_start_is_whitened(video: Tensor, pca_model: Callable[..., OneDVA]) -> None:
    """Over the patches it was fit on, every latent has mean 0 and variance 1, and logvar is −7."""
    out: EncoderOutput = pca_model(video).encoder(video, SIZE, KEY, torch.arange(48)[None])
    for values in (out.structural_mean.reshape(48, 6), out.latents_mean[0]):
        torch.testing.assert_close(values.mean(dim=0), torch.zeros(values.shape[1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.square().mean(dim=0), torch.ones(values.shape[1]), atol=1e-3, rtol=0)
    assert (out.latents_logvar == -7).all() and (out.structural_logvar == -7).all()


def linear_errors(model: OneDVA, video: Tensor, *, is_key: bool) -> tuple[Tensor, Tensor]:
    """What the fresh error head predicts for every prefix, and the log-MSE that the previews really have."""
    kind = torch.tensor([is_key])
    at = anchors(48)[0]
    at = at if is_key else at[at >= 16]
    posterior = model.encode(video, anchors=at[None], is_key=kind).latent_dist
    first = 0 if is_key else 1
    true = []
    for count in range(1, len(at) + 1):
        preview = model.decode(posterior.mode().thin(count), num_steps=0).sample
        true.append((preview - video)[:, :, first:].square().mean().log())
    return posterior.output.predicted_error[0], torch.stack(true)


def test_linear_error_is_the_error_of_every_prefix(video: Tensor, pca_model: Callable[..., OneDVA]) -> None:
    """Group 0's energy is that of four outputs, which unpatchify averages: a bound for frame 0, and close."""
    predicted, true = linear_errors(pca_model(video), video, is_key=True)
    assert (predicted >= true - 1e-4).all()
    # frame 0 is 1 of 9 frames; a twentieth of a nat is 0.2 dB
    torch.testing.assert_close(predicted, true, atol=0.05, rtol=0)
    assert true[0] - true[-1] > 0.2


def test_linear_error_is_exact_without_frame_zero(video: Tensor, pca_model: Callable[..., OneDVA]) -> None:
    predicted, true = linear_errors(pca_model(video), video, is_key=False)
    torch.testing.assert_close(predicted, true, atol=1e-3, rtol=0)
