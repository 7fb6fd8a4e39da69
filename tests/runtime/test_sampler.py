"""The schedule, the Euler update against an ODE with a closed form, and packing to uint8."""

import numpy as np
import pytest

from onedva_runtime import noise as noise_module
from onedva_runtime.sampler import (
    euler,
    integrate,
    linear_timesteps,
    pack_frames,
    reference_pack,
    reference_update,
)


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


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1, 1), (2, 3, 5, 7, 513), (1, 3, 2, 16, 1040)])
def test_cpp_gives_the_bits_of_the_references(shape: tuple[int, ...], threads: int) -> None:
    """Random values, halves between levels, the ends of the range and what lies beyond it, in shapes of odd widths."""
    assert noise_module.is_native(), "the suite must test the C++ path; build it with `pip install .`"
    random = np.random.default_rng(1)
    video = random.standard_normal(shape).astype(np.float32)
    flat = video.reshape(-1)
    halves = (np.arange(-2, 258, 0.5, dtype=np.float32) / np.float32(127.5) - np.float32(1))[: flat.size]
    flat[: halves.size] = halves
    special = np.array([np.inf, -np.inf, np.nan, 1e30, -1e30, -0.0], np.float32)[: flat.size]
    flat[-special.size :] = special
    velocity, dt = random.standard_normal(shape).astype(np.float32), -0.2499
    np.testing.assert_array_equal(pack_frames(video, threads=threads), reference_pack(video))
    fused = pack_frames(video, velocity=velocity, dt=dt, threads=threads)
    np.testing.assert_array_equal(fused, reference_pack(video, velocity=velocity, dt=dt))

    finite = np.nan_to_num(video, nan=0.5, posinf=2, neginf=-2)
    expected = finite.copy()
    reference_update(expected, velocity, dt)
    moved = euler(lambda _, t: velocity, finite, np.array([1, 1 + dt], np.float32), threads=threads)
    step = float(np.float32(1 + dt) - np.float32(1))
    again = finite.copy()
    reference_update(again, velocity, step)
    np.testing.assert_array_equal(moved, again)
    assert shape == (1, 3, 1, 1, 1) or (moved != finite).any()


def test_the_last_update_is_made_while_packing() -> None:
    start = np.random.default_rng(2).standard_normal((1, 3, 5, 8, 8)).astype(np.float32)

    def velocity(video: np.ndarray, t: float) -> np.ndarray:
        return video * np.float32(t)

    times = linear_timesteps(3, min_t=0.05)
    video, last, dt = integrate(velocity, start.copy(), times)
    np.testing.assert_array_equal(pack_frames(video, velocity=last, dt=dt), pack_frames(euler(velocity, start, times)))
    with pytest.raises(ValueError, match="must fall"):
        integrate(velocity, start.copy(), np.array([1, 1], np.float32))


def test_without_the_extension_numpy_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from onedva_runtime import sampler

    video, velocity = np.random.default_rng(3).standard_normal((2, 1, 3, 5, 8, 8)).astype(np.float32)
    built = [
        pack_frames(video, velocity=velocity, dt=0.5),
        euler(lambda v, t: v, video, np.array([1, 0.5], np.float32)),
    ]
    monkeypatch.setattr(sampler, "native", lambda: None)
    plain = [
        pack_frames(video, velocity=velocity, dt=0.5),
        euler(lambda v, t: v, video, np.array([1, 0.5], np.float32)),
    ]
    assert all(np.array_equal(a, b) for a, b in zip(built, plain, strict=True))


@pytest.mark.parametrize("fault", ["shape", "channels", "dtype"])
def test_cpp_refuses_what_does_not_fit(fault: str) -> None:
    module = noise_module.native()
    assert module is not None
    video, frames = np.zeros((1, 3, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4, 3), np.uint8)
    if fault == "shape":
        with pytest.raises(ValueError, match="one shape"):
            module.update(video, np.zeros((1, 3, 2, 4, 5), np.float32), 0.1, 1)
    elif fault == "channels":
        with pytest.raises(ValueError, match=r"frames must be \(B, T, H, W, 3\)"):
            module.pack(np.zeros((1, 2, 4, 5, 3), np.uint8), video, None, 0.0, 1)
    else:
        with pytest.raises(TypeError):
            module.pack(frames, video.astype(np.float64), None, 0.0, 1)
