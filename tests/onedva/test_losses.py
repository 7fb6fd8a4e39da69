"""Losses against values worked out by hand."""

import math

import pytest
import torch

from onedva import losses

KEY, CONTINUATION = torch.tensor([True]), torch.tensor([False])


def test_frame_errors() -> None:
    video = torch.zeros(2, 3, 5, 4, 4)
    predicted = video.clone()
    predicted[1, :, 2] = 3.0
    predicted[0, 0, 4] = 1.0  # one of three channels
    errors = losses.frame_errors(predicted, video)
    assert errors.tolist() == [[0, 0, 0, 0, pytest.approx(1 / 3)], [0, 0, 9, 0, 0]]


def test_flow_loss_weighs_by_time() -> None:
    errors = torch.tensor([[1.0, 2.0, 2.0, 2.0, 2.0]])
    at_noise = losses.flow_loss(errors, torch.ones(1, 2), KEY)
    assert at_noise.item() == pytest.approx(9 / 5)
    assert losses.flow_loss(errors, torch.full((1, 2), 0.5), KEY).item() == pytest.approx(4 * 9 / 5)
    assert losses.flow_loss(errors, torch.full((1, 2), 0.05), KEY).item() == pytest.approx(25 * 9 / 5)


def test_a_given_frame_costs_nothing() -> None:
    errors = torch.tensor([[1e6, 2.0, 2.0, 2.0, 2.0]])
    t = torch.tensor([[0.0, 1.0]])
    assert losses.flow_loss(errors, t, CONTINUATION).item() == pytest.approx(8 / 5)
    assert losses.preview_loss(errors, CONTINUATION).item() == pytest.approx(8 / 5)
    assert losses.preview_loss(errors, KEY).item() == pytest.approx((1e6 + 8) / 5)


def test_frame_weights_are_per_clip() -> None:
    weights = losses.frame_weights(torch.tensor([True, False]), 5)
    assert weights.tolist() == [[1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_coded_groups() -> None:
    coded = losses.coded_groups(torch.tensor([True, False]), 3)
    assert coded.tolist() == [[True, True, True], [False, True, True]]


def test_frame_difference_sees_flicker_and_not_a_shift() -> None:
    video = torch.randn(1, 3, 5, 4, 4)
    assert losses.frame_difference_loss(video + 0.7, video, KEY).item() == pytest.approx(0, abs=1e-12)
    flicker = video.clone()
    flicker[:, :, 2] += 0.5  # two of the four changes are off by half
    assert losses.frame_difference_loss(flicker, video, KEY).item() == pytest.approx(0.25 * 2 / 4, rel=1e-5)
    assert losses.change_errors(flicker, video, KEY)[0].tolist() == pytest.approx([0, 0.25, 0.25, 0], abs=1e-6)


def test_a_continuation_clip_goes_on_from_the_frame_it_was_given() -> None:
    video = torch.randn(2, 3, 5, 4, 4)
    predicted = video + 0.3
    predicted[:, :, 0] += 1e3  # what a network says about a given frame is not shown
    is_key = torch.tensor([True, False])
    alone = losses.change_errors(predicted, video, is_key)
    assert alone[0, 0] > 1e5 and alone[1].tolist() == pytest.approx([0, 0, 0, 0], abs=1e-6)

    context = video[:, :, 0] + 0.1
    changes = losses.change_errors(predicted, video, is_key, context=context)
    assert changes[0, 0] == alone[0, 0]  # a key clip has no context
    assert changes[1].tolist() == pytest.approx([0.2**2, 0, 0, 0], abs=1e-5)
    carried = losses.change_errors(predicted, video, is_key, context=video[:, :, 0] + 0.3)
    assert carried[1, 0].item() == pytest.approx(0, abs=1e-9)  # the same error goes on: no jump


def test_kl() -> None:
    assert losses.kl_loss(torch.zeros(4, 8), torch.zeros(4, 8)).item() == 0
    # KL(N(2, e) ‖ N(0, 1)) = (4 + e − 1 − 1) / 2
    assert losses.kl_loss(torch.full((3,), 2.0), torch.ones(3)).item() == pytest.approx((4 + math.e - 2) / 2)
    mean, logvar = torch.tensor([0.3]), torch.tensor([-1.2])
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert losses.kl_loss(mean, logvar).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_kl_leaves_out_what_is_not_sent() -> None:
    mean, logvar = torch.zeros(2, 2, 3, 4, 5), torch.zeros(2, 2, 3, 4, 5)
    mean[0, 0] = 2.0  # key clip, group 0: sent
    mean[1, 0] = torch.inf  # continuation clip, group 0: not sent, whatever stands there
    coded = losses.coded_groups(torch.tensor([True, False]), 2)
    assert losses.kl_loss(mean, logvar, coded=coded).item() == pytest.approx(2.0 / 3)


def test_self_alignment_takes_the_best_match() -> None:
    structural = torch.zeros(1, 1, 1, 3, 4)
    structural[0, 0, 0] = torch.eye(4)[:3] * torch.tensor([1.0, 5.0, 0.1])[:, None]  # length is no merit
    projected = torch.tensor([[[0.0, 3.0, 4.0, 0.0], [2.0, 0.0, 0.0, 0.0]]])  # cos 0.8 with the third, 1 with the first
    latents = torch.tensor([[[3.0, 4.0], [4.0, 3.0]]])  # cos 24/25 with each other
    loss = losses.self_alignment_loss(latents, projected, structural, KEY, continuity=0.0)
    assert loss.item() == pytest.approx(-(0.8 + 1.0) / 2)
    loss = losses.self_alignment_loss(latents, projected, structural, KEY, continuity=0.1)
    assert loss.item() == pytest.approx(-0.9 - 0.1 * 24 / 25)
    alone = losses.self_alignment_loss(latents[:, :1], projected[:, :1], structural, KEY)  # no neighbour
    assert alone.item() == pytest.approx(-0.8)


def test_self_alignment_knows_what_is_sent_and_teaches_only_the_latents() -> None:
    structural = torch.eye(4).reshape(1, 2, 1, 2, 4).requires_grad_(True)
    latents = torch.tensor([[[4.0, 0.0, 3.0, 0.0]]], requires_grad=True)
    assert losses.self_alignment_loss(latents, latents, structural, KEY).item() == pytest.approx(-0.8)
    loss = losses.self_alignment_loss(latents, latents, structural, CONTINUATION)  # the first two are group 0
    assert loss.item() == pytest.approx(-0.6)
    loss.backward()
    assert structural.grad is None
    # d cos / d z = (s − cos · ẑ) / |z|, and the loss falls along it
    wanted = -(torch.tensor([0.0, 0.0, 1.0, 0.0]) - 0.6 * torch.tensor([0.8, 0.0, 0.6, 0.0])) / 5
    assert latents.grad is not None and torch.allclose(latents.grad[0, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("continuity", [-0.01, 0.11])
def test_continuity_stays_small(continuity: float) -> None:
    latents, structural = torch.ones(1, 2, 4), torch.ones(1, 1, 1, 1, 4)
    with pytest.raises(ValueError, match=r"continuity must be between 0 and 0\.1"):
        losses.self_alignment_loss(latents, latents, structural, KEY, continuity=continuity)


def test_repa() -> None:
    features = torch.zeros(2, 2, 1, 2, 3)
    features[..., 0] = 7.0
    projected = torch.zeros(2, 4, 3)
    projected[..., 0], projected[..., 1] = 3.0, 4.0  # cos 0.6
    projected[:, :2] = torch.tensor([-1.0, 0.0, 0.0])  # group 0: cos −1
    is_key = torch.tensor([True, False])
    # the continuation clip counts its group 1 only
    assert losses.repa_loss(projected, features, is_key).item() == pytest.approx(-(4 * 0.6 - 2) / 6)


def test_lpips_compares_frames_that_the_model_makes() -> None:
    class Distance(torch.nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            seen.append((one, other))
            return (one - other).abs().mean(dim=(1, 2, 3))

    video = torch.arange(5.0).reshape(1, 1, 5, 1, 1).expand(2, 3, 5, 8, 8)
    predicted = video + 0.25 * torch.arange(5.0).reshape(1, 1, 5, 1, 1)
    predicted[1, :, 0] = 1e6  # given
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    network, is_key = Distance(), torch.tensor([True, False])
    generator = torch.Generator().manual_seed(0)
    loss = losses.lpips_loss(network, predicted, video, is_key, generator=generator, frames=64)
    one, other = seen[0]
    chosen = other[:, 0, 0, 0].reshape(2, 64)
    assert set(chosen[0].tolist()) == {0, 1, 2, 3, 4} and set(chosen[1].tolist()) == {1, 2, 3, 4}
    assert torch.equal(one[:, 0, 0, 0], 1.25 * other[:, 0, 0, 0])
    assert loss.item() == pytest.approx(0.25 * chosen.mean().item())


def test_error_prediction_is_huber_and_teaches_only_the_head() -> None:
    predicted = torch.tensor([0.0, 0.0], requires_grad=True)
    reached = torch.tensor([0.1, -2.0], requires_grad=True)
    loss = losses.error_prediction_loss(predicted, reached)
    assert loss.item() == pytest.approx((0.5 * 0.1**2 / 0.3 + (2.0 - 0.15)) / 2)
    loss.backward()
    assert predicted.grad is not None and predicted.grad.any()
    assert reached.grad is None
