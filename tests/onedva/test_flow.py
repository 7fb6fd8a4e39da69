"""Time, noise and the Euler rule against closed forms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from onedva import flow


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_euler_is_exact_on_a_straight_path(steps: int) -> None:
    """d x/dt = noise − clean along noisy = (1 − t)·clean + t·noise: any number of steps ends at clean."""
    clean, noise = torch.randn(2, 3, 5, 8, 8, dtype=torch.float64), torch.randn(2, 3, 5, 8, 8, dtype=torch.float64)
    seen = []

    def velocity(x: torch.Tensor, t: float) -> torch.Tensor:
        seen.append(t)
        torch.testing.assert_close(x, flow.add_noise(clean, noise, torch.tensor(t, dtype=torch.float64)))
        return flow.velocity_target(clean, noise)

    torch.testing.assert_close(flow.euler(velocity, noise, flow.schedule(steps)), clean)
    assert seen == flow.schedule(steps)[:-1]


@pytest.mark.parametrize("steps", [4, 10, 20])
def test_euler_on_exponential_growth_is_its_closed_form(steps: int) -> None:
    """d x/dt = x from t = 1 to 0: Euler multiplies by 1 − 1/S each step, S steps give (1 − 1/S)^S, near e⁻¹."""
    x = torch.tensor([1.0, -3.0], dtype=torch.float64)
    times = flow.schedule(steps)
    torch.testing.assert_close(flow.euler(lambda v, t: v, x, times), x * (1 - 1 / steps) ** steps)
    error = abs((1 - 1 / steps) ** steps - math.exp(-1))
    assert error == pytest.approx(math.exp(-1) / (2 * steps), rel=0.2)  # first order


@settings(deadline=None, max_examples=30)
@given(st.floats(flow.MIN_TIME, 1.0))
def test_velocity_and_video_are_inverse(time: float) -> None:
    noisy, video = torch.randn(2, 1, 3, 5, 4, 4, dtype=torch.float64)
    t = torch.tensor(time, dtype=torch.float64)
    velocity = flow.velocity_from_video(noisy, video, t)
    torch.testing.assert_close(flow.video_from_velocity(noisy, velocity, t), video)


def test_velocity_of_the_true_video_is_the_target() -> None:
    video, noise, t = torch.randn(1, 3, 5, 4, 4), torch.randn(1, 3, 5, 4, 4), torch.tensor(0.3)
    noisy = flow.add_noise(video, noise, t)
    torch.testing.assert_close(flow.velocity_from_video(noisy, video, t), flow.velocity_target(video, noise))


def test_velocity_is_exactly_zero_at_time_zero() -> None:
    noisy, video = torch.randn(2, 3, 9, 4, 4), torch.randn(2, 3, 9, 4, 4)
    t = flow.per_frame(torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5]]), 9)
    velocity = flow.velocity_from_video(noisy, video, t)
    assert not velocity[0, :, 0].any()
    assert velocity[0, :, 1:].all()
    assert velocity[1].all()


def test_velocity_near_zero_is_bounded() -> None:
    noisy, video = torch.ones(1), torch.zeros(1)
    assert flow.velocity_from_video(noisy, video, torch.tensor(1e-6)).item() == pytest.approx(1 / flow.MIN_TIME)


def test_per_frame_gives_group_zero_one_frame() -> None:
    times = flow.per_frame(torch.tensor([[0.0, 0.4, 1.0]]), 9)
    assert times.shape == (1, 1, 9, 1, 1)
    assert times.flatten().tolist() == pytest.approx([0.0] + [0.4] * 4 + [1.0] * 4)


def test_noise_ends_are_the_video_and_the_noise() -> None:
    video, noise = torch.randn(2, 8), torch.randn(2, 8)
    assert torch.equal(flow.add_noise(video, noise, torch.tensor(0.0)), video)
    assert torch.equal(flow.add_noise(video, noise, torch.tensor(1.0)), noise)


def test_loss_weight() -> None:
    weights = flow.loss_weight(torch.tensor([1.0, 0.5, 0.2, 0.05, 0.0]))
    assert weights.tolist() == pytest.approx([1.0, 4.0, 25.0, 25.0, 25.0])


def test_sampled_times_have_the_stated_distribution() -> None:
    count = 40_000
    t = flow.sample_time(count, p_full=0.3, generator=torch.Generator().manual_seed(3))
    assert t.shape == (count,)
    assert t.min() >= flow.MIN_SCHEDULE_TIME and t.max() == 1
    full = (t == 1).double().mean().item()
    assert full == pytest.approx(0.3, abs=0.01)
    rest = t[t < 1]
    assert rest.mean().item() == pytest.approx(0.5, abs=0.01)
    # P(sigmoid(n) < 0.1) = Φ(log(1/9)) = 0.01399; a tenth uniform adds 0.01
    assert (rest < 0.1).double().mean().item() == pytest.approx(0.9 * 0.01399 + 0.1 * 0.1, abs=0.003)
    inner = 2 * 0.5 * (1 + math.erf(math.log(0.6 / 0.4) / math.sqrt(2))) - 1
    assert ((rest - 0.5).abs() < 0.1).double().mean().item() == pytest.approx(0.9 * inner + 0.1 * 0.2, abs=0.01)


def test_sampled_times_come_from_the_generator() -> None:
    draws = [flow.sample_time(64, p_full=0.2, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert (flow.sample_time(64, p_full=1.0, generator=torch.Generator().manual_seed(0)) == 1).all()


@settings(deadline=None)
@given(st.integers(1, 50))
def test_schedule_falls_from_one_to_zero_and_skips_small_times(steps: int) -> None:
    times = flow.schedule(steps)
    assert len(times) == steps + 1
    assert times[0] == 1.0 and times[-1] == 0.0
    assert times == sorted(times, reverse=True)
    assert min(times[:-1]) >= flow.MIN_SCHEDULE_TIME
    if steps <= 20:
        assert times == pytest.approx([1 - i / steps for i in range(steps + 1)])


@pytest.mark.parametrize("steps", [0, -1, 51])
def test_schedule_refuses_other_lengths(steps: int) -> None:
    with pytest.raises(ValueError, match=f"between 1 and 50, got {steps}"):
        flow.schedule(steps)
