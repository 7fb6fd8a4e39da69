"""The schedule, the Euler update against an ODE with a closed form, and packing to uint8."""

import numpy as np
import pytest

from onedva_runtime.sampler import euler, linear_timesteps, pack_frames


@pytest.mark.parametrize("num_steps", [1, 2, 4, 20, 21, 50])
def test_timesteps_fall_from_one_to_zero_and_none_is_evaluated_below_the_least(num_steps: int) -> None:
    times = linear_timesteps(num_steps, min_t=0.05)
    assert times.dtype == np.float32 and len(times) == num_steps + 1
    assert times[0] == 1 and times[-1] == 0
    assert (np.diff(times) <= 0).all()
    assert times[:-1].min() >= np.float32(0.05)


def test_timesteps_are_even_where_the_least_does_not_bind() -> None:
    np.testing.assert_allclose(linear_timesteps(4, min_t=0.05), [1, 0.75, 0.5, 0.25, 0])


def test_no_steps_are_no_schedule() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        linear_timesteps(0, min_t=0.05)


def test_one_step_is_exact_on_a_straight_path() -> None:
    video, noise = np.random.default_rng(0).standard_normal((2, 1, 3, 5, 4, 4)).astype(np.float32)
    out = euler(lambda noisy, t: (noisy - video) / np.float32(t), noise, linear_timesteps(1, min_t=0.05))
    np.testing.assert_allclose(out, video, atol=1e-6)


def test_euler_converges_to_the_closed_form_at_first_order() -> None:
    start = np.ones((1, 3, 1, 2, 2), np.float32)  # d video / dt = video: video(0) = video(1) / e
    errors = [
        abs(float(euler(lambda video, _: video, start, linear_timesteps(steps, min_t=0.0)).mean()) - np.exp(-1))
        for steps in (10, 20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_euler_leaves_its_noise_alone_and_skips_steps_of_no_length() -> None:
    noise, times = np.ones((1, 3, 1, 1, 1), np.float32), []
    euler(lambda video, t: times.append(t) or video, noise, linear_timesteps(50, min_t=0.05))
    assert (noise == 1).all()
    assert len(times) == 49  # 0.04 and 0.02 are both moved onto 0.05
    assert min(times) == pytest.approx(0.05)


def test_pack_rounds_clips_and_puts_channels_last() -> None:
    video = np.zeros((2, 3, 1, 2, 2), np.float32)
    video[0, 0, 0, 0, 0], video[0, 1, 0, 0, 1], video[1, 2, 0, 1, 1] = -1.5, 3, 1
    frames = pack_frames(video)
    assert frames.shape == (2, 1, 2, 2, 3) and frames.dtype == np.uint8 and frames.flags.c_contiguous
    assert frames[0, 0, 0, 0, 0] == 0 and frames[0, 0, 0, 1, 1] == 255 and frames[1, 0, 1, 1, 2] == 255
    assert frames[0, 0, 1, 1, 0] == 128  # 127.5 rounds to even


def test_pack_undoes_the_scaling_of_every_level() -> None:
    levels = np.arange(256, dtype=np.uint8)
    video = (levels.astype(np.float32) / np.float32(127.5) - np.float32(1)).reshape(1, 1, 1, 16, 16).repeat(3, 1)
    assert (pack_frames(video)[0, 0, :, :, 0].ravel() == levels).all()
