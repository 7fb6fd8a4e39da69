"""The kernels and the loop around them against NumPy, bit for bit; outputs are poisoned first, so that what is not
written shows. On the fake GPU this tests the loop, on a real one the kernels too."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from onedva_runtime.backends.cuda_memory import Buffer, Cuda
from onedva_runtime.backends.device_sampler import DeviceSampler, Sampling
from onedva_runtime.noise import normal_table, reference_gaussian
from onedva_runtime.sampler import linear_timesteps, moving_timesteps, reference_pack, reference_update

Gpu = tuple[Cuda, Any, int]
SHAPES = [(1, 1, 1), (5, 16, 48), (3, 33, 513)]


def put(gpu: Gpu, array: np.ndarray) -> Buffer:
    cuda, _, stream = gpu
    buffer = cuda.take(array.nbytes)
    cuda.to_device(buffer.pointer, np.ascontiguousarray(array), stream)
    cuda.wait(stream)
    return buffer


def poisoned(gpu: Gpu, size: int) -> Buffer:
    buffer = gpu[0].take(size)
    gpu[0].fill(buffer.pointer, 0xFF, buffer.size, gpu[2])
    return buffer


def get(gpu: Gpu, buffer: Buffer, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    array = np.empty(shape, dtype)
    gpu[0].to_host(array, buffer.pointer, gpu[2])
    gpu[0].wait(gpu[2])
    return array


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_noise_has_the_bits_of_numpy(gpu: Gpu, shape: tuple[int, int, int], seed: int) -> None:
    frames, height, width = shape
    box = {"first_frame": 7, "frames": frames, "height": height, "width": width, "top": 32, "left": 4096}
    expected = reference_gaussian(seed, **box)
    table, out = put(gpu, normal_table()), poisoned(gpu, expected.nbytes)
    gpu[1].device_gaussian(out.pointer, table.pointer, seed, 7, 32, 4096, frames, height, width, gpu[2])
    np.testing.assert_array_equal(get(gpu, out, expected.shape), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_updates_and_packing_have_the_bits_of_numpy(gpu: Gpu, shape: tuple[int, int, int]) -> None:
    """Also halves between levels, the ends of the range and beyond, and what is no number."""
    frames, height, width = shape
    random = np.random.default_rng(1)
    video = random.standard_normal((2, 3, *shape)).astype(np.float32)
    flat = video.reshape(-1)
    halves = (np.arange(-2, 258, 0.5, dtype=np.float32) / np.float32(127.5) - np.float32(1))[: flat.size]
    flat[: halves.size] = halves
    special = np.array([np.inf, -np.inf, np.nan, 1e30, -0.0], np.float32)[: flat.size]
    flat[-special.size :] = special
    velocity = random.standard_normal(video.shape).astype(np.float32)
    lengths, counter = put(gpu, np.array([0.5, -0.2499], np.float32)), put(gpu, np.array([1], np.int32))
    moved, speed = put(gpu, video), put(gpu, velocity)
    packed = poisoned(gpu, video.size)
    gpu[1].device_pack(
        packed.pointer, moved.pointer, speed.pointer, 0, lengths.pointer, counter.pointer,
        2, frames, height, width, gpu[2],
    )  # fmt: skip
    expected = reference_pack(video, velocity=velocity, dt=-0.2499)
    np.testing.assert_array_equal(get(gpu, packed, expected.shape, np.uint8), expected)
    gpu[1].device_update(moved.pointer, speed.pointer, 0, video.size, lengths.pointer, counter.pointer, gpu[2])
    reference_update(video, velocity, -0.2499)
    np.testing.assert_array_equal(get(gpu, moved, video.shape), video)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", [1, 2])
def test_velocities_of_fewer_bits_are_widened_first(kind: int) -> None:
    """On a real GPU only: fp16 by NumPy's, bf16 by its upper half of float32."""
    from onedva_runtime.backends.device_sampler import device_kernels

    cuda = Cuda()
    gpu = (cuda, device_kernels(), cuda.stream())
    random = np.random.default_rng(2)
    video, velocity = random.standard_normal((2, 1, 3, 5, 16, 48)).astype(np.float32)
    if kind == 1:
        stored: np.ndarray = velocity.astype(np.float16)
        wide = stored.astype(np.float32)
    else:
        wide = (velocity.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        stored = (wide.view(np.uint32) >> 16).astype(np.uint16)
    lengths, counter = put(gpu, np.array([-0.3], np.float32)), put(gpu, np.array([0], np.int32))
    moved, speed = put(gpu, video), put(gpu, stored)
    gpu[1].device_update(moved.pointer, speed.pointer, kind, video.size, lengths.pointer, counter.pointer, gpu[2])
    reference_update(video, wide, -0.3)
    np.testing.assert_array_equal(get(gpu, moved, video.shape), video)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4, 50])
def test_the_loop_gives_the_frames_of_the_cpus(gpu: Gpu, steps: int, capture: bool) -> None:
    """A velocity that is the video itself: it depends on every update before it. Key and continuation clips in one
    batch; replayed with changed seeds, it is a new decode each time."""
    cuda, kernels, stream = gpu
    shape = (2, 3, 5, 16, 48)
    values = int(np.prod(shape))
    sampler = DeviceSampler(cuda, kernels, stream, capture=capture)
    video, velocity, t = (poisoned(gpu, 4 * size) for size in (values, values, 4))
    context = np.random.default_rng(3).integers(0, 256, (16, 48, 3), np.uint8)
    times = moving_timesteps(steps, min_t=0.05)
    seen: list[np.ndarray] = []

    def enqueue() -> None:
        cuda.on_device(velocity.pointer, video.pointer, 4 * values, stream)

    for seed in (5, 6):
        sampling = Sampling(shape, seed, [(0, 0, 0), (4, 16, 32)], times, [None, context])
        cuda.fill(velocity.pointer, 0xFF, velocity.size, stream)
        packed = sampler.run(sampling, video=video, velocity=velocity, t=t, enqueue=enqueue)
        got = get(gpu, packed, (2, 5, 16, 48, 3), np.uint8)
        expected = np.stack([
            reference_gaussian(seed, first_frame=f, top=y, left=x, frames=5, height=16, width=48)
            for f, y, x in sampling.places
        ])  # fmt: skip
        expected[1, :, 0] = context.transpose(2, 0, 1) / np.float32(127.5) - np.float32(1)
        moves = [float(stop - start) for start, stop in pairwise(times)]
        for dt in moves[:-1]:
            reference_update(expected, expected.copy(), dt)
        np.testing.assert_array_equal(got, reference_pack(expected, velocity=expected.copy(), dt=moves[-1]))
        np.testing.assert_array_equal(get(gpu, t, (2, 2)), np.array([[1, 1], [0, 1]], np.float32) * times[-2])
        seen.append(got)
    assert steps == 1 or not np.array_equal(seen[0], seen[1])  # one step from v to v − v is grey whatever the noise
    captures = sampler.graphs.captures if sampler.graphs else 0
    assert captures == (1 if capture and steps > 1 else 0)


def test_steps_of_no_length_are_left_out() -> None:
    assert len(linear_timesteps(50, min_t=0.05)) == 51 and len(moving_timesteps(50, min_t=0.05)) == 50
    assert (np.diff(moving_timesteps(50, min_t=0.05)) < 0).all()


def test_memory_that_nobody_holds_is_used_again(gpu: Gpu) -> None:
    first = gpu[0].take(1000)
    pointer = first.pointer
    assert pointer % 256 == 0 and first.size == 1024
    second = gpu[0].take(1000)
    assert second.pointer != pointer
    del first
    assert gpu[0].take(900).pointer == pointer
    del second
    gpu[0].trim()
