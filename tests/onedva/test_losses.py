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


def test_frame_difference_sees_flicker_and_not_a_shift() -> None:
    video = torch.randn(1, 3, 5, 4, 4)
    assert losses.frame_difference_loss(video + 0.7, video).item() == pytest.approx(0, abs=1e-12)
    flicker = video.clone()
    flicker[:, :, 2] += 0.5  # two of the four changes are off by half
    assert losses.frame_difference_loss(flicker, video).item() == pytest.approx(0.25 * 2 / 4, rel=1e-5)


def test_kl() -> None:
    assert losses.kl_loss(torch.zeros(4, 8), torch.zeros(4, 8)).item() == 0
    # KL(N(2, e) ‖ N(0, 1)) = (4 + e − 1 − 1) / 2
    assert losses.kl_loss(torch.full((3,), 2.0), torch.ones(3)).item() == pytest.approx((4 + math.e - 2) / 2)
    mean, logvar = torch.tensor([0.3]), torch.tensor([-1.2])
    wanted = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert losses.kl_loss(mean, logvar).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_error_prediction_is_huber_and_teaches_only_the_head() -> None:
    predicted = torch.tensor([0.0, 0.0], requires_grad=True)
    reached = torch.tensor([0.1, -2.0], requires_grad=True)
    loss = losses.error_prediction_loss(predicted, reached)
    assert loss.item() == pytest.approx((0.5 * 0.1**2 / 0.3 + (2.0 - 0.15)) / 2)
    loss.backward()
    assert predicted.grad is not None and predicted.grad.any()
    assert reached.grad is None
