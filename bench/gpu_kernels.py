"""The extension's kernels on a GPU: bytes that they must move at least, over the rate of a copy; and the sampler's loop
with and without a captured graph. A part of bench/gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from onedva_runtime.backends.device_sampler import DeviceSampler, Sampling, device_kernels
from onedva_runtime.noise import normal_table
from onedva_runtime.sampler import moving_timesteps

Timed = Callable[[Callable[[], object]], dict[str, float]]


def kernel_rows(timed: Timed, copy_rate: float, sizes: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Time and rate of each kernel. copy_rate: GB/s of a copy, read and written; sizes: (frames, height, width)."""
    module = device_kernels()
    if module is None or not torch.cuda.is_available():
        raise RuntimeError("the extension was built without CUDA, or there is no GPU")
    rows = []
    for size in sizes:
        for name, moved, call in _calls(module, *size):
            timing = timed(call)
            rate = moved / timing["p50_ms"] / 1e6
            known = {"kernel": name, "size": "×".join(map(str, size)), **timing}
            rows.append({**known, "gb_per_s": round(rate, 1), "of_copy_rate": round(rate / copy_rate, 3)})
    return rows


def _calls(module: Any, frames: int, height: int, width: int) -> list[tuple[str, int, Callable[[], None]]]:
    """Each kernel's name, the bytes it moves, and a call of it on PyTorch's stream."""
    values = 3 * frames * height * width
    table = torch.from_numpy(normal_table().copy()).cuda()
    lengths, counter = torch.tensor([0.0, -0.25]).cuda(), torch.zeros(1, dtype=torch.int32).cuda()
    video, velocity = (torch.randn(values, device="cuda") for _ in range(2))
    packed = torch.empty(values, dtype=torch.uint8, device="cuda")
    held = (table, lengths, counter, video, velocity, packed)  # their memory must outlive the calls
    t, d, c, v, u, p = (tensor.data_ptr() for tensor in held)
    stream = torch.cuda.current_stream().cuda_stream
    box = (frames, height, width, stream)
    return [
        ("gaussian", 4 * values, lambda held=held: module.device_gaussian(v, t, 1, 0, 0, 0, *box)),
        ("update", 12 * values, lambda held=held: module.device_update(v, u, 0, values, d, c, stream)),
        ("pack", 9 * values, lambda held=held: module.device_pack(p, v, u, 0, d, c, 1, *box)),
    ]


def loop_rows(timed: Timed, size: tuple[int, int, int], steps: int = 4) -> list[dict[str, Any]]:
    """A whole decode's loop whose velocity is a copy: what is left is launches, replayed as a graph or one by one."""
    from onedva_runtime.backends.cuda_memory import Cuda

    frames, height, width = size
    values, rows = 3 * frames * height * width, []
    for capture in (False, True):
        cuda = Cuda()
        stream = cuda.stream()
        sampler = DeviceSampler(cuda, device_kernels(), stream, capture=capture)
        video, velocity, t = (cuda.take(4 * count) for count in (values, values, frames))
        sampling = Sampling((1, 3, *size), 0, [(0, 0, 0)], moving_timesteps(steps, min_t=0.05), [None])

        def decode(sampler=sampler, cuda=cuda, sampling=sampling, stream=stream, v=video, u=velocity, t=t) -> None:
            def enqueue() -> None:
                cuda.on_device(u.pointer, v.pointer, 4 * values, stream)

            sampler.run(sampling, video=v, velocity=u, t=t, enqueue=enqueue)
            cuda.wait(stream)

        rows.append({"loop": "replayed" if capture else "launched", "steps": steps, **timed(decode)})
    return rows
